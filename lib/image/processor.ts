// Images to the input of a vision tower, as the processors of the reference do it on the host.
import { SiglipError } from '../errors';
import type {
  FixedPreprocessor,
  NaflexPreprocessor,
  Preprocessor,
} from '../weights/preprocessor_config';
import { normalizationTable, normalizePlanes } from './normalization';
import { naflexGrid, writePatches } from './patches';
import type { PatchGrid } from './patches';
import { resizeImage } from './resize';
import type { RgbImage } from './rgb_image';

/** Input of a fixed-resolution tower, in the form `compile`d programs take. */
export interface FixedBatch {
  /** (B, 3, height, width), normalised. */
  readonly images: Float32Array;
}

/** Input of a NaFlex tower, in the form `compile`d programs take; L is the patch budget. */
export interface NaflexBatch {
  /** (B, L, P·P·3), normalised; rows beyond an image's patches are zero. */
  readonly patches: Float32Array;
  /** (B, 2), rows and columns of patches of each image. */
  readonly shapes: Int32Array;
  /** (B, L), 1 for a patch, 0 for padding. */
  readonly mask: Uint8Array;
}

/** Squares an image to the one size a fixed-resolution tower knows. */
export class FixedProcessor {
  readonly layout = 'fixed';
  /** Height and width of the result in pixels. */
  readonly height: number;
  readonly width: number;
  /** (3, 256), the value of each byte of each colour: what the device needs to normalise. */
  readonly table: Float32Array;
  private readonly config: FixedPreprocessor;

  constructor(config: FixedPreprocessor) {
    this.config = config;
    this.height = config.height;
    this.width = config.width;
    this.table = normalizationTable(config);
  }

  /** Resizes one image to (height, width, 3) bytes, aspect ratio not kept. */
  resize(image: RgbImage): RgbImage {
    const { height, width } = this;
    if (this.config.resample !== null) {
      return resizeImage(image, width, height, this.config.resample);
    }
    if (image.width === width && image.height === height) return image;
    throw new SiglipError(
      'ERR_IMAGE',
      `FixedProcessor: image must have ${String(height)} × ${String(width)} pixels, as ` +
        `preprocessor_config.json turns resizing off, got ${String(image.height)} × ${String(image.width)}`,
    );
  }

  /** Resizes images to one array of bytes, (B, height, width, 3), to be normalised on the device. */
  pixels(images: readonly RgbImage[]): Uint8Array {
    const each = 3 * this.height * this.width;
    const out = new Uint8Array(images.length * each);
    images.forEach((image, i) => {
      out.set(this.resize(image).data, i * each);
    });
    return out;
  }

  /** Resizes and normalises, channels first: `pixel_values` of the reference. */
  batch(images: readonly RgbImage[]): FixedBatch {
    const each = 3 * this.height * this.width;
    const out = new Float32Array(images.length * each);
    images.forEach((image, i) => {
      normalizePlanes(this.resize(image).data, this.table, out, i * each);
    });
    return { images: out };
  }
}

/** Resizes an image to as many whole patches as a budget allows. */
export class NaflexProcessor {
  readonly layout = 'naflex';
  /** Side of a patch in pixels. */
  readonly patch: number;
  /** Budget when none is given. */
  readonly maxPatches: number;
  /** (3, 256), the value of each byte of each colour. */
  readonly table: Float32Array;
  private readonly config: NaflexPreprocessor;

  constructor(config: NaflexPreprocessor) {
    this.config = config;
    this.patch = config.patch;
    this.maxPatches = config.maxPatches;
    this.table = normalizationTable(config);
  }

  /** Resizes one image to whole patches within the budget. */
  resize(image: RgbImage, maxPatches = this.maxPatches): { image: RgbImage; grid: PatchGrid } {
    const { patch } = this;
    const grid = naflexGrid(image.height, image.width, patch, maxPatches);
    const { resample } = this.config;
    return {
      image: resizeImage(image, grid.columns * patch, grid.rows * patch, resample),
      grid,
    };
  }

  /** Resizes, normalises and cuts: `pixel_values`, mask and spatial shapes of the reference. */
  batch(images: readonly RgbImage[], maxPatches = this.maxPatches): NaflexBatch {
    const { patch } = this;
    const rowWidth = 3 * patch * patch;
    const patches = new Float32Array(images.length * maxPatches * rowWidth);
    const mask = new Uint8Array(images.length * maxPatches);
    const shapes = new Int32Array(images.length * 2);
    images.forEach((original, i) => {
      const { image, grid } = this.resize(original, maxPatches);
      const first = i * maxPatches;
      writePatches(image, patch, this.table, patches, first * rowWidth);
      mask.fill(1, first, first + grid.rows * grid.columns);
      shapes.set([grid.rows, grid.columns], 2 * i);
    });
    return { patches, shapes, mask };
  }
}

/** A processor of either layout. */
export type ImageProcessor = FixedProcessor | NaflexProcessor;

/** The processor that a `preprocessor_config.json` describes. */
export function createProcessor(config: Preprocessor): ImageProcessor {
  return config.layout === 'fixed' ? new FixedProcessor(config) : new NaflexProcessor(config);
}

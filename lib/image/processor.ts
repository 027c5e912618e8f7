// Images to the input of a vision tower, as the processors of the reference do it on the host. Files
// are decoded off the JavaScript thread; everything behind that is one native call on the device's
// own threads, in the order of the calls among the runs of programs.
import type { Device } from '../array';
import { DeviceArray } from '../array';
import { expectNotAborted, SiglipError } from '../errors';
import type {
  FixedPreprocessor,
  NaflexPreprocessor,
  Preprocessor,
} from '../weights/preprocessor_config';
import { decodePixels, isRaw, rawPixels } from './decode';
import type { DecodeOptions, ImageInput } from './decode';
import { naflexGrid } from './naflex_grid';
import type { PatchGrid } from './naflex_grid';
import { normalizationTable } from './normalization';
import { allocate, preparePixels } from './pixels';
import type { Pixels, Placed, Recipe } from './pixels';

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

/** Input of a NaFlex tower without padding; T is the number of rows. */
export interface PackedBatch {
  /** (T, P·P·3), normalised, the patches of one image after the other; rows behind them are zero. */
  readonly patches: Float32Array;
  /** (B, 2), rows and columns of patches of each image. */
  readonly shapes: Int32Array;
  /** (B + 1): image b has the rows [segments[b], segments[b + 1]). */
  readonly segments: Int32Array;
}

/** One image, ready for a tower. */
export interface PreparedImage {
  /** (3, height, width) for a fixed-resolution tower, (rows · columns, P·P·3) for NaFlex. */
  readonly values: Float32Array;
  /** Sides of the resized image in pixels; for NaFlex multiples of the patch. */
  readonly height: number;
  readonly width: number;
}

export type PrepareOptions = DecodeOptions;

export interface PrepareNaflexOptions extends PrepareOptions {
  /** Most patches of an image. Default: what the checkpoint says, 256. */
  readonly maxPatches?: number;
}

// Files decoded at the same time, which bounds the pixels alive: the decoder has four threads.
const MAX_DECODING = 8;

/** Where and how large an image of a batch comes out. */
type Placement = Omit<Placed, 'pixels'>;

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

  /**
   * Decodes, resizes (aspect ratio not kept) and normalises one image.
   *
   * @throws SiglipError ERR_IMAGE, ERR_FILE, ERR_ABORTED as {@link decodeImage}; ERR_OUT_OF_MEMORY
   */
  async prepare(image: ImageInput, options: PrepareOptions = {}): Promise<PreparedImage> {
    const pixels = await decodePixels(image, options);
    const placement = this.place(pixels, 0);
    const values = allocate(Float32Array, [3, this.height, this.width]);
    await preparePixels([{ pixels, ...placement }], this.recipe('planes'), values);
    return { values, height: this.height, width: this.width };
  }

  /**
   * Decodes one image, for {@link resized}.
   *
   * @throws SiglipError as {@link prepare}
   */
  async decode(image: ImageInput, options: PrepareOptions = {}): Promise<Pixels> {
    const pixels = await decodePixels(image, options);
    this.place(pixels, 0);
    return pixels;
  }

  /**
   * Decoded images of any sizes to one array on a device, (B, height, width, 3) bytes, to be normalised
   * there by the table. A GPU takes the pixels as they are and resizes them itself, with the same bytes.
   *
   * @throws SiglipError ERR_OUT_OF_MEMORY, of the host or of the device; ERR_DEVICE
   */
  async resized(images: readonly Pixels[], device: Device = 'cpu'): Promise<DeviceArray> {
    const { height, width } = this;
    const placed = images.map((pixels, i) => ({ pixels, ...this.place(pixels, i) }));
    const shape = [images.length, height, width, 3];
    const array = DeviceArray.empty({ dtype: 'uint8', shape }, device);
    try {
      await preparePixels(placed, this.recipe('bytes'), array);
    } catch (error) {
      array.dispose();
      throw error;
    }
    return array;
  }

  /** A decoded image in the size of the result, resized on the CPU. */
  async shrunk(pixels: Pixels): Promise<Pixels> {
    const { height, width } = this;
    const data = allocate(Uint8Array, [height, width, 3]);
    await preparePixels([{ pixels, ...this.place(pixels, 0) }], this.recipe('bytes'), data);
    return { data, width, height, format: 'rgb', background: undefined, owned: true };
  }

  /**
   * Decodes, resizes and normalises images, channels first: `pixel_values` of the reference. Raw
   * pixels are copied before this returns.
   *
   * @throws SiglipError as {@link prepare}, naming the image by its index
   */
  async batch(images: readonly ImageInput[], options: PrepareOptions = {}): Promise<FixedBatch> {
    const out = allocate(Float32Array, [images.length, 3, this.height, this.width]);
    await prepareAll(images, options, this.recipe('planes'), out, (pixels, i) =>
      this.place(pixels, i),
    );
    return { images: out };
  }

  /**
   * Decodes and resizes images to one array of bytes, (B, height, width, 3), to be normalised on the
   * device.
   *
   * @throws SiglipError as {@link batch}
   */
  async pixels(images: readonly ImageInput[], options: PrepareOptions = {}): Promise<Uint8Array> {
    const out = allocate(Uint8Array, [images.length, 3, this.height, this.width]);
    await prepareAll(images, options, this.recipe('bytes'), out, (pixels, i) =>
      this.place(pixels, i),
    );
    return out;
  }

  private recipe(layout: 'bytes' | 'planes'): Recipe {
    const { resample, backend } = this.config;
    const output = layout === 'bytes' ? { layout } : { layout, table: this.table };
    return { resample: resample ?? 'bilinear', backend, output };
  }

  private place(pixels: Pixels, index: number): Placement {
    const { height, width } = this;
    const fits = pixels.width === width && pixels.height === height;
    if (fits || this.config.resample !== null) {
      return { height, width, offset: index * 3 * height * width };
    }
    throw new SiglipError(
      'ERR_IMAGE',
      `FixedProcessor: image must have ${String(height)} × ${String(width)} pixels, as ` +
        `preprocessor_config.json turns resizing off, got ${String(pixels.height)} × ${String(pixels.width)}`,
    );
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

  /**
   * Decodes one image, resizes it to whole patches within the budget, normalises and cuts it. The
   * values have no padding.
   *
   * @throws SiglipError ERR_IMAGE, ERR_FILE, ERR_ABORTED as {@link decodeImage}; ERR_IMAGE for one
   * too long for the budget; ERR_OUT_OF_MEMORY
   */
  async prepare(image: ImageInput, options: PrepareNaflexOptions = {}): Promise<PreparedImage> {
    const pixels = await decodePixels(image, options);
    const { height, width } = this.place(this.gridOf(pixels, options), 0);
    const values = allocate(Float32Array, [3, height, width]);
    await preparePixels([{ pixels, height, width, offset: 0 }], this.recipe(), values);
    return { values, height, width };
  }

  /**
   * The same for images together: `pixel_values`, mask and spatial shapes of the reference. Raw
   * pixels are copied before this returns.
   *
   * @throws SiglipError as {@link prepare}, naming the image by its index
   */
  async batch(
    images: readonly ImageInput[],
    options: PrepareNaflexOptions = {},
  ): Promise<NaflexBatch> {
    const maxPatches = expectBudget(options.maxPatches ?? this.maxPatches);
    const rowWidth = 3 * this.patch * this.patch;
    const patches = allocate(Float32Array, [images.length, maxPatches, rowWidth]);
    const mask = allocate(Uint8Array, [images.length, maxPatches]);
    const shapes = new Int32Array(images.length * 2);
    await prepareAll(images, options, this.recipe(), patches, (pixels, i) => {
      const grid = this.gridOf(pixels, options);
      const first = i * maxPatches;
      mask.fill(1, first, first + grid.rows * grid.columns);
      shapes.set([grid.rows, grid.columns], 2 * i);
      return this.place(grid, first * rowWidth);
    });
    return { patches, shapes, mask };
  }

  /**
   * Images together without padding. All are decoded before the first is resized, since where an image
   * lies follows from those before it.
   *
   * @param rows - T, at least the patches of all images; images × `maxPatches` are always enough
   * @throws SiglipError as {@link batch}; ERR_ARGUMENT when the rows do not suffice
   */
  async pack(
    images: readonly ImageInput[],
    rows: number,
    options: PrepareNaflexOptions = {},
  ): Promise<PackedBatch> {
    expectBudget(options.maxPatches ?? this.maxPatches);
    const decoded = await decodeAll(images, options);
    const grids = decoded.map((pixels, i) => located(i, () => this.gridOf(pixels, options)));
    const segments = new Int32Array(images.length + 1);
    grids.forEach((grid, i) => {
      segments[i + 1] = segments[i] + grid.rows * grid.columns;
    });
    const used = segments[images.length];
    if (!(used <= rows)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `NaflexProcessor: rows must be at least the ${String(used)} patches of the images, got ${String(rows)}`,
      );
    }
    const rowWidth = 3 * this.patch * this.patch;
    const patches = allocate(Float32Array, [rows, rowWidth]);
    const placed = decoded.map((pixels, i) => ({
      pixels,
      ...this.place(grids[i], segments[i] * rowWidth),
    }));
    if (placed.length > 0) await preparePixels(placed, this.recipe(), patches);
    return {
      patches,
      shapes: Int32Array.from(grids.flatMap((grid) => [grid.rows, grid.columns])),
      segments,
    };
  }

  private gridOf({ height, width }: Pixels, options: PrepareNaflexOptions): PatchGrid {
    return naflexGrid(height, width, this.patch, options.maxPatches ?? this.maxPatches);
  }

  private place({ rows, columns }: PatchGrid, offset: number): Placement {
    return { height: rows * this.patch, width: columns * this.patch, offset };
  }

  private recipe(): Recipe {
    const { resample, backend, patch } = this.config;
    return { resample, backend, output: { layout: 'patches', table: this.table, patch } };
  }
}

/** A processor of either layout. */
export type ImageProcessor = FixedProcessor | NaflexProcessor;

/** The processor that a `preprocessor_config.json` describes. */
export function createProcessor(config: Preprocessor): ImageProcessor {
  return config.layout === 'fixed' ? new FixedProcessor(config) : new NaflexProcessor(config);
}

// What is pixels already goes in one call; files as they are decoded, some at a time. Returns or
// throws when nothing is under way any more.
async function prepareAll(
  images: readonly ImageInput[],
  options: PrepareOptions,
  recipe: Recipe,
  into: Uint8Array | Float32Array,
  place: (pixels: Pixels, index: number) => Placement,
): Promise<void> {
  expectNotAborted('decodeImage', options.signal);
  const placed = (pixels: Pixels, i: number): Placed => ({ pixels, ...place(pixels, i) });
  const raw: Placed[] = [];
  const encoded: [index: number, image: ImageInput][] = [];
  images.forEach((image, i) => {
    if (!isRaw(image)) encoded.push([i, image]);
    else raw.push(located(i, () => placed(rawPixels(image, options), i)));
  });

  let failed = false;
  const lane = async (): Promise<void> => {
    for (let next = encoded.shift(); next !== undefined && !failed; next = encoded.shift()) {
      const [i, image] = next;
      try {
        const one = placed(await decodePixels(image, options), i);
        await preparePixels([one], recipe, into);
      } catch (error) {
        failed = true;
        throw atImage(i, error);
      }
    }
  };
  const lanes = Array.from({ length: Math.min(MAX_DECODING, encoded.length) }, lane);
  if (raw.length > 0) lanes.push(preparePixels(raw, recipe, into));
  for (const result of await Promise.allSettled(lanes)) {
    if (result.status === 'rejected') throw result.reason;
  }
}

// Some at a time; returns or throws when nothing is under way any more.
async function decodeAll(
  images: readonly ImageInput[],
  options: PrepareOptions,
): Promise<readonly Pixels[]> {
  const decoded: Pixels[] = [];
  const waiting = [...images.entries()];
  const lane = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const [i, image] = next;
      try {
        decoded[i] = await decodePixels(image, options);
      } catch (error) {
        waiting.length = 0;
        throw atImage(i, error);
      }
    }
  };
  const lanes = Array.from({ length: Math.min(MAX_DECODING, images.length) }, lane);
  for (const result of await Promise.allSettled(lanes)) {
    if (result.status === 'rejected') throw result.reason;
  }
  return decoded;
}

function located<T>(index: number, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw atImage(index, error);
  }
}

function atImage(index: number, error: unknown): unknown {
  if (!(error instanceof SiglipError)) return error;
  const message = `image ${String(index)}: ${error.message}`;
  return new SiglipError(error.code, message, { cause: error });
}

function expectBudget(maxPatches: number): number {
  if (Number.isSafeInteger(maxPatches) && maxPatches >= 1) return maxPatches;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `NaflexProcessor: maxPatches must be a positive integer, got ${String(maxPatches)}`,
  );
}

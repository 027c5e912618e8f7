// Images as callers give them, admitted and prepared for the vision tower.
import { types } from 'node:util';
import { SiglipError } from '../errors';
import { elements } from '../graph';
import type { ImageInput, ImageProcessor } from '../image';
import type { ModelConfig } from '../model';
import { loadAddon } from '../native/load';
import type { PreparedImage } from './collate';
import { shown } from './options';

/**
 * An image: a path, encoded bytes or raw pixels (see `ImageInput`), or pixel values that are already
 * prepared, the exact door for parity checks. A fixed-resolution model takes [3, S, S] values in
 * [−1, 1], channels first; a NaFlex model takes at least h·w rows of P·P·3 values and the grid
 * `spatialShape` [h, w]. Memory passed in must not change until the call has ended.
 */
export type EmbedImage = ImageInput | PixelValues;

/** Pixels as the vision tower takes them. */
export interface PixelValues {
  readonly pixelValues: Float32Array;
  readonly spatialShape?: readonly [number, number];
}

/** How one image is prepared. */
export interface PrepareOptions {
  /** Most patches of a NaFlex image. */
  readonly maxPatches?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Prepares images for one model. */
export class ImageInputs {
  /** @param form - `'bytes'` leaves it to the device to normalise, where the layout allows it */
  constructor(
    private readonly config: ModelConfig,
    private readonly processor: ImageProcessor,
    private readonly form: 'bytes' | 'values' = 'values',
  ) {}

  /** (3, 256), the value of each byte of each colour. */
  get table(): Float32Array {
    return this.processor.table;
  }

  /**
   * Decodes, resizes and normalises, or checks values that are already prepared.
   *
   * @param who - begins the message of an error: the call, and the image where there are several.
   * @throws ERR_IMAGE, ERR_FILE, ERR_SHAPE, ERR_DTYPE, ERR_NOT_FINITE, ERR_ABORTED
   */
  async prepare(who: string, image: EmbedImage, options: PrepareOptions): Promise<PreparedImage> {
    try {
      if (isPrepared(image)) return this.admitValues(image);
      const { patch } = this.config.vision;
      const given = {
        ...(options.signal !== undefined && { signal: options.signal }),
        ...(options.maxPatches !== undefined && { maxPatches: options.maxPatches }),
      };
      const { processor } = this;
      const { values, height, width } =
        this.form === 'bytes' && processor.layout === 'fixed'
          ? await processor.prepareBytes(image, given)
          : await processor.prepare(image, given);
      return { values, grid: [Math.floor(height / patch), Math.floor(width / patch)] };
    } catch (error) {
      if (!(error instanceof SiglipError)) throw error;
      throw new SiglipError(error.code, `${who}: ${error.message}`, { cause: error });
    }
  }

  private admitValues({ pixelValues, spatialShape }: PixelValues): PreparedImage {
    const { vision } = this.config;
    if (!types.isFloat32Array(pixelValues)) {
      throw new SiglipError('ERR_DTYPE', 'pixelValues must be a Float32Array, got something else');
    }
    if (vision.layout === 'fixed') {
      const shape = [3, vision.imageSize, vision.imageSize];
      if (pixelValues.length !== elements({ dtype: 'float32', shape })) {
        throw new SiglipError(
          'ERR_SHAPE',
          `pixelValues must hold [${shape.join(', ')}] values, got ${String(pixelValues.length)}`,
        );
      }
      checkFinite(pixelValues);
      const side = Math.floor(vision.imageSize / vision.patch);
      return { values: pixelValues, grid: [side, side] };
    }
    const [rows, columns] = Array.isArray(spatialShape) ? spatialShape : [0, 0];
    const rowWidth = vision.patch * vision.patch * 3;
    if (!(Number.isSafeInteger(rows) && Number.isSafeInteger(columns) && rows > 0 && columns > 0)) {
      throw new SiglipError(
        'ERR_SHAPE',
        `spatialShape must be two positive integers, got ${JSON.stringify(spatialShape ?? null)}`,
      );
    }
    const needed = rows * columns * rowWidth;
    if (pixelValues.length < needed || pixelValues.length % rowWidth !== 0) {
      throw new SiglipError(
        'ERR_SHAPE',
        `pixelValues must hold at least ${String(rows * columns)} rows of ${String(rowWidth)} values, got ${String(pixelValues.length)} values`,
      );
    }
    const values = pixelValues.subarray(0, needed);
    checkFinite(values);
    return { values, grid: [rows, columns] };
  }
}

/** Bytes of memory an input keeps alive while it waits; a path keeps none. */
export function imageBytes(image: EmbedImage): number {
  if (typeof image !== 'object' || image === null) return 0;
  if (types.isAnyArrayBuffer(image) || ArrayBuffer.isView(image)) return image.byteLength;
  if ('pixelValues' in image) return byteLength(image.pixelValues);
  return 'data' in image ? byteLength(image.data) : 0;
}

// What is no array is refused when it is prepared.
function byteLength(data: unknown): number {
  return ArrayBuffer.isView(data) ? data.byteLength : 0;
}

function isPrepared(image: EmbedImage): image is PixelValues {
  return typeof image === 'object' && image !== null && 'pixelValues' in image;
}

function checkFinite(values: Float32Array): void {
  const found = loadAddon().firstNotFinite(values);
  if (found < 0) return;
  throw new SiglipError(
    'ERR_NOT_FINITE',
    `pixelValues must be finite, got ${shown(values[found])} at ${String(found)}`,
  );
}

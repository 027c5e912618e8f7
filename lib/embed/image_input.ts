// Images as callers give them, admitted and prepared for the vision tower.
import { totalmem } from 'node:os';
import { types } from 'node:util';
import type { Device, DeviceArray } from '../array';
import { SiglipError } from '../errors';
import { elements } from '../graph';
import type { FixedProcessor, ImageInput, ImageProcessor, Pixels } from '../image';
import type { ModelConfig, PixelInput } from '../model';
import { loadAddon } from '../native/load';
import type { PreparedImage, PreparedValues } from './collate';
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

// Two batches of 16 images of 11 megapixels.
const MOST_DECODED = 2 ** 30;

/** How one image is prepared. */
export interface PrepareOptions {
  /** Most patches of a NaFlex image. */
  readonly maxPatches?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Values that are already prepared: leave it to {@link PreparedImage.check} whether they are finite. */
  readonly checkLater?: boolean;
}

/** Prepares images for one model. */
export class ImageInputs {
  private readonly waiting: PixelBudget;

  /**
   * @param device - resizes and normalises images of a fixed-resolution model; without one they are
   * prepared on the CPU
   * @param mostDecoded - bytes of decoded images that may wait for it
   */
  constructor(
    private readonly config: ModelConfig,
    private readonly processor: ImageProcessor,
    private readonly device?: Device,
    mostDecoded = Math.min(MOST_DECODED, totalmem() / 16),
  ) {
    this.waiting = new PixelBudget(mostDecoded);
  }

  /**
   * Decodes, resizes and normalises; or decodes and leaves the rest to {@link resized}; or checks values
   * that are already prepared.
   *
   * @param who - begins the message of an error: the call, and the image where there are several.
   * @throws ERR_IMAGE, ERR_FILE, ERR_SHAPE, ERR_DTYPE, ERR_NOT_FINITE, ERR_ABORTED
   */
  async prepare(who: string, image: EmbedImage, options: PrepareOptions): Promise<PreparedImage> {
    try {
      if (isPrepared(image)) {
        const { values, grid } = this.admitValues(image);
        if (options.checkLater !== true) {
          checkFinite(values);
          return { values, grid };
        }
        const check = (): void => {
          try {
            checkFinite(values);
          } catch (error) {
            throw located(who, error);
          }
        };
        return { values, grid, check };
      }
      const { patch } = this.config.vision;
      const given = {
        ...(options.signal !== undefined && { signal: options.signal }),
        ...(options.maxPatches !== undefined && { maxPatches: options.maxPatches }),
      };
      const { processor } = this;
      const gridOf = (height: number, width: number): [number, number] => [
        Math.floor(height / patch),
        Math.floor(width / patch),
      ];
      if (this.device !== undefined && processor.layout === 'fixed') {
        const pixels = await this.admitPixels(processor, await processor.decode(image, given));
        return { pixels, grid: gridOf(processor.height, processor.width) };
      }
      const { values, height, width } = await processor.prepare(image, given);
      return { values, grid: gridOf(height, width) };
    } catch (error) {
      throw located(who, error);
    }
  }

  /**
   * Resizes pixels that {@link prepare} gave, on the device. The array is the caller's to dispose.
   *
   * @throws ERR_OUT_OF_MEMORY
   */
  async resized(
    images: readonly Pixels[],
  ): Promise<{ pixels: DeviceArray } & PixelInput<DeviceArray | Float32Array>> {
    const { processor, device } = this;
    if (processor.layout !== 'fixed') {
      throw new SiglipError('ERR_ARGUMENT', 'embedImages: pixels must be of a fixed resolution');
    }
    try {
      return { pixels: await processor.resized(images, device), table: processor.table };
    } finally {
      for (const pixels of images) this.waiting.remove(pixels);
    }
  }

  // Memory of a caller is copied. What the budget has no room for is resized here, to the same bytes.
  private async admitPixels(processor: FixedProcessor, pixels: Pixels): Promise<Pixels> {
    if (!this.waiting.fits(pixels)) return processor.shrunk(pixels);
    const own = pixels.owned ? pixels : { ...pixels, data: pixels.data.slice(), owned: true };
    this.waiting.add(own);
    return own;
  }

  // All but whether they are finite.
  private admitValues({ pixelValues, spatialShape }: PixelValues): PreparedValues {
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
    return { values: pixelValues.subarray(0, needed), grid: [rows, columns] };
  }
}

/** How much of decoded images waits for the device. */
class PixelBudget {
  private bytes = 0;
  // Of images that nobody asks for any more.
  private readonly forgotten = new FinalizationRegistry((bytes: number) => {
    this.bytes -= bytes;
  });

  constructor(private readonly most: number) {}

  fits({ data }: Pixels): boolean {
    return this.bytes + data.byteLength <= this.most;
  }

  add(pixels: Pixels): void {
    const { byteLength } = pixels.data;
    this.bytes += byteLength;
    this.forgotten.register(pixels, byteLength, pixels);
  }

  remove(pixels: Pixels): void {
    if (this.forgotten.unregister(pixels)) this.bytes -= pixels.data.byteLength;
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

function located(who: string, error: unknown): unknown {
  if (!(error instanceof SiglipError)) return error;
  return new SiglipError(error.code, `${who}: ${error.message}`, { cause: error });
}

/** Whether values are given and no image. */
export function isPrepared(image: EmbedImage): image is PixelValues {
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

// Prepared images of one call to one batch as the vision tower takes it.
import { HostParts } from '../array';
import type { HostArray, Spec } from '../graph';
import type { ImageInput, ModelConfig, PackedInput, PixelInput, VisionInput } from '../model';
import { packedInputSpecs, packedRows, pixelInputSpecs, visionInputSpecs } from '../model';

/** What of a batch goes to the device. */
export type HostInput = HostArray | HostParts;

/** One image, ready for the tower. */
export interface PreparedImage {
  /**
   * Fixed resolution: (3, S, S), normalised, or (S, S, 3) bytes, which the device normalises. NaFlex:
   * rows of P·P·3 values, rows · columns of them or more; what is behind those is not read.
   */
  readonly values: Float32Array | Uint8Array;
  /** Patches: [rows, columns]. */
  readonly grid: readonly [number, number];
}

/** A batch of images and the rows of tokens it has. */
export interface ImageBatch<Input> {
  readonly input: Input;
  /** Number of images. */
  readonly batch: number;
  /** Tokens of an image; NaFlex: rows of the packed batch, those that round it up included. */
  readonly length: number;
}

/**
 * Puts images side by side, on the device that is, to which they are copied; NaFlex images without padding, their patches one after the other, with
 * rows of zeros up to a number that few batches miss (see packedRows).
 */
export function collate(
  { vision }: ModelConfig,
  images: readonly PreparedImage[],
): ImageBatch<ImageInput<HostParts> | PackedInput<Float32Array | Int32Array>> {
  const batch = images.length;
  if (vision.layout === 'fixed') {
    return { input: { images: sideBySide(images) }, batch, length: vision.positions };
  }
  const rowWidth = vision.patch * vision.patch * 3;
  const segments = new Int32Array(batch + 1);
  const shapes = new Int32Array(2 * batch);
  images.forEach(({ grid: [rows, columns] }, i) => {
    shapes.set([rows, columns], 2 * i);
    segments[i + 1] = segments[i] + rows * columns;
  });
  const length = packedRows(segments[batch]);
  const patches = new Float32Array(length * rowWidth);
  images.forEach(({ values }, i) => {
    const count = segments[i + 1] - segments[i];
    patches.set(values.subarray(0, count * rowWidth), segments[i] * rowWidth);
  });
  return { input: { patches, shapes, segments }, batch, length };
}

/**
 * Puts images that are bytes side by side, for a fixed-resolution tower.
 *
 * @param table - (3, 256), the value of each byte of each colour.
 */
export function collateBytes(
  { vision }: ModelConfig,
  images: readonly PreparedImage[],
  table: Float32Array,
): ImageBatch<PixelInput<HostInput>> {
  return {
    input: { pixels: sideBySide(images), table },
    batch: images.length,
    length: vision.positions,
  };
}

function sideBySide(images: readonly PreparedImage[]): HostParts {
  const [first, ...others] = images.map(({ values }) => values);
  return new HostParts([first, ...others]);
}

/** Whether the device has to normalise an image. */
export function hasBytes({ values }: PreparedImage): boolean {
  return values instanceof Uint8Array;
}

/** What a program of the vision tower takes, by the form of the images. */
export type BatchInput<Leaf> = PixelInput<Leaf> | VisionInput<Leaf>;

/** Specs of the batches that {@link collate} and {@link collateBytes} make, for compile(). */
export function batchSpecs(
  config: ModelConfig,
  batch: number,
  length: number,
  form: 'bytes' | 'values' = 'values',
): BatchInput<Spec> {
  if (form === 'bytes') return pixelInputSpecs(config, batch);
  return config.vision.layout === 'fixed'
    ? visionInputSpecs(config, batch)
    : packedInputSpecs(config, batch, length);
}

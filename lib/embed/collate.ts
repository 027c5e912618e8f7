// Prepared images of one call to one batch as the vision tower takes it.
import { HostParts } from '../array';
import type { Spec } from '../graph';
import type { Pixels } from '../image';
import type { ImageInput, ModelConfig, PackedInput, PixelInput, VisionInput } from '../model';
import { packedInputSpecs, packedRows, pixelInputSpecs, visionInputSpecs } from '../model';

/** Values of one image, ready for the tower. */
export interface PreparedValues {
  /**
   * Fixed resolution: (3, S, S), normalised. NaFlex: rows of P·P·3 values, rows · columns of them or
   * more; what is behind those is not read.
   */
  readonly values: Float32Array;
  /** Patches: [rows, columns]. */
  readonly grid: readonly [number, number];
  /** What is still to be checked before results are given out. Throws as preparing does. */
  readonly check?: () => void;
}

/** Pixels of any size that the device resizes and normalises; of a fixed-resolution model. */
export interface DecodedImage {
  readonly pixels: Pixels;
  readonly grid: readonly [number, number];
}

export type PreparedImage = PreparedValues | DecodedImage;

/** A batch of images and the rows of tokens it has. */
export interface ImageBatch<Input> {
  readonly input: Input;
  /** Number of images. */
  readonly batch: number;
  /** Tokens of an image; NaFlex: rows of the packed batch, those that round it up included. */
  readonly length: number;
}

/**
 * Puts images side by side: on the device, to which each is copied; NaFlex images without padding, their
 * patches one after the other, with rows of zeros up to a number that few batches miss (see packedRows).
 */
export function collate(
  { vision }: ModelConfig,
  images: readonly PreparedValues[],
): ImageBatch<ImageInput<HostParts> | PackedInput<Float32Array | Int32Array>> {
  const batch = images.length;
  if (vision.layout === 'fixed') {
    const [first, ...others] = images.map(({ values }) => values);
    const parts = new HostParts([first, ...others]);
    return { input: { images: parts }, batch, length: vision.positions };
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

/** What a program of the vision tower takes, by the form of the images. */
export type BatchInput<Leaf> = PixelInput<Leaf> | VisionInput<Leaf>;

/**
 * Specs of batches for compile(): `'bytes'` of a fixed-resolution model, which the device normalises, or
 * `'values'` as {@link collate} makes them.
 */
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

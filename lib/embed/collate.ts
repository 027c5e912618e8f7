// Prepared images of one call to one batch as the vision tower takes it.
import type { Spec } from '../graph';
import type { ModelConfig, VisionInput } from '../model';
import { packedInputSpecs, packedRows, visionInputSpecs } from '../model';

/** One image, ready for the tower. */
export interface PreparedImage {
  /**
   * Fixed resolution: (3, S, S), normalised. NaFlex: rows of P·P·3 values, rows · columns of them or
   * more; what is behind those is not read.
   */
  readonly values: Float32Array;
  /** Patches: [rows, columns]. */
  readonly grid: readonly [number, number];
}

/** A batch of images and the rows of tokens it has. */
export interface ImageBatch {
  readonly input: VisionInput<Float32Array | Int32Array>;
  /** Number of images. */
  readonly batch: number;
  /** Tokens of an image; NaFlex: rows of the packed batch, those that round it up included. */
  readonly length: number;
}

/**
 * Puts images side by side; NaFlex images without padding, their patches one after the other, with
 * rows of zeros up to a number that few batches miss (see packedRows).
 */
export function collate({ vision }: ModelConfig, images: readonly PreparedImage[]): ImageBatch {
  const batch = images.length;
  if (vision.layout === 'fixed') {
    const each = 3 * vision.imageSize * vision.imageSize;
    const pixels = new Float32Array(batch * each);
    images.forEach(({ values }, i) => {
      pixels.set(values, i * each);
    });
    return { input: { images: pixels }, batch, length: vision.positions };
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

/** Specs of the batches that {@link collate} makes, for compile(). */
export function batchSpecs(config: ModelConfig, batch: number, length: number): VisionInput<Spec> {
  return config.vision.layout === 'fixed'
    ? visionInputSpecs(config, batch)
    : packedInputSpecs(config, batch, length);
}

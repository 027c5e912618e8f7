// A batch of data as the towers take it: checked, cut and gathered in memory of the host.
import type { Batch } from '../data';
import { SiglipError } from '../errors';
import type { ModelConfig } from '../model';
import type { PairBatch } from './two_towers';

/** Pairs in memory of the host, images as bytes with the values of every byte. */
export type HostPairs = PairBatch<Float32Array | Int32Array | Uint8Array>;

/**
 * A batch as input of a model of fixed resolution.
 *
 * @param pixelTable - (3, 256): the value of each byte of each colour.
 * @throws ERR_DATA when it does not hold `pairs` images of the model's size and as many texts.
 */
export function hostPairs(
  batch: Batch,
  model: ModelConfig,
  pairs: number,
  pixelTable: Float32Array,
): HostPairs {
  const { images, tokens } = batch;
  const side = model.vision.layout === 'fixed' ? model.vision.imageSize : batch.size;
  const pixels = pairs * side * side * 3;
  const ids = pairs * model.text.length;
  if (batch.size !== side || images.length !== pixels || tokens?.length !== ids) {
    throw new SiglipError(
      'ERR_DATA',
      `train: a batch must hold ${String(pairs)} images of ${String(side)} pixels a side and ${String(ids)} token ids, ` +
        `got ${String(images.length)} bytes at ${String(batch.size)} pixels and ${String(tokens?.length ?? 0)} ids`,
    );
  }
  return { images: { pixels: images, table: pixelTable }, texts: tokens };
}

/** Rows `from` to `to` of `pairs` pairs, in the same memory. */
export function pairRange(whole: HostPairs, pairs: number, from: number, to: number): HostPairs {
  const cut = <T extends Float32Array | Int32Array | Uint8Array>(array: T): T => {
    const row = array.length / pairs;
    return array.subarray(from * row, to * row) as T;
  };
  const { images, texts } = whole;
  return {
    images: 'table' in images ? { ...images, pixels: cut(images.pixels) } : images,
    texts: cut(texts),
  };
}

/** The pairs of the given rows of a batch, copied. */
export function batchRows(batch: Batch, rows: Int32Array): Batch {
  const pairs = batch.texts.length;
  const gather = <T extends Int32Array | Uint8Array>(array: T, out: T): T => {
    const width = array.length / pairs;
    for (const [i, row] of rows.entries()) {
      out.set(array.subarray(row * width, (row + 1) * width), i * width);
    }
    return out;
  };
  const { images, tokens, texts, concepts, examples } = batch;
  const sized = (length: number): number => (length / pairs) * rows.length;
  return {
    ...batch,
    images: gather(images, new Uint8Array(sized(images.length))),
    tokens: tokens === undefined ? undefined : gather(tokens, new Int32Array(sized(tokens.length))),
    texts: Array.from(rows, (row) => texts[row]),
    concepts: gather(concepts, new Int32Array(rows.length)),
    examples: gather(examples, new Int32Array(rows.length)),
  };
}

// A batch in memory of the host, cut and gathered.
import type { Batch } from '../data';
import { SiglipError } from '../errors';
import type { HostArray } from '../graph';
import { mapTree } from '../graph';
import type { StepBatch } from './objective';

/**
 * Pairs `from` to `to` of a batch of `pairs` square images, in the same memory.
 *
 * @throws ERR_CONFIG for views, whose rows refer to one another, and for packed images
 */
export function batchRange(
  whole: StepBatch<HostArray>,
  pairs: number,
  from: number,
  to: number,
): StepBatch<HostArray> {
  const { images, texts, targets, views } = whole;
  if (views !== undefined || !('pixels' in images)) {
    throw new SiglipError(
      'ERR_CONFIG',
      'train: a batch in micro-batches must be of square images without views, got another',
    );
  }
  const cut = <T extends HostArray>(array: T): T => {
    const row = array.length / pairs;
    return array.subarray(from * row, to * row) as T;
  };
  return {
    images: { ...images, pixels: cut(images.pixels) },
    texts: cut(texts),
    targets: targets && mapTree<typeof targets, HostArray, HostArray>(targets, cut),
  };
}

/** The pairs of the given rows of a batch, copied. @throws ERR_CONFIG for parts that have no rows of pairs */
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
  if (batch.packed !== undefined || batch.targets !== undefined || batch.views !== undefined) {
    throw new SiglipError(
      'ERR_CONFIG',
      'train: a batch that is curated must be of square images and texts alone, got other parts',
    );
  }
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

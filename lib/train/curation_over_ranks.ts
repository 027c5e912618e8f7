// A super-batch that lies in parts on ranks: what all of them must know to select from it, and the
// selected pairs on their way to the ranks that train on them.
import type { Communicator } from '../comm';
import { countsOf, startsOf } from '../comm';
import type { Batch } from '../data';
import type { Embeddings } from './objective';
import { batchRows } from './pairs';

/** Embeddings (N, width) of all ranks' pairs; `parts`: where each rank's begin, and N. */
export async function gatheredEmbeddings(
  comm: Communicator,
  own: Embeddings<Float32Array>,
  parts: readonly number[],
  width: number,
): Promise<Embeddings<Float32Array>> {
  const counts = countsOf(parts).map((pairs) => pairs * width);
  const whole = { images: wholeOf(counts), texts: wholeOf(counts) };
  await comm.allGather(own.images, counts, whole.images);
  await comm.allGather(own.texts, counts, whole.texts);
  return whole;
}

/** The sums of a few numbers over ranks. */
export async function summed(comm: Communicator, numbers: readonly number[]): Promise<number[]> {
  const sums = Float32Array.from(numbers);
  await comm.allReduce(sums);
  return [...sums];
}

/**
 * The pairs of this rank's share of a selection, from whichever ranks hold them. Both follow the order of
 * the super-batch, so two ranks have at most one stretch of pairs to hand over.
 *
 * @param own - the rank's part of the super-batch.
 * @param parts - where the parts of ranks begin in the super-batch, and its end.
 * @param rows - (B) selected rows of the super-batch, ascending.
 * @param shares - where the shares of ranks begin in `rows`, and B.
 */
export async function movedPairs(
  comm: Communicator,
  own: Batch,
  parts: readonly number[],
  rows: Int32Array,
  shares: readonly number[],
): Promise<Batch> {
  const { rank } = comm;
  // Places in `rows` of the pairs that a rank holds.
  const held = parts
    .map((start) => rows.findIndex((row) => row >= start))
    .map((place) => (place < 0 ? rows.length : place));
  const stretch = (from: number, to: number): readonly [number, number] => [
    Math.max(held[from], shares[to]),
    Math.min(held[from + 1], shares[to + 1]),
  ];
  const others = Array.from({ length: comm.size }, (_, other) => other);
  const sent = others.map((to) => {
    const [first, end] = stretch(rank, to);
    return batchRows(
      own,
      rows.slice(first, Math.max(first, end)).map((row) => row - parts[rank]),
    );
  });
  const received = others.map((from) => {
    const [first, end] = stretch(from, rank);
    return Math.max(0, end - first);
  });
  const pairs = own.texts.length;
  const field = async <A extends Uint8Array | Int32Array>(
    array: A,
    of: (batch: Batch) => A,
    make: (length: number) => A,
  ): Promise<A> => {
    const width = array.length / pairs;
    const starts = startsOf(received);
    const whole = make(starts[comm.size] * width);
    const pieces = others.map(
      (from) => whole.subarray(starts[from] * width, starts[from + 1] * width) as A,
    );
    pieces[rank].set(of(sent[rank]));
    await comm.exchange(
      messages(
        others.map((to) => of(sent[to])),
        rank,
      ),
      messages(pieces, rank),
    );
    return whole;
  };
  const bytes = (length: number): Uint8Array => new Uint8Array(length);
  const integers = (length: number): Int32Array => new Int32Array(length);
  const texts = await gatheredTexts(comm, own.texts, parts);
  const { tokens } = own;
  return {
    ...own,
    images: await field(own.images, (batch) => batch.images, bytes),
    tokens: tokens && (await field(tokens, (batch) => batch.tokens ?? integers(0), integers)),
    concepts: await field(own.concepts, (batch) => batch.concepts, integers),
    examples: await field(own.examples, (batch) => batch.examples, integers),
    texts: Array.from(rows.subarray(shares[rank], shares[rank + 1]), (row) => texts[row]),
  };
}

function messages(arrays: readonly (Uint8Array | Int32Array)[], own: number) {
  return arrays
    .map((data, rank) => ({ rank, data }))
    .filter(({ rank, data }) => rank !== own && data.length > 0);
}

async function gatheredTexts(
  comm: Communicator,
  own: readonly string[],
  parts: readonly number[],
): Promise<string[]> {
  const encoded = own.map((text) => new TextEncoder().encode(text));
  const lengths = new Int32Array(parts[comm.size]);
  await comm.allGather(
    Int32Array.from(encoded, ({ length }) => length),
    countsOf(parts),
    lengths,
  );
  const starts = startsOf([...lengths]);
  const counts = countsOf(parts.map((start) => starts[start]));
  const bytes = new Uint8Array(starts[lengths.length]);
  await comm.allGather(new Uint8Array(Buffer.concat(encoded)), counts, bytes);
  const decoder = new TextDecoder();
  return Array.from(lengths, (length, i) =>
    decoder.decode(bytes.subarray(starts[i], starts[i] + length)),
  );
}

function wholeOf(counts: readonly number[]): Float32Array {
  return new Float32Array(counts.reduce((sum, count) => sum + count, 0));
}

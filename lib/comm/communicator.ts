// What ranks do together. Every rank calls the same operations in the same order; only the data
// differ.
//
// Sums have one order: every element is ((x_0 + x_1) + x_2) + … over the ranks, in float32. So all
// ranks hold the same bits, a run repeats bit for bit, and the communicators here agree with each
// other.
import type { HostArray } from '../array';

/** An array and the other side: where it goes to, or whose it becomes. */
export interface Message {
  readonly rank: number;
  readonly data: HostArray;
}

/**
 * A group of ranks. Arrays that are handed over must be left alone, not even transferred, until the
 * promise settles. Promises reject with ERR_COMM when another rank has ended.
 */
export interface Communicator {
  /** Of this member, from 0. */
  readonly rank: number;
  readonly size: number;
  /** Settles when every rank has called it. */
  barrier(): Promise<void>;
  /**
   * The parts of all ranks, one behind the other.
   *
   * @param counts - elements of every rank's part.
   * @param into - as many elements as the counts add up to, of the part's type.
   * @throws ERR_ARGUMENT for 2 GiB or more in all; ERR_SHAPE, ERR_DTYPE.
   */
  allGather<A extends HostArray>(part: A, counts: readonly number[], into: A): Promise<void>;
  /** Replaces `data`, of one length on all ranks, by the sum over ranks. */
  allReduce(data: Float32Array): Promise<void>;
  /**
   * Sums over ranks and keeps the own segment.
   *
   * @param data - segments for rank 0, 1, …, one behind the other.
   * @param counts - elements of every rank's segment.
   * @param into - the own segment of the sum.
   * @throws ERR_ARGUMENT for 2^31 elements or more in all; ERR_SHAPE.
   */
  reduceScatter(data: Float32Array, counts: readonly number[], into: Float32Array): Promise<void>;
  /** Replaces `data`, of one length on all ranks, by that of `root`. */
  broadcast(data: HostArray, root: number): Promise<void>;
  /**
   * Sends to and receives from other ranks, all at once. Between two ranks the first message sent is
   * the first received; both sides know its length.
   */
  exchange(sends: readonly Message[], receives: readonly Message[]): Promise<void>;
  /**
   * Ends all ranks because this one cannot go on: the job of a launcher writes the reason to standard
   * error and ends with status 1; in one process, the others' operations reject with ERR_COMM.
   */
  abort(reason: unknown): void;
  /** Leaves when every rank has come here. What is done after it rejects with ERR_DISPOSED. */
  close(): Promise<void>;
}

/**
 * A list of n things in even parts: rank r has those from the r-th to the (r + 1)-th of the result,
 * (size + 1) numbers.
 */
export function evenParts(n: number, size: number): number[] {
  return Array.from({ length: size + 1 }, (_, r) => Math.floor((r * n) / size));
}

/** Where each count begins, and in the end the sum of all: (size + 1) numbers. */
export function startsOf(counts: readonly number[]): number[] {
  const starts = [0];
  for (const count of counts) starts.push(starts[starts.length - 1] + count);
  return starts;
}

/** How many each part has, from where parts begin and the end: the inverse of {@link startsOf}. */
export function countsOf(starts: readonly number[]): number[] {
  return starts.slice(1).map((end, r) => end - starts[r]);
}

/** The text of `root` on every rank. */
export async function broadcastText(
  comm: Communicator,
  text: string,
  root: number,
): Promise<string> {
  const own = new TextEncoder().encode(text);
  const length = Int32Array.of(own.length);
  await comm.broadcast(length, root);
  const bytes = comm.rank === root ? own : new Uint8Array(length[0]);
  if (length[0] > 0) await comm.broadcast(bytes, root);
  return new TextDecoder().decode(bytes);
}

/** The texts of all ranks, in their order, on every rank. */
export async function gatherTexts(comm: Communicator, text: string): Promise<string[]> {
  const own = new TextEncoder().encode(text);
  const lengths = new Int32Array(comm.size);
  await comm.allGather(Int32Array.of(own.length), Array<number>(comm.size).fill(1), lengths);
  const counts = [...lengths];
  const starts = startsOf(counts);
  const all = new Uint8Array(starts[comm.size]);
  await comm.allGather(own, counts, all);
  return counts.map((count, rank) =>
    new TextDecoder().decode(all.subarray(starts[rank], starts[rank] + count)),
  );
}

// What is tried on the communicators of one process and on those of MPI alike: every operation against
// what it is defined as, with data that tell every rank and place apart.
import type { Communicator } from '../../lib/comm';
import { broadcastText, gatherTexts, startsOf } from '../../lib/comm';

/** Values whose sums depend on the order of addition. */
export function values(rank: number, n: number): Float32Array {
  const x = new Float32Array(n);
  const scale = 10 ** (rank % 3);
  for (let i = 0; i < n; i++) x[i] = (((i * 7919 + rank * 104729) % 65521) / 65521 - 0.5) * scale;
  return x;
}

/** ((x_0 + x_1) + x_2) + … in float32. */
export function orderedSum(size: number, n: number): Float32Array {
  const sum = values(0, n);
  for (let r = 1; r < size; r++) {
    const x = values(r, n);
    for (let i = 0; i < n; i++) sum[i] += x[i];
  }
  return sum;
}

/** Throws unless both have the same bits. */
export function expectEqual(
  what: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
): void {
  if (actual.length !== expected.length) {
    throw new Error(`${what}: ${String(actual.length)} elements, not ${String(expected.length)}`);
  }
  for (let i = 0; i < expected.length; i++) {
    if (!Object.is(actual[i], expected[i])) {
      throw new Error(`${what}[${String(i)}]: ${String(actual[i])}, not ${String(expected[i])}`);
    }
  }
}

/** Throws unless every operation does what it says. `large` elements are enough for several blocks. */
export async function tryOperations(comm: Communicator, large: number): Promise<void> {
  const { rank, size } = comm;
  await comm.barrier();

  const counts = Array.from({ length: size }, (_, r) => (r * 3) % 5);
  const starts = startsOf(counts);
  const gathered = new Int32Array(starts[size]);
  await comm.allGather(new Int32Array(counts[rank]).fill(rank), counts, gathered);
  expectEqual(
    'allGather',
    gathered,
    counts.flatMap((count, r) => Array.from({ length: count }, () => r)),
  );

  for (const n of [1, 5, 1000, large]) {
    const data = values(rank, n);
    await comm.allReduce(data);
    expectEqual(`allReduce of ${String(n)}`, data, orderedSum(size, n));
  }

  for (const n of [7, large]) {
    const segments = Array.from({ length: size }, (_, r) => (r === 1 ? 0 : n + r));
    const at = startsOf(segments);
    const own = new Float32Array(segments[rank]);
    await comm.reduceScatter(values(rank, at[size]), segments, own);
    expectEqual('reduceScatter', own, orderedSum(size, at[size]).subarray(at[rank], at[rank + 1]));
  }

  const root = size - 1;
  const shared = Uint8Array.of(rank, 2 * rank, 7);
  await comm.broadcast(shared, root);
  expectEqual('broadcast', shared, [root, 2 * root, 7]);
  const text = await broadcastText(comm, `of rank ${String(rank)} ✓`, root);
  if (text !== `of rank ${String(root)} ✓`) throw new Error(`broadcastText: ${text}`);
  const texts = await gatherTexts(comm, '✓'.repeat(rank));
  if (!texts.every((one, r) => one === '✓'.repeat(r)) || texts.length !== size) {
    throw new Error(`gatherTexts: ${texts.join(', ')}`);
  }

  // Both ways at once, two messages to the right: the first sent is the first received.
  const right = (rank + 1) % size;
  const left = (rank + size - 1) % size;
  const fromLeft = [new Float32Array(3), new Float32Array(large)];
  const fromRight = new Int32Array(2);
  await comm.exchange(
    [
      { rank: right, data: values(rank, 3) },
      { rank: right, data: values(rank, large) },
      ...(size > 2 ? [{ rank: left, data: Int32Array.of(rank, -1) }] : []),
    ],
    [
      { rank: left, data: fromLeft[0] },
      { rank: left, data: fromLeft[1] },
      ...(size > 2 ? [{ rank: right, data: fromRight }] : []),
    ],
  );
  expectEqual('exchange', fromLeft[0], values(left, 3));
  expectEqual('exchange', fromLeft[1], values(left, large));
  if (size > 2) expectEqual('exchange', fromRight, [right, -1]);
}

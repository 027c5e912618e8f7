// What is tried on communicators of arrays of devices, whatever the transport: every operation against
// what it is defined as, on one array and on several that count as one.
import type { Device, HostArray } from '../../lib/array';
import { DeviceArray } from '../../lib/array';
import type { DeviceCommunicator } from '../../lib/comm';
import { evenParts, startsOf } from '../../lib/comm';
import { expectEqual, orderedSum, values } from './ranks';

/** The data as arrays of these lengths; those of none are left out. */
function split(data: HostArray, lengths: readonly number[], device: Device): DeviceArray[] {
  const starts = startsOf(lengths);
  return lengths.flatMap((length, i) =>
    length === 0 ? [] : [DeviceArray.from(data.slice(starts[i], starts[i + 1]), [length], device)],
  );
}

async function joined(arrays: readonly DeviceArray[]): Promise<number[]> {
  return (await Promise.all(arrays.map((array) => array.read()))).flatMap((data) => [...data]);
}

function dispose(arrays: readonly DeviceArray[]): void {
  for (const array of arrays) array.dispose();
}

/** What [begin, end) has of each of the lengths: lengths again. */
function pieces(lengths: readonly number[], begin: number, end: number): number[] {
  const starts = startsOf(lengths);
  return lengths.map((_, i) =>
    Math.max(Math.min(end, starts[i + 1]) - Math.max(begin, starts[i]), 0),
  );
}

/** Throws unless every operation does what it says, sums in the order of ranks. */
export async function tryDeviceOperations(comm: DeviceCommunicator, device: Device): Promise<void> {
  const { rank, size } = comm;
  const lengths = [3, 1, 40, 17];
  const n = 61;

  const sums = split(values(rank, n), lengths, device);
  await comm.allReduce(sums);
  expectEqual('allReduce of several', await joined(sums), orderedSum(size, n));
  const [one] = split(values(rank, n), [n], device);
  await comm.allReduce(one);
  expectEqual('allReduce of one', await joined([one]), orderedSum(size, n));
  dispose([...sums, one]);

  // Uneven parts, one of them empty; even ones of a single array; parts of several arrays.
  const uneven = Array.from({ length: size }, (_, r) => (r === 1 ? 0 : 5 + r));
  const even = Array.from({ length: size }, () => 6);
  const parts = evenParts(n, size);
  const ofSeveral = even.map((_, r) => parts[r + 1] - parts[r]);
  for (const [counts, wholes] of [
    [uneven, undefined],
    [even, undefined],
    [ofSeveral, lengths],
  ] as const) {
    const starts = startsOf(counts);
    const total = starts[size];
    const [begin, end] = [starts[rank], starts[rank + 1]];
    const whole = wholes ?? [total];
    const own = pieces(whole, begin, end);

    const data = split(values(rank, total), whole, device);
    const segment = split(new Float32Array(end - begin), own, device);
    await comm.reduceScatter(data, counts, segment);
    const expected = orderedSum(size, total);
    expectEqual('reduceScatter', await joined(segment), expected.subarray(begin, end));

    const into = split(new Float32Array(total), whole, device);
    await comm.allGather(segment, counts, into);
    expectEqual('allGather', await joined(into), expected);
    dispose([...data, ...segment, ...into]);
  }

  const bytes = split(
    Uint8Array.from({ length: n }, (_, i) => i + 7 * rank),
    lengths,
    device,
  );
  await comm.broadcast(bytes, size - 1);
  expectEqual(
    'broadcast',
    await joined(bytes),
    Array.from({ length: n }, (_, i) => i + 7 * (size - 1)),
  );
  dispose(bytes);

  // Two messages to the right: the first sent is the first received.
  const right = (rank + 1) % size;
  const left = (rank + size - 1) % size;
  const sends = [
    ...split(values(rank, 9), [9], device),
    ...split(Int32Array.of(rank, -1), [2], device),
  ];
  const receives = [
    ...split(new Float32Array(9), [9], device),
    ...split(new Int32Array(2), [2], device),
  ];
  await comm.exchange(
    sends.map((data) => ({ rank: right, data })),
    receives.map((data) => ({ rank: left, data })),
  );
  expectEqual('exchange', await joined(receives), [...values(left, 9), left, -1]);
  dispose([...sends, ...receives]);

  // Many at once, of the host too, in the order of the calls.
  const many = split(values(rank, n), lengths, device);
  const host = Float32Array.of(rank, 1);
  const [shared] = split(Int32Array.of(rank, 5), [2], device);
  await Promise.all([
    comm.allReduce(many),
    comm.allReduce(host),
    comm.broadcast(shared, size - 1),
    comm.barrier(),
  ]);
  expectEqual('allReduce at once', await joined(many), orderedSum(size, n));
  expectEqual('allReduce of the host', host, [(size * (size - 1)) / 2, size]);
  expectEqual('broadcast at once', await joined([shared]), [size - 1, 5]);
  dispose([...many, shared]);
}

// Arrays of devices by way of the host: read, handed to the communicator of host arrays, written back. In
// buckets, so that the memory of the host is bounded and one bucket is read while another travels. A sum
// is that of the communicator, element by element, whatever the buckets.
//
// Reading begins at once, so that what is queued on the device later does not come before it; what goes
// over the communicator does so in the order of the calls, which is that of every rank.
import type { Communicator } from './communicator';
import { startsOf } from './communicator';
import type { Joined } from './joined';
import type { DeviceMessage, Transport } from './transport';

/** Elements under way at a time. */
const BUCKET = 2 ** 25;

export class HostTransport implements Transport {
  readonly name = 'host';
  private last: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly comm: Communicator,
    private readonly bucket = BUCKET,
  ) {}

  /** Begins when all before it have ended. */
  inOrder<T>(operation: () => Promise<T>): Promise<T> {
    const result = this.last.then(operation);
    this.last = result.catch(() => undefined);
    return result;
  }

  async allGather(part: Joined, counts: readonly number[], into: Joined): Promise<void> {
    const { rank } = this.comm;
    const starts = startsOf(counts);
    await this.inTurn(
      roundsOf(counts, this.bucket),
      ({ from, lengths }) => read(part, from, lengths[rank]),
      async (own, { from, lengths }) => {
        const bytes = lengths.map((length) => length * into.elementBytes);
        const at = startsOf(bytes);
        const all = new Uint8Array(at[bytes.length]);
        await this.comm.allGather(own, bytes, all);
        lengths.forEach((length, r) => {
          write(into, starts[r] + from, length, all.subarray(at[r], at[r + 1]));
        });
      },
    );
  }

  async allReduce(data: Joined): Promise<void> {
    await this.inTurn(
      roundsOf([data.length], this.bucket),
      ({ from, lengths: [length] }) => read(data, from, length),
      async (bytes, { from, lengths: [length] }) => {
        await this.comm.allReduce(floatsOf(bytes));
        write(data, from, length, bytes);
      },
    );
  }

  async reduceScatter(data: Joined, counts: readonly number[], into: Joined): Promise<void> {
    const { rank } = this.comm;
    const starts = startsOf(counts);
    await this.inTurn(
      roundsOf(counts, this.bucket),
      ({ from, lengths }) =>
        readAll(
          data,
          lengths.map((length, r) => [starts[r] + from, length] as const),
        ),
      async (bytes, { from, lengths }) => {
        const own = new Float32Array(lengths[rank]);
        await this.comm.reduceScatter(floatsOf(bytes), lengths, own);
        write(into, from, lengths[rank], new Uint8Array(own.buffer));
      },
    );
  }

  async broadcast(data: Joined, root: number): Promise<void> {
    const sends = this.comm.rank === root;
    await this.inTurn(
      roundsOf([data.length], this.bucket),
      ({ from, lengths: [length] }) =>
        sends
          ? read(data, from, length)
          : Promise.resolve(new Uint8Array(length * data.elementBytes)),
      async (bytes, { from, lengths: [length] }) => {
        await this.comm.broadcast(bytes, root);
        if (!sends) write(data, from, length, bytes);
      },
    );
  }

  async exchange(
    sends: readonly DeviceMessage[],
    receives: readonly DeviceMessage[],
  ): Promise<void> {
    const reading = Promise.all(
      sends.map(async ({ rank, data }) => ({ rank, data: await data.read() })),
    );
    // Awaited in its turn.
    reading.catch(() => undefined);
    await this.inOrder(async () => {
      const back = receives.map(({ rank, data: { bytes } }) => ({
        rank,
        data: new Uint8Array(bytes),
      }));
      await this.comm.exchange(await reading, back);
      receives.forEach(({ data }, i) => {
        data.buffer.write(0, back[i].data);
      });
    });
  }

  /** Uses what is fetched for each item, the next one being fetched meanwhile. */
  private inTurn<T, F>(
    items: readonly T[],
    fetch: (item: T) => Promise<F>,
    use: (fetched: F, item: T) => Promise<void>,
  ): Promise<void> {
    // Whoever fetches hears of a failure when the item has its turn.
    const begin = (item: T): { fetched: Promise<F>; item: T } => {
      const fetched = fetch(item);
      fetched.catch(() => undefined);
      return { fetched, item };
    };
    let next = items.length > 0 ? begin(items[0]) : undefined;
    return this.inOrder(async () => {
      for (let i = 1; next !== undefined; i++) {
        const { fetched, item } = next;
        const data = await fetched;
        next = i < items.length ? begin(items[i]) : undefined;
        await use(data, item);
      }
    });
  }

  abort(): void {
    // What is under way is the communicator's.
  }

  async close(): Promise<void> {
    // Nothing is open.
  }
}

/** Of every segment the elements from `from` on, as many as `lengths` says. */
export interface Round {
  readonly from: number;
  readonly lengths: readonly number[];
}

/** Even steps through segments side by side, of at most `bucket` elements in all; none when all are empty. */
export function roundsOf(counts: readonly number[], bucket: number): Round[] {
  const step = Math.max(Math.floor(bucket / counts.length), 1);
  const rounds = Math.ceil(Math.max(...counts) / step);
  return Array.from({ length: rounds }, (_, k) => ({
    from: k * step,
    lengths: counts.map((count) => Math.min(Math.max(count - k * step, 0), step)),
  }));
}

function floatsOf(bytes: Uint8Array): Float32Array {
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

function read(data: Joined, from: number, length: number): Promise<Uint8Array> {
  return readAll(data, [[from, length]]);
}

/** Ranges of elements, one behind the other. */
async function readAll(
  data: Joined,
  ranges: readonly (readonly [from: number, length: number])[],
): Promise<Uint8Array> {
  const { elementBytes } = data;
  const total = ranges.reduce((sum, [, length]) => sum + length, 0);
  const bytes = new Uint8Array(total * elementBytes);
  const reads: Promise<void>[] = [];
  let at = 0;
  for (const [from, length] of ranges) {
    for (const stretch of data.stretches(from, from + length)) {
      const end = at + stretch.length * elementBytes;
      reads.push(stretch.array.buffer.read(stretch.from * elementBytes, bytes.subarray(at, end)));
      at = end;
    }
  }
  await Promise.all(reads);
  return bytes;
}

function write(data: Joined, from: number, length: number, bytes: Uint8Array): void {
  const { elementBytes } = data;
  for (const { array, from: first, length: elements, at } of data.stretches(from, from + length)) {
    const begin = (at - from) * elementBytes;
    array.buffer.write(
      first * elementBytes,
      bytes.subarray(begin, begin + elements * elementBytes),
    );
  }
}

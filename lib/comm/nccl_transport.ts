// Arrays of GPUs by NCCL: what collectives of arrays that count as one come to in calls of NCCL, which
// knows equal parts of single arrays alone.
import type { Device, DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { NativeNccl, NativePlace, NativeTransfer } from '../native/addon';
import { loadAddon } from '../native/load';
import { ELEMENT_BYTES } from '../native/spec';
import { startsOf } from './communicator';
import type { Joined, Stretch } from './joined';
import type { DeviceMessage, Transport } from './transport';

/** NCCL takes no more than 2048 calls in a group. */
const GROUP = 1024;

/** What is done by NCCL's own all-gather and reduce-scatter: single arrays in equal parts. */
function isEven({ arrays }: Joined, counts: readonly number[]): boolean {
  return arrays.length === 1 && counts.every((count) => count === counts[0]);
}

function place({ array, from }: Stretch): NativePlace {
  return { buffer: array.buffer, offset: from * ELEMENT_BYTES[array.dtype] };
}

/** The place of `length` elements of a rank's own part, which lie in one array. */
function placeIn(part: Joined, at: number, length: number): NativePlace {
  const stretches = part.stretches(at, at + length);
  if (stretches.length === 1) return place(stretches[0]);
  throw new SiglipError(
    'ERR_SHAPE',
    `comm: a rank's part must have an array for each array that its segment meets, got ${String(stretches.length)} for ${String(length)} elements`,
  );
}

/** Every array summed in its place. */
export function allReduceTransfers(data: Joined): NativeTransfer[] {
  return data.stretches().map((stretch) => ({
    kind: 'allReduce',
    from: place(stretch),
    into: place(stretch),
    count: stretch.length,
    peer: 0,
  }));
}

/** Every array from the root. */
export function broadcastTransfers(data: Joined, root: number): NativeTransfer[] {
  return data.stretches().map((stretch) => ({
    kind: 'broadcast',
    from: place(stretch),
    into: place(stretch),
    count: stretch.length * data.elementBytes,
    peer: root,
  }));
}

/** In one call where parts are equal, else what each rank has of each array from that rank. */
export function allGatherTransfers(
  part: Joined,
  counts: readonly number[],
  into: Joined,
  rank: number,
): NativeTransfer[] {
  const { elementBytes } = into;
  if (isEven(into, counts)) {
    const [length] = counts;
    const [from, to] = [placeIn(part, 0, length), placeIn(into, 0, into.length)];
    return [{ kind: 'allGather', from, into: to, count: length * elementBytes, peer: 0 }];
  }
  return piecesOf(into, counts).map(({ stretch, owner, within }) => {
    const to = place(stretch);
    const from = owner === rank ? placeIn(part, within, stretch.length) : to;
    return { kind: 'broadcast', from, into: to, count: stretch.length * elementBytes, peer: owner };
  });
}

/** In one call where parts are equal, else what each rank gets of each array to that rank. */
export function reduceScatterTransfers(
  data: Joined,
  counts: readonly number[],
  into: Joined,
  rank: number,
): NativeTransfer[] {
  if (isEven(data, counts)) {
    const [length] = counts;
    const [from, to] = [placeIn(data, 0, data.length), placeIn(into, 0, length)];
    return [{ kind: 'reduceScatter', from, into: to, count: length, peer: 0 }];
  }
  return piecesOf(data, counts).map(({ stretch, owner, within }) => {
    const from = place(stretch);
    // Of those that are not the owner NCCL reads `into` as little as it writes it.
    const to = owner === rank ? placeIn(into, within, stretch.length) : from;
    return { kind: 'reduce', from, into: to, count: stretch.length, peer: owner };
  });
}

/** Messages, those between two ranks in their order. */
export function exchangeTransfers(
  sends: readonly DeviceMessage[],
  receives: readonly DeviceMessage[],
): NativeTransfer[] {
  const whole = ({ buffer }: DeviceArray): NativePlace => ({ buffer, offset: 0 });
  return [
    ...sends.map(({ rank, data }): NativeTransfer => {
      return { kind: 'send', from: whole(data), into: null, count: data.bytes, peer: rank };
    }),
    ...receives.map(({ rank, data }): NativeTransfer => {
      return { kind: 'receive', from: null, into: whole(data), count: data.bytes, peer: rank };
    }),
  ];
}

interface Piece {
  readonly stretch: Stretch;
  readonly owner: number;
  /** Where the piece begins in the owner's part. */
  readonly within: number;
}

/** The same on all ranks, whose arrays have the same lengths. */
function piecesOf(whole: Joined, counts: readonly number[]): Piece[] {
  const starts = startsOf(counts);
  return counts.flatMap((_, owner) =>
    whole
      .stretches(starts[owner], starts[owner + 1])
      .map((stretch) => ({ stretch, owner, within: stretch.at - starts[owner] })),
  );
}

export class NcclTransport implements Transport {
  readonly name = 'nccl';

  constructor(
    private readonly native: NativeNccl,
    private readonly rank: number,
  ) {}

  /**
   * Joins the ranks that have the same id; all have to come.
   *
   * @throws ERR_COMM
   */
  static async open(
    device: Device,
    id: Uint8Array,
    { rank, size }: { readonly rank: number; readonly size: number },
    limitSeconds: number,
  ): Promise<NcclTransport> {
    const native = new (loadAddon().Nccl)(device, limitSeconds);
    await native.open(id, rank, size);
    return new NcclTransport(native, rank);
  }

  inOrder<T>(operation: () => Promise<T>): Promise<T> {
    return operation();
  }

  async allGather(part: Joined, counts: readonly number[], into: Joined): Promise<void> {
    await this.run('allGather', allGatherTransfers(part, counts, into, this.rank));
  }

  async allReduce(data: Joined): Promise<void> {
    await this.run('allReduce', allReduceTransfers(data));
  }

  async reduceScatter(data: Joined, counts: readonly number[], into: Joined): Promise<void> {
    await this.run('reduceScatter', reduceScatterTransfers(data, counts, into, this.rank));
  }

  async broadcast(data: Joined, root: number): Promise<void> {
    await this.run('broadcast', broadcastTransfers(data, root));
  }

  async exchange(
    sends: readonly DeviceMessage[],
    receives: readonly DeviceMessage[],
  ): Promise<void> {
    // One group, since a send waits for its receive.
    await this.native.run('exchange', exchangeTransfers(sends, receives));
  }

  abort(reason: string): void {
    this.native.abort(reason);
  }

  async close(): Promise<void> {
    await this.native.close();
  }

  private async run(name: string, transfers: readonly NativeTransfer[]): Promise<void> {
    const groups = Array.from({ length: Math.ceil(transfers.length / GROUP) }, (_, i) =>
      transfers.slice(i * GROUP, (i + 1) * GROUP),
    );
    await Promise.all(groups.map((group) => this.native.run(name, group)));
  }
}

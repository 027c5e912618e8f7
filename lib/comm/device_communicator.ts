// Collectives of arrays of devices, beside those of the host: between GPUs by NCCL, where all ranks have
// it, else by way of the host.
import type { Device, HostArray } from '../array';
import type { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { NativeCuda } from '../native/addon';
import { loadAddon } from '../native/load';
import type { Communicator, Message } from './communicator';
import { gatherTexts, startsOf } from './communicator';
import { HostTransport } from './host_transport';
import { Joined } from './joined';
import { NcclTransport } from './nccl_transport';
import type { DeviceMessage, Transport } from './transport';

/** An array of a device, or several of one dtype that count as one, one behind the other. */
export type DeviceArrays = DeviceArray | readonly DeviceArray[];

/**
 * A {@link Communicator} that takes arrays of its rank's device, too. They must be left alone until the
 * promise settles; what was queued on the device before the call is done first, and what is queued after
 * it does not wait.
 *
 * By way of the host, sums have the one order of ranks. Those of NCCL are added in an order that NCCL
 * chooses by its version, the machines and links, and the length: while these stay, a run repeats bit for
 * bit. Either way all ranks hold the same bits.
 */
export interface DeviceCommunicator extends Communicator {
  /** How arrays of the device travel. */
  readonly transport: 'nccl' | 'host';
  /** Why so; one line. */
  readonly reason: string;
  /**
   * Where `into` is several arrays, a rank's part is one array or one for each array that its segment
   * meets. Empty segments are empty lists.
   */
  allGather<A extends HostArray>(part: A, counts: readonly number[], into: A): Promise<void>;
  allGather(part: DeviceArrays, counts: readonly number[], into: DeviceArrays): Promise<void>;
  allReduce(data: Float32Array | DeviceArrays): Promise<void>;
  /** `into` as the parts of {@link allGather}. */
  reduceScatter(data: Float32Array, counts: readonly number[], into: Float32Array): Promise<void>;
  reduceScatter(data: DeviceArrays, counts: readonly number[], into: DeviceArrays): Promise<void>;
  broadcast(data: HostArray | DeviceArrays, root: number): Promise<void>;
  exchange(sends: readonly Message[], receives: readonly Message[]): Promise<void>;
  exchange(sends: readonly DeviceMessage[], receives: readonly DeviceMessage[]): Promise<void>;
}

export interface DeviceCommunicatorOptions {
  /** Default `auto`: NCCL where all ranks can use it. `nccl` fails where it cannot be. */
  readonly transport?: 'auto' | 'nccl' | 'host';
  /** Seconds an operation of NCCL may take before the rank gives up. Default 1800. */
  readonly limitSeconds?: number;
}

/** What a rank has for NCCL, or why it cannot use it. */
export type NcclPlace =
  { readonly version: string; readonly uuid: string } | { readonly missing: string };

/** A communicator itself where it takes arrays of devices, else one that hands them on by way of the host. */
export function deviceCommunicator(comm: Communicator): DeviceCommunicator {
  if (comm instanceof Dispatcher) return comm;
  // One for all who ask, since operations of each are in one order.
  const known = dispatchers.get(comm);
  if (known !== undefined) return known;
  const made = new Dispatcher(comm, new HostTransport(comm), 'not asked for another way');
  dispatchers.set(comm, made);
  return made;
}

const dispatchers = new WeakMap<Communicator, Dispatcher>();

/**
 * Adds to a communicator, which it takes over, the collectives of arrays on `device`, this rank's own.
 * All ranks call it with the same options. For several GPUs of one process NCCL needs
 * NCCL_P2P_DIRECT_DISABLE=1, since a GPU's arrays are not made accessible to the others.
 *
 * @throws ERR_COMM when NCCL is demanded and cannot be, or does not begin.
 */
export async function openDeviceCommunicator(
  comm: Communicator,
  device: Device,
  { transport: wanted = 'auto', limitSeconds = 1800 }: DeviceCommunicatorOptions = {},
): Promise<DeviceCommunicator> {
  const own = wanted === 'host' ? { missing: 'not asked for' } : ncclPlace(device);
  const places = (await gatherTexts(comm, JSON.stringify(own))).map(
    (text) => JSON.parse(text) as NcclPlace,
  );
  const { transport, reason } = chooseTransport(wanted, places);
  if (transport === 'host') return new Dispatcher(comm, new HostTransport(comm), reason);
  const id = comm.rank === 0 ? loadAddon().ncclId() : new Uint8Array(128);
  await comm.broadcast(id, 0);
  const nccl = await NcclTransport.open(device, id, comm, limitSeconds);
  return new Dispatcher(comm, nccl, reason);
}

/** @param cuda - what the machine has */
export function ncclPlace(
  device: Device,
  cuda: NativeCuda = loadAddon().describe().cuda,
): NcclPlace {
  if (device === 'cpu') return { missing: 'its arrays are on the CPU' };
  const { nccl, devices } = cuda;
  if (nccl.version === undefined) return { missing: nccl.missing ?? 'no NCCL' };
  const gpu = devices.find(({ index }) => device === 'cuda' || device === `cuda:${String(index)}`);
  if (gpu === undefined) return { missing: `${device} is not there` };
  return { version: nccl.version, uuid: gpu.uuid };
}

/**
 * How arrays travel between ranks that have these places.
 *
 * @throws ERR_COMM when `nccl` is wanted and a rank cannot
 */
export function chooseTransport(
  wanted: 'auto' | 'nccl' | 'host',
  places: readonly NcclPlace[],
): Pick<DeviceCommunicator, 'transport' | 'reason'> {
  if (wanted === 'host') return { transport: 'host', reason: 'asked for' };
  const against = againstNccl(places);
  if (against === undefined) {
    const [first] = places;
    return { transport: 'nccl', reason: 'version' in first ? `NCCL ${first.version}` : '' };
  }
  if (wanted === 'auto') return { transport: 'host', reason: against.split('\n')[0] };
  throw new SiglipError(
    'ERR_COMM',
    `comm: every rank must be able to use NCCL, got ${against}\n` +
      'to do: or let arrays travel by way of the host, which `auto` and `host` do',
  );
}

function againstNccl(places: readonly NcclPlace[]): string | undefined {
  const gpus = new Map<string, number>();
  let first: string | undefined;
  for (const [rank, place] of places.entries()) {
    const who = `rank ${String(rank)}`;
    if ('missing' in place) return `${who}: ${place.missing}`;
    first ??= place.version;
    if (place.version !== first) return `${who}: NCCL ${place.version}, but rank 0: ${first}`;
    const other = gpus.get(place.uuid);
    if (other !== undefined) {
      return `ranks ${String(other)} and ${String(rank)} share the GPU ${place.uuid}`;
    }
    gpus.set(place.uuid, rank);
  }
  return undefined;
}

function isHost(data: HostArray | DeviceArrays): data is HostArray {
  return ArrayBuffer.isView(data);
}

/** Hands arrays of the host to a communicator and those of devices to a transport. */
export class Dispatcher implements DeviceCommunicator {
  private closed = false;

  constructor(
    private readonly host: Communicator,
    private readonly device: Transport,
    readonly reason: string,
  ) {}

  get transport(): 'nccl' | 'host' {
    return this.device.name;
  }

  get rank(): number {
    return this.host.rank;
  }

  get size(): number {
    return this.host.size;
  }

  async barrier(): Promise<void> {
    await this.device.inOrder(() => this.host.barrier());
  }

  async allGather(
    part: HostArray | DeviceArrays,
    counts: readonly number[],
    into: HostArray | DeviceArrays,
  ): Promise<void> {
    if (isHost(part) && isHost(into)) {
      return this.device.inOrder(() => this.host.allGather(part, counts, into));
    }
    const [own, all] = this.partAndWhole(['part', part], ['into', into], counts);
    return this.device.allGather(own, counts, all);
  }

  async allReduce(data: Float32Array | DeviceArrays): Promise<void> {
    if (isHost(data)) return this.device.inOrder(() => this.host.allReduce(data));
    return this.device.allReduce(this.joined('data', data, 'float32'));
  }

  async reduceScatter(
    data: Float32Array | DeviceArrays,
    counts: readonly number[],
    into: Float32Array | DeviceArrays,
  ): Promise<void> {
    if (isHost(data) && isHost(into)) {
      return this.device.inOrder(() => this.host.reduceScatter(data, counts, into));
    }
    const [own, all] = this.partAndWhole(['into', into], ['data', data], counts, 'float32');
    return this.device.reduceScatter(all, counts, own);
  }

  async broadcast(data: HostArray | DeviceArrays, root: number): Promise<void> {
    if (isHost(data)) return this.device.inOrder(() => this.host.broadcast(data, root));
    this.expectRank(root);
    return this.device.broadcast(this.joined('data', data), root);
  }

  async exchange(
    sends: readonly (Message | DeviceMessage)[],
    receives: readonly (Message | DeviceMessage)[],
  ): Promise<void> {
    const onHost = (message: Message | DeviceMessage): message is Message => isHost(message.data);
    if (sends.every(onHost) && receives.every(onHost)) {
      return this.device.inOrder(() => this.host.exchange(sends, receives));
    }
    const onDevice = ({ rank, data }: Message | DeviceMessage): DeviceMessage => {
      this.expectRank(rank);
      this.joined('a message', data);
      return { rank, data: data as DeviceArray };
    };
    return this.device.exchange(sends.map(onDevice), receives.map(onDevice));
  }

  abort(reason: unknown): void {
    this.device.abort(reason instanceof Error ? reason.message : String(reason));
    this.host.abort(reason);
  }

  async close(): Promise<void> {
    if (!this.closed) await this.device.close();
    this.closed = true;
    await this.device.inOrder(() => this.host.close());
  }

  private joined(what: string, data: HostArray | DeviceArrays, dtype?: 'float32'): Joined {
    if (this.closed) {
      throw new SiglipError('ERR_DISPOSED', 'comm: it must be open, got a closed one');
    }
    if (isHost(data)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `comm: ${what} must be of the device as the other arrays are, got one of the host`,
      );
    }
    const joined = new Joined(what, data);
    if (dtype !== undefined && (joined.dtype ?? dtype) !== dtype) {
      throw new SiglipError(
        'ERR_DTYPE',
        `comm: ${what} of a sum must be ${dtype}, got ${String(joined.dtype)}`,
      );
    }
    return joined;
  }

  /** What a rank has and what all have together, found to fit the counts. */
  private partAndWhole(
    [partName, part]: readonly [string, HostArray | DeviceArrays],
    [wholeName, whole]: readonly [string, HostArray | DeviceArrays],
    counts: readonly number[],
    dtype?: 'float32',
  ): [part: Joined, whole: Joined] {
    const own = this.joined(partName, part, dtype);
    const all = this.joined(wholeName, whole, dtype);
    const possible = counts.every((count) => Number.isSafeInteger(count) && count >= 0);
    if (counts.length !== this.size || !possible) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `comm: counts must be those of ${String(this.size)} ranks, got [${counts.join(', ')}]`,
      );
    }
    if (own.dtype !== undefined && all.dtype !== undefined && own.dtype !== all.dtype) {
      throw new SiglipError(
        'ERR_DTYPE',
        `comm: ${partName} must be ${all.dtype} as ${wholeName} is, got ${own.dtype}`,
      );
    }
    expectLength(partName, own, counts[this.rank]);
    expectLength(wholeName, all, startsOf(counts)[this.size]);
    return [own, all];
  }

  private expectRank(rank: number): void {
    if (Number.isSafeInteger(rank) && rank >= 0 && rank < this.size) return;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `comm: rank must be below ${String(this.size)}, got ${String(rank)}`,
    );
  }
}

function expectLength(what: string, { length }: Joined, expected: number): void {
  if (length === expected) return;
  throw new SiglipError(
    'ERR_SHAPE',
    `comm: ${what} must have ${String(expected)} elements, got ${String(length)}`,
  );
}

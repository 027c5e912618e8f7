import type { DeviceArray } from '../array';
import type { Joined } from './joined';

/** An array of a device and the other side: where it goes to, or whose it becomes. */
export interface DeviceMessage {
  readonly rank: number;
  readonly data: DeviceArray;
}

/** How arrays of devices come from rank to rank. Arguments have been found to fit each other. */
export interface Transport {
  readonly name: 'nccl' | 'host';
  /** Does something with arrays of the host in its order among what goes by way of the host. */
  inOrder<T>(operation: () => Promise<T>): Promise<T>;
  allGather(part: Joined, counts: readonly number[], into: Joined): Promise<void>;
  allReduce(data: Joined): Promise<void>;
  reduceScatter(data: Joined, counts: readonly number[], into: Joined): Promise<void>;
  broadcast(data: Joined, root: number): Promise<void>;
  exchange(sends: readonly DeviceMessage[], receives: readonly DeviceMessage[]): Promise<void>;
  /** Ends what is under way. */
  abort(reason: string): void;
  close(): Promise<void>;
}

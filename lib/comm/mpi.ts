// The ranks of a job that mpirun or srun started.
import type { HostArray } from '../array';
import { SiglipError } from '../errors';
import type { NativeMpi } from '../native/mpi';
import { loadMpi } from '../native/mpi';
import type { Communicator, Message } from './communicator';
import { launchedRank } from './launch';

/** The ranks of a job, and where among those of its machine this one is. */
export interface LaunchedCommunicator extends Communicator {
  /** Counts the ranks of this machine from 0; which GPU to use. */
  readonly localRank: number;
}

export interface MpiOptions {
  /**
   * Seconds an operation may take before the rank gives up waiting for the others. Default 1800; a
   * rank that dies ends the job long before, by its launcher.
   */
  readonly limitSeconds?: number;
}

/**
 * Joins the job this process was started in; once in a process, on its main thread.
 *
 * @throws ERR_BINDING where the addon of MPI is missing; ERR_COMM when MPI refuses, or knows another
 * number of ranks than the launcher.
 */
export async function openMpi({
  limitSeconds = 1800,
}: MpiOptions = {}): Promise<LaunchedCommunicator> {
  const native = loadMpi();
  const { rank, size, localRank, library } = await native.open(limitSeconds);
  const launched = launchedRank();
  if (launched !== undefined && launched.size !== size) {
    throw new SiglipError(
      'ERR_COMM',
      `comm: ${library} must have the launcher's ${String(launched.size)} ranks, got ${String(size)}\n` +
        'to do: start the job with the mpirun of the MPI that the addon was built with',
    );
  }
  return new MpiCommunicator(native, rank, size, localRank);
}

class MpiCommunicator implements LaunchedCommunicator {
  constructor(
    private readonly native: NativeMpi,
    readonly rank: number,
    readonly size: number,
    readonly localRank: number,
  ) {}

  async barrier(): Promise<void> {
    await this.native.barrier();
  }

  async allGather<A extends HostArray>(part: A, counts: readonly number[], into: A): Promise<void> {
    const bytes = counts.map((count) => count * part.BYTES_PER_ELEMENT);
    await this.native.allGather(part, bytes, into);
  }

  async allReduce(data: Float32Array): Promise<void> {
    await this.native.allReduce(data);
  }

  async reduceScatter(
    data: Float32Array,
    counts: readonly number[],
    into: Float32Array,
  ): Promise<void> {
    await this.native.reduceScatter(data, counts, into);
  }

  async broadcast(data: HostArray, root: number): Promise<void> {
    await this.native.broadcast(data, root);
  }

  async exchange(sends: readonly Message[], receives: readonly Message[]): Promise<void> {
    const flat = (messages: readonly Message[]): (HostArray | number)[] =>
      messages.flatMap(({ rank, data }) => [data, rank]);
    await this.native.exchange(flat(sends), flat(receives));
  }

  abort(reason: unknown): never {
    const text =
      reason instanceof SiglipError
        ? `${reason.message} (${reason.code})`
        : reason instanceof Error
          ? (reason.stack ?? reason.message)
          : String(reason);
    this.native.abort(`siglip2: rank ${String(this.rank)} of ${String(this.size)}: ${text}`);
  }

  async close(): Promise<void> {
    await this.native.close();
  }
}

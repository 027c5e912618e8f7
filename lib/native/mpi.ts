// The addon for several ranks, built where there is MPI and loaded only when a launcher started more
// than one.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { SiglipError } from '../errors';
import type { ErrorClass } from './addon';
import { addonPath } from './load';
import type { HostArray } from './spec';

/** Typed arrays and ranks in turn. */
export type NativeMessages = readonly (HostArray | number)[];

/**
 * The exports of siglip2_mpi.node. Operations run on a thread of MPI's in the order of their calls,
 * which must be that of every rank. Arrays are read and written in place until the promise settles:
 * until then they must not be changed, transferred or resized.
 */
export interface NativeMpi {
  /** Hands over the class of all errors. Once, before anything else. */
  initialize(errorClass: ErrorClass): void;
  /** Joins the job; once in a process. */
  open(limitSeconds: number): Promise<{
    readonly rank: number;
    readonly size: number;
    /** Among the ranks of this machine. */
    readonly localRank: number;
    /** Name and version of the MPI library. */
    readonly library: string;
  }>;
  barrier(): Promise<void>;
  /** `counts`: bytes of every rank. */
  allGather(part: HostArray, counts: readonly number[], into: HostArray): Promise<void>;
  allReduce(data: Float32Array): Promise<void>;
  /** `counts`: elements of every rank. */
  reduceScatter(data: Float32Array, counts: readonly number[], into: Float32Array): Promise<void>;
  broadcast(data: HostArray, root: number): Promise<void>;
  exchange(sends: NativeMessages, receives: NativeMessages): Promise<void>;
  /** Writes the reason to standard error and ends all ranks. Does not return. */
  abort(reason: string): never;
  /** Leaves the job when every rank has come here. */
  close(): Promise<void>;
}

let loaded: NativeMpi | undefined;

/**
 * The addon of MPI, loaded on the first call from where the main one is.
 *
 * @throws ERR_BINDING when it is not built, or its MPI library cannot be loaded.
 */
export function loadMpi(): NativeMpi {
  if (loaded !== undefined) return loaded;
  const path = join(dirname(addonPath()), 'siglip2_mpi.node');
  let reason = 'no such file';
  if (existsSync(path)) {
    try {
      const module = require(path) as NativeMpi;
      module.initialize(SiglipError);
      loaded = module;
      return module;
    } catch (error) {
      reason = error instanceof Error ? error.message : String(error);
    }
  }
  throw new SiglipError(
    'ERR_BINDING',
    `addon: ${path} must load for more than one rank, got a failure: ${reason}\n` +
      'to do: install MPI with its headers (Debian: libopenmpi-dev) and CMake, then `npm run build:native`',
  );
}

// How a process learns that a launcher started it as one of several.
import type { Device } from '../array';
import { SiglipError } from '../errors';
import { loadAddon } from '../native/load';

/** The place of a process in a job. */
export interface LaunchedRank {
  readonly rank: number;
  readonly size: number;
  /** Among the ranks of this machine; which GPU to use. */
  readonly localRank: number;
}

// Rank, size and local rank as Open MPI, MPICH (and Intel MPI), and Slurm tell them. Slurm's step is
// asked, not its job: a batch script itself is no rank.
const launchers = [
  ['OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'],
  ['PMI_RANK', 'PMI_SIZE', 'MPI_LOCALRANKID'],
  ['SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'],
] as const;

/**
 * The place that mpirun or srun gave this process; undefined where it was started alone.
 *
 * @throws ERR_ARGUMENT when what the launcher says is no rank of a job.
 */
export function launchedRank(
  environment: Readonly<Record<string, string | undefined>> = process.env,
): LaunchedRank | undefined {
  const found = launchers.find(([rank, size]) =>
    [rank, size].every((name) => (environment[name] ?? '') !== ''),
  );
  if (found === undefined) return undefined;
  const [rank, size, localRank] = found.map((name) => Number(environment[name] ?? '0'));
  const possible =
    [rank, size, localRank].every((n) => Number.isSafeInteger(n) && n >= 0) && rank < size;
  if (!possible) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `launch: ${found.join(', ')} must be a rank of a job, got ${found.map((name) => environment[name] ?? 'none').join(', ')}`,
    );
  }
  return { rank, size, localRank };
}

/** The device of a rank that was not told one: a GPU of its own where there are, else the CPU. */
export function deviceOfRank({ localRank }: LaunchedRank): Device {
  const { devices } = loadAddon().describe().cuda;
  if (devices.length === 0) return 'cpu';
  return `cuda:${String(devices[localRank % devices.length].index)}` as Device;
}

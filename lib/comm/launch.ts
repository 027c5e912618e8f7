// How a process learns that a launcher started it as one of several.
import type { Device } from '../array';
import { resolveDevice } from '../array';
import { SiglipError } from '../errors';
import type { NativeCuda } from '../native/addon';
import { loadAddon } from '../native/load';

/** The place of a process in a job. */
export interface LaunchedRank {
  readonly rank: number;
  readonly size: number;
}

// Rank and size as Open MPI, MPICH (and Intel MPI), and Slurm tell them. Slurm's step is
// asked, not its job: a batch script itself is no rank.
const launchers = [
  ['OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'],
  ['PMI_RANK', 'PMI_SIZE'],
  ['SLURM_PROCID', 'SLURM_STEP_NUM_TASKS'],
] as const;

/**
 * The place that mpirun or srun gave this process; undefined where it was started alone.
 *
 * @throws ERR_ARGUMENT when what the launcher says is no rank of a job.
 */
export function launchedRank(
  environment: Readonly<Record<string, string | undefined>> = process.env,
): LaunchedRank | undefined {
  const found = launchers.find((names) => names.every((name) => (environment[name] ?? '') !== ''));
  if (found === undefined) return undefined;
  const [rank, size] = found.map((name) => Number(environment[name]));
  const possible = [rank, size].every((n) => Number.isSafeInteger(n) && n >= 0) && rank < size;
  if (!possible) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `launch: ${found.join(', ')} must be a rank of a job, got ${found.map((name) => environment[name] ?? 'none').join(', ')}`,
    );
  }
  return { rank, size };
}

/**
 * The device of a rank, for a choice that all ranks have alike: `auto` and `cuda` are GPUs in turn among
 * the ranks of a machine, and `auto` the CPU where there are none; another name is that device itself.
 *
 * @param localRank - among the ranks of this machine
 * @param cuda - what the machine has
 * @throws ERR_DEVICE for `cuda` where there is no GPU
 */
export function deviceOfRank(
  choice: 'auto' | Device,
  localRank: number,
  cuda: NativeCuda = loadAddon().describe().cuda,
): Device {
  const { devices } = cuda;
  if (choice !== 'auto' && choice !== 'cuda') return choice;
  if (devices.length === 0) return choice === 'auto' ? 'cpu' : resolveDevice('cuda').device;
  return `cuda:${String(devices[localRank % devices.length].index)}` as Device;
}

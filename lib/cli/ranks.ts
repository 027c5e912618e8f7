// A command as one rank of a job that mpirun or srun started.
import { Option } from 'commander';
import type { Command } from 'commander';
import type { Device } from '../array';
import { deviceOfRank, launchedRank, openMpi } from '../comm';
import type { RanksConfig, TextExchange } from '../train';

/** Options of a command that can run on several ranks. */
export interface RanksFlags {
  readonly exchange: 'gather' | 'ring' | 'two-way-ring';
  readonly shard: 'none' | 'optimizer';
}

const exchanges: Readonly<Record<RanksFlags['exchange'], TextExchange>> = {
  gather: 'gather',
  ring: 'ring',
  'two-way-ring': 'twoWayRing',
};

/** Adds the options. */
export function withRanksFlags(command: Command): Command {
  return command
    .addOption(
      new Option('--exchange <way>', 'over ranks: how the texts of others come to a rank')
        .choices(Object.keys(exchanges))
        .default('gather'),
    )
    .addOption(
      new Option('--shard <what>', 'over ranks: what a rank keeps only its part of')
        .choices(['none', 'optimizer'])
        .default('none'),
    );
}

/** What the launcher gave this process. */
export interface Ranks extends RanksConfig {
  /** The rank's own, where none was asked for. */
  readonly device: Device;
}

/**
 * Does the work as one rank of the job, or alone where no launcher started several. A failure ends all
 * ranks, with its reason.
 */
export async function overRanks<T>(
  { exchange, shard }: RanksFlags,
  work: (ranks: Ranks | undefined) => Promise<T>,
): Promise<T> {
  const launched = launchedRank();
  if (launched === undefined || launched.size === 1) return work(undefined);
  const comm = await openMpi();
  try {
    const device = deviceOfRank(launched);
    const result = await work({ comm, exchange: exchanges[exchange], shard, device });
    await comm.close();
    return result;
  } catch (error) {
    comm.abort(error);
    throw error;
  }
}

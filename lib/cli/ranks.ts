// A command as one rank of a job that mpirun or srun started.
import { Option } from 'commander';
import type { Command } from 'commander';
import type { Device } from '../array';
import type { Communicator, DeviceCommunicator, DeviceCommunicatorOptions } from '../comm';
import { deviceOfRank, launchedRank, openDeviceCommunicator, openMpi } from '../comm';
import { expectDevice } from '../embed/options';
import type { RanksConfig, TextExchange } from '../train';

/** Options of a command that can run on several ranks. */
export interface RanksFlags {
  readonly exchange: 'gather' | 'ring' | 'two-way-ring';
  readonly shard: 'none' | 'optimizer' | 'parameters';
  readonly transport: NonNullable<DeviceCommunicatorOptions['transport']>;
  readonly device: 'auto' | Device;
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
        .choices(['none', 'optimizer', 'parameters'])
        .default('none'),
    )
    .addOption(
      new Option('--transport <way>', 'over ranks: how arrays of GPUs travel')
        .choices(['auto', 'nccl', 'host'])
        .default('auto'),
    );
}

/** What the launcher gave this process. */
export interface Ranks extends RanksConfig {
  /** The rank's own. */
  readonly device: Device;
}

/**
 * Does the work as one rank of the job, or alone where no launcher started several. A failure ends all
 * ranks, with its reason.
 */
export async function overRanks<T>(
  { exchange, shard, transport, device: choice }: RanksFlags,
  work: (ranks: Ranks | undefined) => Promise<T>,
): Promise<T> {
  const launched = launchedRank();
  if (launched === undefined || launched.size === 1) return work(undefined);
  const host = await openMpi();
  let comm: Communicator = host;
  try {
    const device = deviceOfRank(expectDevice('ranks', '--device', choice), host.localRank);
    const opened = await openDeviceCommunicator(host, device, { transport });
    comm = opened;
    if (comm.rank === 0 && device !== 'cpu') tellTransport(opened);
    const result = await work({ comm, exchange: exchanges[exchange], shard, device });
    await comm.close();
    return result;
  } catch (error) {
    comm.abort(error);
    throw error;
  }
}

function tellTransport({ transport, reason }: DeviceCommunicator): void {
  const way = transport === 'nccl' ? 'from GPU to GPU' : 'through host memory';
  process.stderr.write(`arrays travel ${way}: ${reason}\n`);
}

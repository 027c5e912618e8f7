// One rank of a job that a test starts: does what its first argument says.
import { openDeviceCommunicator, openMpi } from '../../lib/comm';
import type { LaunchedCommunicator } from '../../lib/comm';
import { SiglipError } from '../../lib/errors';
import { tryDeviceOperations } from './device_ranks';
import { expectEqual, tryOperations } from './ranks';

const tasks: Readonly<Record<string, (comm: LaunchedCommunicator) => Promise<void>>> = {
  operations: (comm) => tryOperations(comm, 5_000_000),
  device: async (comm) => {
    // All ranks of a test are on one machine.
    expectEqual('localRank', [comm.localRank], [comm.rank]);
    await tryDeviceOperations(await openDeviceCommunicator(comm, 'cpu'), 'cpu');
  },
  // Waits for the others, one of which does not come: it has failed, is killed, or hangs.
  abort: async (comm) => {
    if (comm.rank === comm.size - 1) {
      comm.abort(
        new SiglipError('ERR_DATA', 'rank test: the record must be whole, got half of it'),
      );
    }
    await comm.barrier();
  },
  kill: async (comm) => {
    if (comm.rank === comm.size - 1) process.kill(process.pid, 'SIGKILL');
    await comm.barrier();
  },
  leave: async (comm) => {
    if (comm.rank === comm.size - 1) process.exit(0);
    await comm.barrier();
  },
  hang: async (comm) => {
    if (comm.rank === comm.size - 1) await new Promise((resolve) => setTimeout(resolve, 60_000));
    await comm.barrier();
  },
};

async function main(): Promise<void> {
  const task = process.argv[2];
  const comm = await openMpi(task === 'hang' ? { limitSeconds: 1 } : {});
  try {
    await tasks[task](comm);
    await comm.close();
  } catch (error) {
    comm.abort(error);
  }
  process.stdout.write(`rank ${String(comm.rank)} of ${String(comm.size)} done\n`);
}

void main();

// One rank of a run that a test starts: folder, last step, what is sharded, how texts travel, and the
// step after which the last rank is killed.
import { openMpi } from '../../lib/comm';
import type { RanksConfig } from '../../lib/train';
import { noiseRun } from './noise_run';

async function main(): Promise<void> {
  const [folder, until, shard = 'none', exchange = 'gather', kill] = process.argv.slice(2);
  const comm = await openMpi();
  try {
    const way = { shard, exchange } as Omit<RanksConfig, 'comm'>;
    await noiseRun(folder, { comm, ...way }, Number(until), { checkpointEvery: 1 }, (step) => {
      if (comm.rank === comm.size - 1 && step === Number(kill)) {
        process.kill(process.pid, 'SIGKILL');
      }
    });
    await comm.close();
  } catch (error) {
    comm.abort(error);
  }
}

void main();

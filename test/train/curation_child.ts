// One rank of a curated run that a test starts: folder and scope. Leaves what it did in the folder.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openMpi } from '../../lib/comm';
import type { CurationConfig } from '../../lib/train';
import { curatedRun } from './curation_run';

async function main(): Promise<void> {
  const [folder, scope] = process.argv.slice(2);
  const comm = await openMpi();
  try {
    const changes = {
      scope,
      ...(scope === 'local' ? { chunks: 2 } : {}),
    } as Partial<CurationConfig>;
    const run = await curatedRun(folder, changes, { comm });
    writeFileSync(join(folder, `rank-${String(comm.rank)}.json`), JSON.stringify(run));
    await comm.close();
  } catch (error) {
    comm.abort(error);
  }
}

void main();

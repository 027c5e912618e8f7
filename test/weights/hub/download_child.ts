// Downloads the model named by its argument; started by tests that kill it or run several at once.
import { resolveCheckpoint } from '../../../lib/weights';

async function main(): Promise<void> {
  const { path, revision } = await resolveCheckpoint(process.argv[2]);
  process.stdout.write(JSON.stringify({ path, revision }));
}

void main();

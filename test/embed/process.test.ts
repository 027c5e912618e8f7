// The end of a process that holds an Embedder, and models in worker threads.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { modelFolder } from './random_model';

const folder = modelFolder('fixed');

function run(role: string): { status: number | null; signal: string | null; output: string } {
  const loader = join(__dirname, '..', 'typescript.js');
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    ['-r', loader, join(__dirname, 'process_child.ts'), role, folder()],
    { encoding: 'utf8', timeout: 100_000, killSignal: 'SIGKILL' },
  );
  return { status, signal, output: stdout + stderr };
}

test.each([
  ['closed', 'a closed one', 'done\n', 0],
  ['open', 'an idle one that was never closed', 'done\n', 0],
  ['exit', 'process.exit in the middle of a flood', '', 7],
])('%s: %s lets the process end by itself', (role, _, output, status) => {
  expect(run(role)).toEqual({ status, signal: null, output });
});

test('each worker thread loads its own model, to the same bits', () => {
  expect(run('workers')).toEqual({ status: 0, signal: null, output: '1 of 4\n' });
});

test('a worker terminated in the middle of a flood harms nobody', () => {
  expect(run('terminated')).toEqual({ status: 0, signal: null, output: 'true\n' });
});

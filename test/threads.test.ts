// Results are the same bits whatever the number of threads.
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

async function digests(threads: number): Promise<Record<string, string>> {
  const { stdout } = await run(
    process.execPath,
    ['-r', join(__dirname, 'typescript.js'), join(__dirname, 'threads_child.ts')],
    { env: { ...process.env, SIGLIP2_THREADS: String(threads) } },
  );
  return JSON.parse(stdout) as Record<string, string>;
}

test('one, two, three and five threads give the same bits', async () => {
  const one = await digests(1);
  expect(Object.keys(one).length).toBeGreaterThan(20);
  for (const threads of [2, 3, 5]) expect(await digests(threads)).toEqual(one);
});

import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { addonPath } from '../../lib/native/load';

// SIGLIP2_FUZZ_ROUNDS makes it longer, SIGLIP2_FUZZ_SEED makes it another one.
const rounds = process.env.SIGLIP2_FUZZ_ROUNDS ?? '1500';
const seed = process.env.SIGLIP2_FUZZ_SEED ?? '1';

test('no description of a program and no operand of a kernel brings the process down', async () => {
  const script = join(__dirname, 'fuzz_program.js');
  // Ended before the test would be given up, which leaves it running.
  const child = spawn(process.execPath, [script, addonPath(), seed, rounds], { timeout: 110_000 });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  }
  const end = await new Promise<string>((resolve) => {
    child.on('close', (code, signal) => {
      resolve(`exit ${String(code)}, signal ${String(signal)}`);
    });
  });
  expect(`${output}${end}`).toMatch(/exit 0, signal null$/);
  const { done, refused, buffers, arenaBytes } = JSON.parse(output) as Record<string, number>;
  expect(done).toBeGreaterThan(Number(rounds) / 10);
  expect(refused).toBeGreaterThan(Number(rounds) / 10);
  expect({ buffers, arenaBytes }).toEqual({ buffers: 0, arenaBytes: 0 });
});

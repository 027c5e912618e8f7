// The command killed at any moment, as a user's machine does it, and run again.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import { writeModel } from '../embed/random_model';
import { folderForAll, picture, put, putPictures, putTar } from '../corpus/corpus_files';

const root = join(__dirname, '..', '..');
const folder = folderForAll();
const at = (...names: string[]): string => join(folder(), ...names);
const whole = new Map<string, Buffer>();

function command(output: string, ...rest: readonly string[]): string[] {
  const inputs = [at('photos'), at('a.tar'), '--text', 'cat', 'a cat', 'at'];
  const sizes = ['--part-rows', '8', '--batch', '3', '--max-failures', '5'];
  return ['embed', ...inputs, '--model', at('model'), ...sizes, '--output', output, ...rest];
}

const program = ['-r', join(root, 'test', 'typescript.js')];
const main = join(root, 'lib', 'cli', 'main.ts');

function run(
  output: string,
  killAt?: string,
): { readonly status: number | null; readonly signal: string | null; readonly stderr: string } {
  const preload = killAt === undefined ? [] : ['-r', join(__dirname, 'kill_at.js')];
  return spawnSync(process.execPath, [...program, ...preload, main, ...command(output)], {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...(killAt === undefined ? {} : { KILL_AT: killAt }) },
  });
}

/** All that a run leaves beside its output, by what follows the output's stem. */
function left(stem: string): string[] {
  return readdirSync(folder())
    .filter((name) => name.startsWith(`${stem}.`))
    .map((name) => name.slice(stem.length))
    .sort();
}

function expectWhole(stem: string, extension: string): void {
  expect(left(stem)).toEqual(left(`whole_${extension}`));
  for (const suffix of left(stem)) {
    const bytes = readFileSync(at(stem + suffix));
    // The names of the files are in it.
    if (suffix.endsWith('.manifest.json')) continue;
    expect(bytes.equals(readFileSync(at(`whole_${extension}${suffix}`)))).toBe(true);
  }
}

beforeAll(async () => {
  await writeModel(at('model'), 'fixed');
  await putPictures(at('photos'), 30);
  put(at('photos', '011x.png'), 'torn');
  const members = await Promise.all(
    Array.from({ length: 20 }, async (_, i) => {
      return [`${String(i).padStart(3, '0')}.png`, await picture(100 + i)] as const;
    }),
  );
  await putTar(at('a.tar'), members);
  for (const extension of ['npy', 'parquet']) {
    const output = at(`whole_${extension}.${extension}`);
    expect(run(output).status).toBe(0);
    whole.set(extension, readFileSync(output));
  }
});

test('killed at one change of the file system after another, each start a little further', () => {
  const random = new Philox4x32(11, 'restart test');
  let kills = 0;
  const output = at('steps.npy');
  for (;;) {
    // Later starts get further: assembling is done in one go or again.
    const count = 2 + 2 * kills + Math.floor(random.uniform(0, 9));
    const place = random.uniform(0, 1) < 0.5 ? 'before' : 'after';
    const { status, signal, stderr } = run(output, `${String(count)} ${place}`);
    if (status === 0) break;
    expect([signal, stderr]).toEqual(['SIGKILL', expect.not.stringMatching(/Error/)]);
    kills++;
    expect(kills).toBeLessThan(30);
  }
  expect(kills).toBeGreaterThan(3);
  expectWhole('steps', 'npy');
}, 240_000);

test('killed at the very end, from the last part to the removal of the journal', () => {
  // A run without interruption makes 50 changes: five to begin, three for each of eight parts and
  // three ends, then two for each of three files, their names, and the removal of journal and lock.
  for (const [i, count] of [38, 43, 46, 47, 48, 49, 50].entries()) {
    const stem = `end_${String(i)}`;
    const output = at(`${stem}.parquet`);
    expect(run(output, `${String(count)} before`).signal).toBe('SIGKILL');
    const again = run(output);
    expect([again.status, again.stderr]).toEqual([0, expect.any(String)]);
    expectWhole(stem, 'parquet');
  }
}, 240_000);

test('killed at random times from outside', async () => {
  const output = at('times.npy');
  const random = new Philox4x32(12, 'restart test');
  for (let start = 0; start < 5; start++) {
    const child = spawn(process.execPath, [...program, main, ...command(output)], {
      cwd: root,
      stdio: 'ignore',
    });
    const ended = new Promise((resolve) => child.once('exit', resolve));
    const parts = `${output}.parts`;
    // Loading takes most of the time; only what comes after it is of interest.
    while (!existsSync(parts) && child.exitCode === null) await pause(2);
    await pause(random.uniform(0, 120));
    child.kill('SIGKILL');
    await ended;
  }
  expect(run(output).status).toBe(0);
  expectWhole('times', 'npy');
}, 240_000);

test('SIGTERM: the batch is finished, the rest told, the same command goes on', async () => {
  const output = at('term.npy');
  const args = [...program, main, ...command(output, '--batch', '1', '--json')];
  const child = spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  let stderr = '';
  let stdout = '';
  child.stderr.on('data', (text) => (stderr += String(text)));
  child.stdout.on('data', (text) => (stdout += String(text)));
  const ended = new Promise((resolve) => child.once('close', resolve));
  while (!existsSync(join(`${output}.parts`, 'manifest.json')) && child.exitCode === null) {
    await pause(1);
  }
  child.kill('SIGTERM');
  expect(await ended).toBe(1);
  expect(stderr).toMatch(/SIGTERM: stopping after this batch/);
  expect(stderr).toMatch(/stopped by SIGTERM after \d+ rows[^]*the same command continues/);
  expect(JSON.parse(stdout)).toMatchObject({ finished: false, stopped: 'signal', outputs: [] });
  const rest = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' });
  expect(rest.status).toBe(0);
  const summary = JSON.parse(rest.stdout) as { processed: number };
  expect(JSON.parse(rest.stdout)).toMatchObject({ finished: true, rows: 53, failures: 1 });
  // No row was lost, and none was done again.
  const before = Number(/after (\d+) rows/u.exec(stderr)?.[1]);
  expect(before + summary.processed).toBe(54);
});

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

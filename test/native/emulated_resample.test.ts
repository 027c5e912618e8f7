// The resize of a GPU, gone through thread by thread, beside that of the CPU; see emulated/resample.cc.
import { execFile, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const native = join(__dirname, '..', '..', 'native');
const compiler = process.env.CXX ?? 'g++';
const sources = [
  ...['image/prepare', 'image/taps', 'image/upload', 'cpu/resample'],
  ...['runtime/machine', 'runtime/memory', 'runtime/thread_pool'],
].map((name) => join(native, `${name}.cc`));

(spawnSync(compiler, ['--version']).status === 0 ? test : test.skip)(
  'the resize of a GPU, emulated, gives the bytes of the CPU',
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'siglip2-emulated-'));
    try {
      const program = join(folder, 'resample');
      await run(compiler, [
        ...['-std=c++17', '-O1', '-fno-math-errno', '-pthread', `-I${native}`],
        ...['-DSIGLIP_CPU=cpu_generic', join(__dirname, 'emulated', 'resample.cc'), ...sources],
        ...['-o', program],
      ]);
      for (const seed of ['1', '2', '3']) {
        const { stdout } = await run(program, [seed]);
        expect(stdout).toBe('the same bytes\n');
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
  120_000,
);

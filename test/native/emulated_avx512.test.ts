// The AVX-512 kernels of products, emulated by SIMDe where its headers are installed (Debian:
// libsimde-dev), beside the generic ones: so that what a machine without AVX-512 cannot run has at
// least been run in plain code. The instructions themselves are tested where the machine has them.
import { execFile, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { loadAddon } from '../../lib/native/load';

const run = promisify(execFile);
const root = join(__dirname, '..', '..');
const emulated = join(__dirname, 'emulated');
const compiler = process.env.CXX ?? 'g++';

const common = ['-std=c++17', '-O1', '-fno-math-errno', '-Wno-psabi', `-I${join(root, 'native')}`];
const generic = ['-DSIGLIP_CPU=cpu_generic'];
// Only what the emulation itself is built from needs AVX2; -w since SIMDe warns of its own.
const wide = [
  ...['-mavx2', '-mfma', '-flax-vector-conversions', '-w', `-I${emulated}`],
  ...['-DSIGLIP_CPU=cpu_avx512', '-DSIGLIP_ISA_AVX512', '-DSIGLIP_EMULATED'],
];
const kernels = [
  'cpu/gemm',
  'ops/attention/cpu',
  'ops/linear/cpu',
  'ops/linear_bfloat16/cpu',
  'ops/linear_int8/cpu',
  'ops/matmul/cpu',
];

function canEmulate(): boolean {
  // Once is enough, and generic machines may lack AVX2.
  if (process.arch !== 'x64' || loadAddon().describe().isa === 'generic') return false;
  const { status } = spawnSync(compiler, ['-fsyntax-only', '-x', 'c++', '-'], {
    input: '#if defined(__clang__)\n#error\n#endif\n#include <simde/simde-common.h>\n',
  });
  return status === 0;
}

(canEmulate() ? test : test.skip)(
  'AVX-512 products, emulated, agree with the generic ones',
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'siglip2-emulated-'));
    try {
      const objects: string[] = [];
      const build = async (source: string, name: string, flags: string[]): Promise<void> => {
        const object = join(folder, `${name.replaceAll('/', '_')}.o`);
        objects.push(object);
        await run(compiler, [...common, ...flags, '-c', source, '-o', object]);
      };
      const native = (name: string): string => join(root, 'native', `${name}.cc`);
      for (const kernel of kernels) {
        await build(native(kernel), `generic_${kernel}`, generic);
        await build(native(kernel), `wide_${kernel}`, wide);
      }
      await build(native('runtime/thread_pool'), 'thread_pool', []);
      await build(join(emulated, 'main.cc'), 'main', []);
      const program = join(folder, 'emulated');
      await run(compiler, [...objects, '-lpthread', '-o', program]);
      const { stdout } = await run(program);
      const lines = stdout.trim().split('\n');
      expect(lines.length).toBe(2 * (7 * 11 + 2) * 2);
      const wrong = lines.filter((line) => {
        const [difference = '', lone = ''] = line.split(' ').slice(-2);
        return !(Number(difference) < 4e-6) || lone !== '0';
      });
      expect(wrong).toEqual([]);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
  600_000,
);

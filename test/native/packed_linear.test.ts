// Linear layers with packed weights across instruction sets, and what their kernels refuse.
import { kernelOf, loadAddon } from '../../lib/native/load';
import { packedLinear, precisions } from '../../lib/ops';
import { runChild } from './child';
import { bufferOf, description, rejectionOf, step, view } from './steps';

const addon = loadAddon();
const { isa } = addon.describe();

// M, K, N; a panel that is not full, rows and steps that divide into nothing.
const sizes = [
  [1, 1, 1],
  [3, 515, 67],
  [50, 131, 200],
  [7, 2100, 33],
];

interface Results {
  readonly int8: number[];
  readonly bfloat16: number[];
}

function results(set: string): Results[] {
  const { output } = runChild(
    `
    const addon = load();
    const bytes = { int8: (N, K) => Math.ceil(N / 64) * 64 * (Math.ceil(K / 4) * 4 + 8),
      bfloat16: (N, K) => 2 * Math.ceil(N / 64) * 64 * Math.ceil(K / 4) * 4 };
    let state = 1;
    const draw = (n) => Float32Array.from({ length: n }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      return state / 2 ** 31;
    });
    const run = async (form, M, K, N, x, weight) => {
      const packed = bytes[form](N, K);
      const at = { storage: 2, offset: 0, dtype: 2, shape: [packed] };
      const forward = index(addon, 'linear_' + form + '_forward');
      const args = [view(0, 0, M, K), at, null, null, 1, null, view(3, 0, M, N)];
      const scratch = addon.scratchBytes(forward, [...args, null]);
      const program = new addon.Program({
        name: form, arenaBytes: scratch, bufferBytes: [4 * M * K, 4 * N * K, packed, 4 * M * N],
        steps: [
          { kernel: index(addon, 'linear_' + form + '_pack'), label: 'pack', args: [view(1, 0, N, K), at] },
          { kernel: forward, label: 'forward', args: [...args, { storage: -1, offset: 0, dtype: 2, shape: [scratch] }] },
        ],
      });
      const buffers = [4 * M * K, 4 * N * K, packed, 4 * M * N].map((n) => new addon.Buffer(n));
      buffers[0].write(0, new Uint8Array(x.buffer));
      buffers[1].write(0, new Uint8Array(weight.buffer));
      await program.run(buffers, false);
      const y = new Float32Array(M * N);
      await buffers[3].read(0, new Uint8Array(y.buffer));
      return [...y];
    };
    (async () => {
      const all = [];
      for (const [M, K, N] of ${JSON.stringify(sizes)}) {
        const [x, weight] = [draw(M * K), draw(N * K)];
        all.push({
          int8: await run('int8', M, K, N, x, weight),
          bfloat16: await run('bfloat16', M, K, N, x, weight),
        });
      }
      console.log(JSON.stringify(all));
    })();`,
    { SIGLIP2_ISA: set },
  );
  return JSON.parse(output) as Results[];
}

function difference(a: readonly number[], b: readonly number[]): number {
  const largest = b.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0) / largest;
}

// Without the features all instruction sets quantise alike, and sums of integers are exact; but AVX-512 has its
// own GELU, to 2⁻¹⁴.
(isa === 'generic' ? test.skip : test)('instruction sets agree', () => {
  const generic = results('generic');
  for (const set of isa === 'avx512' ? ['avx2', 'avx512'] : ['avx2']) {
    results(`${set},novnni,nobf16`).forEach((result, i) => {
      expect(result.int8.length).toBe(sizes[i][0] * sizes[i][2]);
      const bar = set === 'avx512' ? 3e-5 : 5e-7;
      expect(difference(result.int8, generic[i].int8)).toBeLessThan(bar);
      expect(difference(result.bfloat16, generic[i].bfloat16)).toBeLessThan(bar + 4e-6);
    });
  }
});

// Matrix tiles multiply the same numbers in another order.
(loadAddon().describe().features.includes('amx') ? test : test.skip)(
  'matrix tiles agree with vectors',
  () => {
    const vectors = results(`${isa},noamx`);
    results(isa).forEach((result, i) => {
      expect(result.int8.length).toBe(sizes[i][0] * sizes[i][2]);
      expect(difference(result.int8, vectors[i].int8)).toBe(0);
      expect(difference(result.bfloat16, vectors[i].bfloat16)).toBeLessThan(4e-6);
    });
  },
);

describe.each(precisions)('linear_%s', (precision) => {
  const [M, K, N] = [5, 12, 70];
  const packed = (
    bytes: number,
  ): { storage: number; offset: number; dtype: 2; shape: number[] } => ({
    storage: 2,
    offset: 0,
    dtype: 2,
    shape: [bytes],
  });
  const right = packedLinear[precision].bytes(N, K);
  const run = async (bytes: number, missing: number): Promise<unknown> => {
    const forward = `linear_${precision}_forward` as const;
    const args = [view(0, 0, M, K), packed(bytes), null, null, 0, null, view(1, 0, M, N)];
    const scratch = addon.scratchBytes(kernelOf(forward).index, [...args, null]);
    const program = new addon.Program(
      description(
        [step(forward, ...args, { storage: -1, offset: 0, dtype: 2, shape: [scratch - missing] })],
        [4 * M * K, 4 * M * N, bytes],
        scratch,
      ),
    );
    const buffers = [
      bufferOf(...new Array<number>(M * K).fill(1)),
      bufferOf(...new Array<number>(M * N).fill(1)),
      bufferOf(...new Array<number>(bytes / 4).fill(0)),
    ];
    try {
      return await program.run(buffers, false);
    } finally {
      for (const buffer of buffers) buffer.dispose();
      program.dispose();
    }
  };

  test('a packed weight of another size is refused', async () => {
    expect(await rejectionOf(run(right, 0))).toBe('no error');
    expect(await rejectionOf(run(right + 4, 0))).toBe('ERR_SHAPE');
    expect(await rejectionOf(run(right - 4, 0))).toBe('ERR_SHAPE');
  });

  test('scratch that is too small is refused', async () => {
    expect(await rejectionOf(run(right, 64))).not.toBe('no error');
  });
});

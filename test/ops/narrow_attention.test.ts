// Attention whose products may be of bfloat16. Where they are, it is that of operands rounded before,
// up to the rounding of probabilities; elsewhere nothing changes.
import { disposeArrays } from '../../lib/graph';
import { loadAddon } from '../../lib/native/load';
import { narrowAttention } from '../../lib/ops';
import type { Arrays, CaseOptions, OpCase } from '../op_cases';
import { forwardProgram, opCases, operandArrays, valuesOf } from '../op_cases';
import type { NdArray } from '../reference/nd_array';
import { map, maxAbs } from '../reference/nd_array';
import { randomOf } from './run_case';

const hasPairs = ['bf16'].every((name) =>
  (loadAddon().describe().features as readonly string[]).includes(name),
);

const words = new Uint32Array(1);
const floats = new Float32Array(words.buffer);

function toBfloat16(x: number): number {
  floats[0] = x;
  words[0] = ((words[0] + 0x7fff + ((words[0] >>> 16) & 1)) >>> 16) << 16;
  return floats[0];
}

async function run(c: OpCase, values: Arrays, options: CaseOptions): Promise<Float32Array> {
  const program = forwardProgram(c, undefined, options);
  const inputs = operandArrays(c, values);
  try {
    const outputs = await program.run(inputs);
    const o = (await outputs.o.read()) as Float32Array;
    disposeArrays(outputs);
    return o;
  } finally {
    disposeArrays(inputs);
    program.dispose();
  }
}

// Scores of few queries are no products of tiles.
function isWhole({ q, segments }: Arrays): boolean {
  if (segments === undefined) return (q.shape.at(-2) ?? 0) > 8;
  return segments.data.every((start, i) => i === 0 || start - segments.data[i - 1] > 8);
}

// As the kernel rounds them: queries with the scale and log2 e on them.
function rounded(values: Arrays, width: number): Arrays {
  const c = Math.fround(Math.LOG2E / Math.sqrt(width));
  return {
    ...values,
    q: map(values.q, (x) => toBfloat16(Math.fround(Math.fround(x) * c)) / c),
    k: map(values.k, toBfloat16),
    v: map(values.v, toBfloat16),
  };
}

function headWidth({ name }: OpCase): number {
  return Number(/heads? of (\d+)/u.exec(name)?.[1]);
}

function difference(actual: ArrayLike<number>, expected: NdArray): number {
  return expected.data.reduce(
    (most, value, i) => Math.max(most, Number.isNaN(actual[i]) ? NaN : Math.abs(actual[i] - value)),
    0,
  );
}

const specialize = narrowAttention(() => true);
const cases = opCases.filter(({ op }) => op === 'attention');

test.each(cases.map((c) => [c.name, c] as const))('%s', async (_, c) => {
  const values = valuesOf(c, randomOf(c));
  const narrow = await run(c, values, { specialize });
  expect(await run(c, values, { specialize })).toEqual(narrow);
  if (!hasPairs || values.causal !== undefined) {
    expect(narrow).toEqual(await run(c, values, {}));
    return;
  }
  const expected = c.reference(rounded(values, headWidth(c))).o;
  const bar = isWhole(values) ? 2 ** -8 : 2 ** -5;
  expect(difference(narrow, expected)).toBeLessThan(bar * maxAbs(values.v));
});

(hasPairs ? test : test.skip)('pairs are multiplied', async () => {
  const c = cases.find(({ name }) => name.includes('heads of 64'));
  if (c === undefined) throw new Error('no case');
  const values = valuesOf(c, randomOf(c));
  expect(await run(c, values, { specialize })).not.toEqual(await run(c, values, {}));
});

test('a layer that is not named stays as it is', async () => {
  const [c] = cases;
  const values = valuesOf(c, randomOf(c));
  expect(await run(c, values, { specialize: narrowAttention(() => false) })).toEqual(
    await run(c, values, {}),
  );
});

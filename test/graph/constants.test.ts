// What depends on constants alone is computed once, shared by programs and freed together.
import { DeviceArray } from '../../lib/array';
import type { ConstantSource } from '../../lib/graph';
import { add, compile, Constants, tap } from '../../lib/graph';
import { float32 } from '../../lib/native/spec';
import { gelu, linear, matmul, packedLinear, packLinears, reshape, scaleBy } from '../../lib/ops';
import { failure } from '../failure';
import { Random } from '../reference/random';

interface Counted extends ConstantSource {
  opened: number;
  readonly arrays: DeviceArray[];
}

function source(values: Float32Array, ...shape: number[]): Counted {
  const counted: Counted = {
    dtype: 'float32',
    shape,
    opened: 0,
    arrays: [],
    open: () => {
      counted.opened += 1;
      const array = DeviceArray.from(values, shape);
      counted.arrays.push(array);
      return Promise.resolve(array);
    },
  };
  return counted;
}

function draw(...shape: number[]): Float32Array {
  return Float32Array.from(new Random(shape.length).array(shape, (r) => r.normal()).data);
}

async function valuesOf(arrays: Record<string, DeviceArray>): Promise<Record<string, unknown>> {
  const values: Record<string, unknown> = {};
  for (const [name, array] of Object.entries(arrays)) {
    values[name] = await array.read();
    array.dispose();
  }
  return values;
}

const [rows, inputs, outputs] = [5, 24, 40];
const x = draw(rows, inputs);
const weight = draw(outputs, inputs);
const bias = draw(outputs);

test('the values of a program that gets the same as inputs', async () => {
  const plain = compile(
    'plain',
    (t) => ({ y: linear(t.x, scaleBy(t.weight, 2), t.bias), bias: t.bias }),
    { x: float32(rows, inputs), weight: float32(outputs, inputs), bias: float32(outputs) },
  );
  const expected = await valuesOf(await plain.run({ x, weight, bias }));
  plain.dispose();
  const constants = new Constants({
    weight: source(weight, outputs, inputs),
    bias: source(bias, outputs),
  });
  const program = compile(
    'constant',
    (t, c) => ({ y: linear(t.x, scaleBy(c.weight, 2), c.bias), bias: c.bias }),
    { x: float32(rows, inputs) },
    { constants },
  );
  expect(program.steps.map(({ kernel }) => kernel)).not.toContain('scale_by');
  expect(await valuesOf(await program.run({ x }))).toEqual(expected);
  expect(await valuesOf(await program.run({ x }))).toEqual(expected);
  program.dispose();
  constants.dispose();
});

test('what two programs derive alike is computed once, its operands are given back', async () => {
  const leaf = source(weight, outputs, inputs);
  const constants = new Constants({ weight: leaf });
  const build = (batch: number) =>
    compile(
      'product',
      (t, c) => ({ y: matmul(t.x, scaleBy(reshape(c.weight, [inputs, outputs]), 3)) }),
      { x: float32(batch, inputs) },
      { constants },
    );
  const [first, second] = [build(rows), build(1)];
  expect(leaf.opened).toBe(0);
  expect(constants.bytes).toBe(0);
  // At once: the second run waits for what the first derives.
  const results = await Promise.all([first.run({ x }), second.run({ x: x.slice(0, inputs) })]);
  expect(leaf.opened).toBe(1);
  expect(leaf.arrays.every(({ disposed }) => disposed)).toBe(true);
  expect(constants.bytes).toBe(4 * inputs * outputs);
  expect(first.memory.inputBytes).toBe(4 * (rows * inputs + inputs * outputs));
  const [all, top] = [await results[0].y.read(), await results[1].y.read()];
  expect(top).toEqual(all.slice(0, outputs));
  for (const { y } of results) y.dispose();
  first.dispose();
  second.dispose();
  constants.dispose();
  expect(constants.bytes).toBe(0);
});

test('prepare() derives, and stops at its signal', async () => {
  const leaf = source(weight, outputs, inputs);
  const constants = new Constants({ weight: leaf });
  const program = compile(
    'prepared',
    (t, c) => ({ y: linear(t.x, c.weight) }),
    { x: float32(rows, inputs) },
    { constants },
  );
  expect((await failure(program.prepare(AbortSignal.abort()))).code).toBe('ERR_ABORTED');
  expect(leaf.opened).toBe(0);
  await program.prepare();
  await program.prepare();
  expect(leaf.opened).toBe(1);
  constants.dispose();
  expect((await failure(program.run({ x }))).code).toBe('ERR_DISPOSED');
  expect((await failure(program.prepare())).code).toBe('ERR_DISPOSED');
  program.dispose();
});

test('a source that failed is asked again', async () => {
  const leaf = source(weight, outputs, inputs);
  let broken = true;
  const constants = new Constants({
    weight: {
      ...leaf,
      open: () => (broken ? Promise.reject(new Error('no disk')) : leaf.open()),
    },
  });
  const program = compile(
    'retried',
    (t, c) => ({ y: linear(t.x, scaleBy(c.weight, 2)) }),
    { x: float32(rows, inputs) },
    { constants },
  );
  await expect(program.run({ x })).rejects.toThrow('no disk');
  broken = false;
  const { y } = await program.run({ x });
  expect(y.shape).toEqual([rows, outputs]);
  y.dispose();
  program.dispose();
  constants.dispose();
});

test('disposed while a run derives: the run fails, nothing stays', async () => {
  const leaf = source(weight, outputs, inputs);
  const constants = new Constants({ weight: leaf });
  const program = compile(
    'disposed',
    (t, c) => ({ y: linear(t.x, scaleBy(c.weight, 2)) }),
    { x: float32(rows, inputs) },
    { constants },
  );
  const run = failure(program.run({ x }));
  constants.dispose();
  expect((await run).code).toBe('ERR_DISPOSED');
  expect(leaf.arrays.every(({ disposed }) => disposed)).toBe(true);
  expect(constants.bytes).toBe(0);
  program.dispose();
});

describe('packLinears', () => {
  const layer = { x: float32(rows, inputs), residual: float32(rows, inputs) };
  const residual = draw(rows, inputs);
  const second = draw(inputs, outputs);
  const build = (weights: Constants<{ weight: ConstantSource; second: ConstantSource }>) =>
    compile(
      'mlp',
      (t, c) => {
        const before = tap('before', linear(t.x, c.weight));
        return { y: add(t.residual, linear(gelu(before), c.second)) };
      },
      layer,
      { constants: weights, specialize: packLinears(() => 'float32'), taps: true },
    );

  test('keeps fused epilogues and taps, holds the packed weights alone', async () => {
    const plain = compile(
      'plain',
      (t) => {
        const before = tap('before', linear(t.x, t.weight));
        return { y: add(t.residual, linear(gelu(before), t.second)) };
      },
      { ...layer, weight: float32(outputs, inputs), second: float32(inputs, outputs) },
      { taps: true },
    );
    const expected = await plain.runWithTaps({ x, residual, weight, second });
    const constants = new Constants({
      weight: source(weight, outputs, inputs),
      second: source(second, inputs, outputs),
    });
    const program = build(constants);
    const found = await program.runWithTaps({ x, residual });
    expect(program.steps.map(({ kernel }) => kernel)).toEqual([
      'linear_float32_forward',
      'linear_float32_forward',
    ]);
    const { bytes } = packedLinear.float32;
    expect(constants.bytes).toBe(bytes(outputs, inputs) + bytes(inputs, outputs));
    for (const name of ['y', 'before']) {
      const [a, b] = [found, expected].map((all) =>
        name === 'y' ? all.outputs.y : all.taps.get(name),
      );
      const [values, reference] = [await a?.read(), await b?.read()];
      const worst = Math.max(
        ...Array.from(values ?? [NaN], (value, i) => Math.abs(value - (reference?.[i] ?? NaN))),
      );
      expect(worst).toBeLessThan(1e-4);
    }
    for (const all of [found, expected]) {
      all.outputs.y.dispose();
      for (const array of all.taps.values()) array.dispose();
    }
    plain.dispose();
    program.dispose();
    constants.dispose();
  });

  test('leaves layers whose weight is no constant', () => {
    const program = compile(
      'free',
      (t) => ({ y: linear(t.x, t.weight) }),
      { x: float32(rows, inputs), weight: float32(outputs, inputs) },
      { specialize: packLinears(() => 'int8') },
    );
    expect(program.steps.map(({ kernel }) => kernel)).toEqual(['linear_forward']);
    program.dispose();
  });
});

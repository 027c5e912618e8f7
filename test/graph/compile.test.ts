import { DeviceArray } from '../../lib/array';
import {
  add,
  checkpoint,
  compile,
  float32,
  gradient,
  int32,
  scope,
  stopGradient,
  tap,
} from '../../lib/graph';
import type { Tensor } from '../../lib/graph';
import { loadAddon } from '../../lib/native/load';
import { accumulate, dot, embedding, gelu, globalNorm, linear, scaleBy } from '../../lib/ops';
import { expectGivenBack } from '../memory';

const x4 = Float32Array.of(1, -2, 3, 0.5);

async function read(array: DeviceArray): Promise<number[]> {
  const values = [...(await array.read())];
  array.dispose();
  return values;
}

describe('run', () => {
  test('gives new arrays in the form of the traced result', async () => {
    const program = compile('sum', ({ a, b }) => ({ sum: add(a, b), list: [add(a, a)] }), {
      a: float32(4),
      b: float32(4),
    });
    const { sum, list } = await program.run({ a: x4, b: x4 });
    expect(await read(sum)).toEqual([2, -4, 6, 1]);
    expect(await read(list[0])).toEqual([2, -4, 6, 1]);
    program.dispose();
  });

  test('may give the contents of one result, and keeps only arrays of its own', async () => {
    const program = compile('sums', ({ a }) => ({ twice: add(a, a), other: gelu(a) }), {
      a: float32(4),
    });
    const { buffers: before } = loadAddon().memory();
    const twice = async (a: Float32Array): Promise<number[]> => [
      ...(await program.read({ a }, (results) => results.twice)),
    ];
    expect(await twice(x4)).toEqual([2, -4, 6, 1]);
    const { buffers: kept } = loadAddon().memory();
    expect(kept).toBe(before + 3);
    expect(await twice(Float32Array.of(1, 2, 3, 4))).toEqual([2, 4, 6, 8]);
    expect(loadAddon().memory().buffers).toBe(kept);
    const together = await Promise.all(
      [1, 2, 3, 4].map((value) => twice(new Float32Array(4).fill(value))),
    );
    expect(together).toEqual([2, 4, 6, 8].map((value) => [value, value, value, value]));
    expect(loadAddon().memory().buffers).toBe(before + 6);
    await expect(program.read({ a: x4.subarray(1) }, ({ twice }) => twice)).rejects.toMatchObject({
      code: 'ERR_SHAPE',
    });
    program.dispose();
    await expect(program.read({ a: x4 }, ({ twice }) => twice)).rejects.toMatchObject({
      code: 'ERR_DISPOSED',
    });
    expect(loadAddon().memory().buffers).toBe(before);
  });

  test('a result that is an input, or twice the same, has memory of its own', async () => {
    const program = compile('identity', ({ a }) => ({ a, again: a }), { a: float32(4) });
    using input = DeviceArray.from(x4);
    const { a, again } = await program.run({ a: input });
    expect(new Set([a, again, input]).size).toBe(3);
    expect(await read(a)).toEqual([...x4]);
    expect(await read(again)).toEqual([...x4]);
    program.dispose();
  });

  test('a donated input is updated in place and given back', async () => {
    const program = compile(
      'accumulate',
      ({ total, a }) => ({ total: accumulate(total, a) }),
      { total: float32(4), a: float32(4) },
      { donate: ['total'] },
    );
    using total = DeviceArray.from(x4);
    const first = await program.run({ total, a: x4 });
    expect(first.total).toBe(total);
    await program.run({ total, a: x4 });
    expect([...(await total.read())]).toEqual([3, -6, 9, 1.5]);
    await expect(program.run({ total: x4, a: x4 })).rejects.toThrow(/total must be a DeviceArray/);
    program.dispose();
  });

  test('taps are read by name, and a tap may be a result as well', async () => {
    const program = compile(
      'taps',
      ({ a }) => ({
        y: scope('part', () => tap('double', add(a, tap('gelu', gelu(a))))),
      }),
      { a: float32(4) },
      { taps: true },
    );
    const before = loadAddon().memory();
    const { y } = await program.run({ a: x4 });
    const values = await read(y);
    expectGivenBack(before);
    const { outputs, taps } = await program.runWithTaps({ a: x4 });
    expect([...taps.keys()].sort()).toEqual(['part.double', 'part.gelu']);
    expect([...(await (taps.get('part.double') ?? outputs.y).read())]).toEqual(values);
    for (const array of new Set([outputs.y, ...taps.values()])) array.dispose();
    program.dispose();
  });

  test('wrong inputs are refused before anything runs', async () => {
    const program = compile('sum', ({ a, b }) => ({ y: add(a, b) }), {
      a: float32(4),
      b: float32(4),
    });
    await expect(program.run({ a: x4 } as never)).rejects.toThrow(/2 arrays, got 1/);
    await expect(program.run({ b: x4, a: x4 })).rejects.toThrow(/must be a, got b/);
    await expect(program.run({ a: x4, b: new Float32Array(5) })).rejects.toThrow(/4/);
    await expect(program.run({ a: x4, b: new Int32Array(4) })).rejects.toThrow(/float32 \[4\]/);
    program.dispose();
  });

  test('a failing step names the program and the step', async () => {
    const program = compile(
      'lookup',
      ({ table, ids }) => ({ y: scope('text', () => embedding(table, ids)) }),
      { table: float32(3, 2), ids: int32(2) },
    );
    const run = program.run({ table: new Float32Array(6), ids: Int32Array.of(1, 3) });
    await expect(run).rejects.toThrow(
      /ids\[1\] must be in \[0, 3\), got 3 .*lookup.*text\/embedding/s,
    );
    program.dispose();
  });

  test('profile times every step', async () => {
    const program = compile('profile', ({ a }) => ({ y: gelu(add(a, a)) }), { a: float32(4) });
    const { outputs, times } = await program.profile({ a: x4 });
    expect(times.map(({ kernel }) => kernel)).toEqual(['add_forward', 'gelu_forward']);
    for (const { nanoseconds } of times) expect(nanoseconds).toBeGreaterThan(0);
    outputs.y.dispose();
    program.dispose();
  });
});

describe('trace', () => {
  test('operations outside of a trace are refused', () => {
    const escaped: Tensor[] = [];
    compile('escape', ({ a }) => ({ y: (escaped.push(a), add(a, a)) }), {
      a: float32(2),
    }).dispose();
    expect(() => add(escaped[0], escaped[0])).toThrow(/while compile\(\) traces/);
  });

  test('a compile inside of a trace is refused', () => {
    const nested = (): unknown =>
      compile('outer', () => compile('inner', ({ a }) => ({ a }), { a: float32(1) }), {
        a: float32(1),
      });
    expect(nested).toThrow(/nested call/);
  });

  test('donate must name an input', () => {
    expect(() =>
      compile('f', ({ a }) => ({ a }), { a: float32(1) }, { donate: ['weights'] }),
    ).toThrow(/got weights/);
  });
});

describe('gradient', () => {
  test('of a value used twice, of one not used, and through stopGradient', async () => {
    const program = compile(
      'gradient',
      ({ a, b }) => gradient(dot(a, add(a, stopGradient(scaleBy(a, 3)))), { a, b }),
      { a: float32(4), b: float32(2) },
    );
    const { a, b } = await program.run({ a: x4, b: new Float32Array(2) });
    // d/da [a·a + a·stop(3a)] = 2a + 3a
    expect(await read(a)).toEqual([...x4].map((value) => 5 * value));
    expect(await read(b)).toEqual([0, 0]);
    program.dispose();
  });

  test('through an operation without one is an error at trace time', () => {
    expect(() =>
      compile('norm', ({ a }) => gradient(globalNorm([a]), { a }), { a: float32(2) }),
    ).toThrow(/must not lie between the loss and what it is differentiated by/);
  });

  test('the loss must be a scalar', () => {
    expect(() =>
      compile('vector', ({ a }) => gradient(add(a, a), { a }), { a: float32(2) }),
    ).toThrow(/loss must have shape \[1\], got \[2\]/);
  });
});

test('checkpointing: less memory, the same bits', async () => {
  const width = 64;
  const depth = 8;
  const layer = (x: Tensor, w: Tensor): Tensor => add(x, linear(gelu(linear(x, w)), w));
  const program = (wrap: (f: typeof layer) => typeof layer) =>
    compile(
      'deep',
      ({ x, w }) => {
        let y = x;
        for (let i = 0; i < depth; i++) y = wrap(layer)(y, w);
        const loss = dot(y, y);
        return { loss, ...gradient(loss, { x, w }) };
      },
      { x: float32(256, width), w: float32(width, width) },
    );
  const inputs = {
    x: Float32Array.from({ length: 256 * width }, (_, i) => Math.sin(i)),
    w: Float32Array.from({ length: width * width }, (_, i) => Math.cos(3 * i) / 20),
  };
  const [plain, saving] = [program((f) => f), program((f) => checkpoint(f))];
  const [a, b] = [await plain.run(inputs), await saving.run(inputs)];
  for (const key of ['loss', 'x', 'w'] as const)
    expect(await read(b[key])).toEqual(await read(a[key]));
  expect(saving.memory.arenaBytes).toBeLessThan(0.6 * plain.memory.arenaBytes);
  plain.dispose();
  saving.dispose();
});

// One product for queries, keys and values gives what three give, forward and backward.
import { DeviceArray } from '../../lib/array';
import type { Spec, Tensor } from '../../lib/graph';
import {
  add,
  checkpoint,
  compile,
  disposeArrays,
  elements,
  float32,
  gradient,
  int32,
  uint8,
} from '../../lib/graph';
import type { AttentionParameters } from '../../lib/nn';
import { attention, joinProjections } from '../../lib/nn';
import * as ops from '../../lib/ops';
import { Random } from '../reference/random';

const width = 24;
const heads = 3;

type Tensors = Record<string, Tensor>;
type Body = (tensors: Tensors) => Tensors;

interface Sizes {
  readonly batch: number;
  readonly tokens: number;
}

function specsOf({ batch, tokens }: Sizes, more: Record<string, Spec> = {}): Record<string, Spec> {
  const projections = ['query', 'key', 'value', 'out'].flatMap((name): [string, Spec][] => [
    [`${name}Weight`, float32(width, width)],
    [`${name}Bias`, float32(width)],
  ]);
  return { x: float32(batch, tokens, width), ...Object.fromEntries(projections), ...more };
}

function parametersOf(t: Tensors): AttentionParameters<Tensor> {
  const layer = (name: string): { weight: Tensor; bias: Tensor } => ({
    weight: t[`${name}Weight`],
    bias: t[`${name}Bias`],
  });
  return { query: layer('query'), key: layer('key'), value: layer('value'), out: layer('out') };
}

function drawn(specs: Record<string, Spec>): Record<string, DeviceArray> {
  const random = new Random(7);
  return Object.fromEntries(
    Object.entries(specs).map(([name, spec]) => {
      const count = elements(spec);
      const values =
        spec.dtype === 'float32'
          ? Float32Array.from({ length: count }, () => 0.4 * random.normal())
          : spec.dtype === 'uint8'
            ? Uint8Array.from({ length: count }, (_, i) => (i % 4 === 3 ? 0 : 1))
            : Int32Array.from([0, 4, 11]);
      return [name, DeviceArray.from(values, spec.shape)];
    }),
  );
}

interface Ran {
  readonly kernels: readonly string[];
  readonly outputs: Readonly<Record<string, Float32Array>>;
}

async function run(specs: Record<string, Spec>, body: Body, joined: boolean): Promise<Ran> {
  const inputs = drawn(specs);
  const program = compile('attention', body, specs, {
    rewrites: joined ? [joinProjections] : [],
  });
  const outputs = await program.run(inputs);
  const read: Record<string, Float32Array> = {};
  for (const [name, array] of Object.entries(outputs)) {
    read[name] = (await array.read()) as Float32Array;
  }
  const kernels = program.steps.map(({ kernel }) => kernel);
  disposeArrays(outputs);
  disposeArrays(inputs);
  program.dispose();
  return { kernels, outputs: read };
}

function count(kernels: readonly string[], word: string): number {
  return kernels.filter((kernel) => kernel === word).length;
}

// Both ways; the products that are left in the joined one.
async function compare(specs: Record<string, Spec>, body: Body): Promise<readonly string[]> {
  const apart = await run(specs, body, false);
  const joined = await run(specs, body, true);
  expect(Object.keys(joined.outputs)).toEqual(Object.keys(apart.outputs));
  // Of all, since the gradient of a key's bias is nothing but rounding.
  const most = Object.values(apart.outputs)
    .map((values) => values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0))
    .reduce((largest, value) => Math.max(largest, value));
  for (const [name, expected] of Object.entries(apart.outputs)) {
    const errors = joined.outputs[name].map((value, i) => Math.abs(value - expected[i]) / most);
    expect(errors.every((error) => error < 2e-6)).toBe(true);
  }
  return joined.kernels;
}

const weights = ['query', 'key', 'value', 'out'].flatMap((name) => [
  `${name}Weight`,
  `${name}Bias`,
]);

function gradients(loss: Tensor, t: Tensors, names: readonly string[]): Tensors {
  return gradient(loss, Object.fromEntries(names.map((name) => [name, t[name]])));
}

describe('joined projections', () => {
  const sizes = { batch: 2, tokens: 9 };

  it('are one product in the forward', async () => {
    const kernels = await compare(specsOf(sizes), (t) => ({
      y: attention(t.x, t.x, parametersOf(t), { heads }),
    }));
    expect(count(kernels, 'linear_forward')).toBe(2);
  });

  it.each([
    ['all gradients', ['x', ...weights]],
    ['gradients of parameters', weights],
    ['the gradient of the input', ['x']],
  ])('are one product in the backward: %s', async (_, names) => {
    const kernels = await compare(specsOf(sizes), (t) => {
      const y = attention(t.x, t.x, parametersOf(t), { heads });
      return gradients(ops.dot(y, y), t, names);
    });
    expect(count(kernels, 'linear_backward_input')).toBe(names.includes('x') ? 2 : 1);
    expect(count(kernels, 'linear_backward_weight')).toBe(names.length > 1 ? 2 : 0);
    // That of the square alone.
    expect(count(kernels, 'add_forward')).toBe(1);
  });

  it('leave what else is added to the gradient of the input', async () => {
    await compare(specsOf(sizes), (t) => {
      const y = add(t.x, attention(t.x, t.x, parametersOf(t), { heads }));
      const z = add(y, attention(y, y, parametersOf(t), { heads }));
      return { z, ...gradients(ops.dot(z, z), t, ['x', ...weights]) };
    });
  });

  it('are recomputed as they are', async () => {
    const kernels = await compare(specsOf(sizes), (t) => {
      const block = checkpoint((x: Tensor) => add(x, attention(x, x, parametersOf(t), { heads })));
      const y = block(t.x);
      return gradients(ops.dot(y, y), t, ['x', ...weights]);
    });
    expect(count(kernels, 'attention_forward')).toBe(2);
    expect(count(kernels, 'join_rows_forward')).toBe(2);
  });

  it('keep a mask', async () => {
    await compare(specsOf(sizes, { keyMask: uint8(2, 9) }), (t) => {
      const y = attention(t.x, t.x, parametersOf(t), { heads, keyMask: t.keyMask });
      return { y, ...gradients(ops.dot(y, y), t, ['x', ...weights]) };
    });
  });

  it('keep segments', async () => {
    const specs = { ...specsOf(sizes), x: float32(13, width), segments: int32(3) };
    await compare(specs, (t) => {
      const y = attention(t.x, t.x, parametersOf(t), { heads, segments: t.segments });
      return { y, ...gradients(ops.dot(y, y), t, ['x', ...weights]) };
    });
  });

  it('are cut over the keys where there are few heads', async () => {
    await compare(specsOf({ batch: 1, tokens: 700 }), (t) => {
      const y = attention(t.x, t.x, parametersOf(t), { heads: 1 });
      return { y, ...gradients(ops.dot(y, y), t, ['x', ...weights]) };
    });
  });

  it('are left apart where somebody else reads one', async () => {
    const kernels = await compare(specsOf(sizes), (t) => {
      const { query, key, value } = parametersOf(t);
      const q = ops.linear(t.x, query.weight, query.bias);
      const k = ops.linear(t.x, key.weight, key.bias);
      const v = ops.linear(t.x, value.weight, value.bias);
      return { y: ops.attention(q, k, v, { heads }), q };
    });
    expect(count(kernels, 'linear_forward')).toBe(3);
  });

  it('are left apart in attention to a memory', async () => {
    const specs = specsOf(sizes, { memory: float32(2, 5, width) });
    const kernels = await compare(specs, (t) => ({
      y: attention(t.x, t.memory, parametersOf(t), { heads }),
    }));
    expect(count(kernels, 'linear_forward')).toBe(4);
  });
});

import { compile, disposeArrays, float32, gradient, pullback } from '../../lib/graph';
import type { Tensor } from '../../lib/graph';
import { add, dot, gelu, linear } from '../../lib/ops';

const specs = {
  x: float32(2, 3),
  weight: float32(4, 3),
  bias: float32(4),
  upstream: float32(2, 4),
};
const inputs = {
  x: Float32Array.of(1, -2, 3, 0.5, -0.25, 2),
  weight: Float32Array.from({ length: 12 }, (_, i) => Math.sin(i)),
  bias: Float32Array.of(0.1, -0.2, 0.3, 0),
  upstream: Float32Array.from({ length: 8 }, (_, i) => Math.cos(i)),
};

function layer({ x, weight, bias }: Record<'x' | 'weight' | 'bias', Tensor>): Tensor {
  return gelu(linear(x, weight, bias));
}

test('is the gradient of the inner product with what comes from above', async () => {
  const program = compile(
    'pullback',
    ({ upstream, ...rest }: Record<keyof typeof specs, Tensor>) => ({
      pulled: pullback([layer(rest)], [upstream], rest),
      whole: gradient(dot(layer(rest), upstream), rest),
    }),
    specs,
  );
  const { pulled, whole } = await program.run(inputs);
  for (const name of ['x', 'weight', 'bias'] as const) {
    expect(await pulled[name].read()).toEqual(await whole[name].read());
  }
  disposeArrays({ pulled, whole });
  program.dispose();
});

test('outputs that are each other’s inputs, or inputs themselves, add up', async () => {
  const program = compile(
    'pullback',
    ({ a, da, dy }: Record<'a' | 'da' | 'dy', Tensor>) => pullback([a, add(a, a)], [da, dy], { a }),
    { a: float32(2), da: float32(2), dy: float32(2) },
  );
  const { a } = await program.run({
    a: Float32Array.of(1, 2),
    da: Float32Array.of(10, 20),
    dy: Float32Array.of(1, 3),
  });
  expect([...(await a.read())]).toEqual([12, 26]);
  a.dispose();
  program.dispose();
});

test('refuses upstream gradients that are not like the outputs', () => {
  const traced = (upstream: (x: Tensor) => readonly Tensor[]) => (): void => {
    compile('wrong', ({ x, y }: Record<'x' | 'y', Tensor>) => pullback([x], upstream(y), { x }), {
      x: float32(2),
      y: float32(3),
    });
  };
  expect(traced((y) => [y])).toThrow('pullback: upstream 0 must have shape [2], got [3]');
  expect(traced(() => [])).toThrow('pullback: upstream must be one for each of 1 outputs, got 0');
});

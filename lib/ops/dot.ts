// Σ a ∘ b over all elements, in a fixed order.
import type { Tensor } from '../graph';
import { expectRank, expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

const dotForward = op<{ a: Tensor; b: Tensor }, 'y', object>({
  name: 'dot',
  infer: ({ a, b }) => {
    expectRank('dot', 'a', a, ['…', 'D']);
    expectSpec('dot', 'b', b, { dtype: 'float32', shape: a.shape });
    return { y: { dtype: 'float32', shape: [1] } };
  },
  kernel: kernels.dotForward,
  precision: { alike: ['a', 'b'] },
  gradient: ({ inputs: { a, b }, gradients: { y: dy } }) =>
    dy === undefined
      ? {}
      : { a: dotBackward({ x: b, factor: dy }, {}).y, b: dotBackward({ x: a, factor: dy }, {}).y },
});

const dotBackward = op<{ x: Tensor; factor: Tensor }, 'y', object>({
  name: 'dot_backward',
  infer: ({ x }) => ({ y: x }),
  kernel: kernels.scaleForward,
  precision: { alike: ['x', 'y'] },
  gradient: 'notDifferentiable',
});

/** The inner product of two tensors of one shape, as (1). @throws ERR_SHAPE, ERR_DTYPE. */
export function dot(a: Tensor, b: Tensor): Tensor {
  return dotForward({ a, b }, {}).y;
}

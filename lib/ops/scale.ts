// Multiplication by a scalar: one that lives on the device, or a constant.
import type { Tensor } from '../graph';
import { expectRank, expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

const scaleForward = op<{ x: Tensor; factor: Tensor }, 'y', object>({
  name: 'scale',
  infer: ({ x, factor }) => {
    expectRank('scale', 'x', x, ['…', 'D']);
    expectSpec('scale', 'factor', factor, { dtype: 'float32', shape: [1] });
    return { y: { dtype: 'float32', shape: x.shape } };
  },
  kernel: kernels.scaleForward,
  precision: { alike: ['x', 'y'] },
  gradient: ({ inputs: { x, factor }, gradients: { y: dy } }) =>
    dy === undefined
      ? {}
      : { x: scale(dy, factor), factor: scaleBackwardFactor({ a: dy, b: x }, {}).y },
});

const scaleBackwardFactor = op<{ a: Tensor; b: Tensor }, 'y', object>({
  name: 'scale_backward_factor',
  infer: () => ({ y: { dtype: 'float32', shape: [1] } }),
  kernel: kernels.dotForward,
  precision: { alike: ['a', 'b'] },
  gradient: 'notDifferentiable',
});

const scaleByForward = op<{ x: Tensor }, 'y', { factor: number }>({
  name: 'scale_by',
  infer: ({ x }) => ({ y: { dtype: 'float32', shape: expectRank('scaleBy', 'x', x, ['…', 'D']) } }),
  kernel: kernels.scaleByForward,
  precision: { alike: ['x', 'y'] },
  gradient: ({ attributes: { factor }, gradients: { y: dy } }) =>
    dy === undefined ? {} : { x: scaleBy(dy, factor) },
});

/** factor · x, with factor (1) a tensor. @throws ERR_SHAPE, ERR_DTYPE. */
export function scale(x: Tensor, factor: Tensor): Tensor {
  return scaleForward({ x, factor }, {}).y;
}

/** factor · x, with a constant factor. @throws ERR_DTYPE. */
export function scaleBy(x: Tensor, factor: number): Tensor {
  return scaleByForward({ x }, { factor }).y;
}

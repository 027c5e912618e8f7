// z = u / (‖u‖ + eps) over the last axis.
import type { Tensor } from '../graph';
import { expectRank, op } from '../graph';
import { kernels } from '../native/kernels';

const l2NormalizeForward = op<{ x: Tensor }, 'y' | 'norm', { eps: number }>({
  name: 'l2_normalize',
  infer: ({ x }) => {
    expectRank('l2Normalize', 'x', x, ['…', 'rows', 'D']);
    return {
      y: { dtype: 'float32', shape: x.shape },
      norm: { dtype: 'float32', shape: x.shape.slice(0, -1) },
    };
  },
  kernel: kernels.l2NormalizeForward,
  precision: { any: ['x'] },
  gradient: ({ inputs: { x }, outputs: { norm }, attributes, gradients: { y: dy } }) =>
    dy === undefined ? {} : { x: l2NormalizeBackward({ dy, x, norm }, attributes).dx },
});

const l2NormalizeBackward = op<{ dy: Tensor; x: Tensor; norm: Tensor }, 'dx', { eps: number }>({
  name: 'l2_normalize_backward',
  infer: ({ x }) => ({ dx: x }),
  kernel: kernels.l2NormalizeBackward,
  precision: { alike: ['x', 'dx'] },
  gradient: 'notDifferentiable',
});

/**
 * Scales every row to unit length.
 *
 * @param x - (…, D) with at least two axes.
 * @param options - `eps`, added to the norm; default 1e-8 (big_vision). A zero row stays zero.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function l2Normalize(x: Tensor, options: { readonly eps?: number } = {}): Tensor {
  return l2NormalizeForward({ x }, { eps: options.eps ?? 1e-8 }).y;
}

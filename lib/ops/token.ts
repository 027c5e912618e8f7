// Pooling without parameters: one token of every sequence, or the mean of all.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, extent, op } from '../graph';
import { kernels } from '../native/kernels';

const tokenSelectForward = op<{ x: Tensor }, 'y', { index: number }>({
  name: 'token_select',
  infer: ({ x }, { index }) => {
    const [batch = 0, length = 0, width = 0] = expectRank('tokenSelect', 'x', x, ['B', 'T', 'D']);
    if (!Number.isInteger(index) || index < 0 || index >= length) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `tokenSelect: index must be in [0, ${String(length)}), got ${String(index)}`,
      );
    }
    return { y: { dtype: 'float32', shape: [batch, width] } };
  },
  kernel: kernels.tokenSelectForward,
  precision: { alike: ['x', 'y'] },
  gradient: ({ inputs: { x }, attributes: { index }, gradients: { y: dy } }) =>
    dy === undefined ? {} : { x: tokenSelectBackward({ dy }, { index, length: extent(x, 1) }).dx },
});

const tokenSelectBackward = op<{ dy: Tensor }, 'dx', { index: number; length: number }>({
  name: 'token_select_backward',
  infer: ({ dy }, { length }) => ({
    dx: { dtype: 'float32', shape: [extent(dy, 0), length, extent(dy, 1)] },
  }),
  kernel: ({ dy, index, dx }) => kernels.tokenSelectBackward({ dy, index, dx }),
  precision: { alike: ['dy', 'dx'] },
  gradient: 'notDifferentiable',
});

const tokenMeanForward = op<{ x: Tensor }, 'y', object>({
  name: 'token_mean',
  infer: ({ x }) => {
    const [batch = 0, , width = 0] = expectRank('tokenMean', 'x', x, ['B', 'T', 'D']);
    return { y: { dtype: 'float32', shape: [batch, width] } };
  },
  kernel: kernels.tokenMeanForward,
  precision: { alike: ['x', 'y'] },
  gradient: ({ inputs: { x }, gradients: { y: dy } }) =>
    dy === undefined ? {} : { x: tokenMeanBackward({ dy }, { length: extent(x, 1) }).dx },
});

const tokenMeanBackward = op<{ dy: Tensor }, 'dx', { length: number }>({
  name: 'token_mean_backward',
  infer: ({ dy }, { length }) => ({
    dx: { dtype: 'float32', shape: [extent(dy, 0), length, extent(dy, 1)] },
  }),
  kernel: ({ dy, dx }) => kernels.tokenMeanBackward({ dy, dx }),
  precision: { alike: ['dy', 'dx'] },
  gradient: 'notDifferentiable',
});

/**
 * x[:, index].
 *
 * @param x - (B, T, D).
 * @returns (B, D).
 * @throws ERR_SHAPE, ERR_ARGUMENT.
 */
export function tokenSelect(x: Tensor, index: number): Tensor {
  return tokenSelectForward({ x }, { index }).y;
}

/** The mean over the tokens of (B, T, D), as (B, D). @throws ERR_SHAPE. */
export function tokenMean(x: Tensor): Tensor {
  return tokenMeanForward({ x }, {}).y;
}

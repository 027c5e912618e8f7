// Pooling without parameters: one token of every sequence, or the mean of all; and a token written into a
// cache.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op } from '../graph';
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

const tokenWriteInPlace = op<{ token: Tensor; positions: Tensor; y: Tensor }, 'written', object>({
  name: 'token_write',
  infer: ({ token, positions, y }) => {
    const [batch = 0, , width = 0] = expectRank('tokenWrite', 'sequences', y, ['B', 'T', 'D']);
    expectSpec('tokenWrite', 'token', token, { dtype: 'float32', shape: [batch, width] });
    expectSpec('tokenWrite', 'positions', positions, { dtype: 'int32', shape: [batch] });
    return { written: y };
  },
  kernel: ({ token, positions, y }) => kernels.tokenWrite({ token, positions, y }),
  inPlace: { written: 'y' },
  precision: 'float32',
  gradient: 'notDifferentiable',
});

/**
 * The sequences with one token of each replaced, in their memory; their former value must not be read
 * afterwards.
 *
 * @param sequences - (B, T, D).
 * @param token - (B, D).
 * @param positions - (B) int32 in [0, T); another one makes the run fail with ERR_ARGUMENT.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function tokenWrite(sequences: Tensor, token: Tensor, positions: Tensor): Tensor {
  return tokenWriteInPlace({ token, positions, y: sequences }, {}).written;
}

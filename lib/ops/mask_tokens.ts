// One learned token in the place of masked ones (masked image modelling).
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op } from '../graph';
import { kernels } from '../native/kernels';

const maskTokensForward = op<{ x: Tensor; mask: Tensor; token: Tensor }, 'y', object>({
  name: 'mask_tokens',
  infer: ({ x, mask, token }) => {
    const [batch = 0, length = 0, width = 0] = expectRank('maskTokens', 'x', x, ['B', 'T', 'D']);
    expectSpec('maskTokens', 'mask', mask, { dtype: 'uint8', shape: [batch, length] });
    expectSpec('maskTokens', 'token', token, { dtype: 'float32', shape: [width] });
    return { y: { dtype: 'float32', shape: x.shape } };
  },
  kernel: kernels.maskTokensForward,
  precision: { alike: ['x', 'y'] },
  gradient: ({ inputs: { mask }, gradients: { y: dy } }) => {
    if (dy === undefined) return {};
    const { dx, dtoken } = maskTokensBackward({ dy, mask }, {});
    return { x: dx, token: dtoken };
  },
});

const maskTokensBackward = op<{ dy: Tensor; mask: Tensor }, 'dx' | 'dtoken', object>({
  name: 'mask_tokens_backward',
  infer: ({ dy }) => ({ dx: dy, dtoken: { dtype: 'float32', shape: [extent(dy, -1)] } }),
  kernel: kernels.maskTokensBackward,
  precision: { alike: ['dy', 'dx'] },
  gradient: 'notDifferentiable',
});

/**
 * x with `token` where the mask is not 0.
 *
 * @param x - (B, T, D).
 * @param mask - (B, T) uint8.
 * @param token - (D).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function maskTokens(x: Tensor, mask: Tensor, token: Tensor): Tensor {
  return maskTokensForward({ x, mask, token }, {}).y;
}

// Rows divided by their sums: weights that add up to one.
import type { Tensor } from '../graph';
import { expectRank, op } from '../graph';
import { kernels } from '../native/kernels';

const rowSharesForward = op<{ x: Tensor }, 'y', object>({
  name: 'row_shares',
  infer: ({ x }) => ({
    y: { dtype: 'float32', shape: expectRank('rowShares', 'x', x, ['…', 'D']) },
  }),
  kernel: kernels.rowSharesForward,
  precision: 'float32',
  gradient: 'notDifferentiable',
});

/**
 * x / Σ x over the last axis; a row whose sum is 0 gives zeros. Not differentiable.
 *
 * @param x - (…, D).
 * @returns (…, D).
 * @throws ERR_DTYPE.
 */
export function rowShares(x: Tensor): Tensor {
  return rowSharesForward({ x }, {}).y;
}

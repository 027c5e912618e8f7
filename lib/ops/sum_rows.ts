// The sum over the first axis, in a fixed order.
import type { Tensor } from '../graph';
import { expectRank, extent, op } from '../graph';
import { kernels } from '../native/kernels';

const sumRowsForward = op<{ x: Tensor }, 'y', object>({
  name: 'sum_rows',
  infer: ({ x }) => {
    const shape = expectRank('sumRows', 'x', x, ['…', 'B', 'D']);
    return { y: { dtype: 'float32', shape: shape.slice(1) } };
  },
  kernel: kernels.sumRowsForward,
  precision: { any: ['x'] },
  gradient: ({ inputs: { x }, gradients: { y: dy } }) =>
    dy === undefined ? {} : { x: sumRowsBackward({ row: dy }, { batch: extent(x, 0) }).y },
});

const sumRowsBackward = op<{ row: Tensor }, 'y', { batch: number }>({
  name: 'sum_rows_backward',
  infer: ({ row }, { batch }) => ({ y: { dtype: 'float32', shape: [batch, ...row.shape] } }),
  kernel: ({ row, y }) => kernels.repeatRowForward({ row, y }),
  precision: { alike: ['row', 'y'] },
  gradient: 'notDifferentiable',
});

/**
 * Σ_i x[i].
 *
 * @param x - (B, …).
 * @returns (…).
 */
export function sumRows(x: Tensor): Tensor {
  return sumRowsForward({ x }, {}).y;
}

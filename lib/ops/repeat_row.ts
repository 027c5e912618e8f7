// One row for every member of the batch, such as the MAP head's probe.
import type { Tensor } from '../graph';
import { expectRank, op } from '../graph';
import { kernels } from '../native/kernels';

const repeatRowForward = op<{ row: Tensor }, 'y', { batch: number }>({
  name: 'repeat_row',
  infer: ({ row }, { batch }) => ({
    y: { dtype: 'float32', shape: [batch, ...expectRank('repeatRow', 'row', row, ['…', 'D'])] },
  }),
  kernel: ({ row, y }) => kernels.repeatRowForward({ row, y }),
  precision: { alike: ['row', 'y'] },
  gradient: ({ gradients: { y: dy } }) =>
    dy === undefined ? {} : { row: repeatRowBackward({ x: dy }, {}).y },
});

const repeatRowBackward = op<{ x: Tensor }, 'y', object>({
  name: 'repeat_row_backward',
  infer: ({ x }) => ({ y: { dtype: 'float32', shape: x.shape.slice(1) } }),
  kernel: kernels.sumRowsForward,
  precision: { any: ['x'] },
  gradient: 'notDifferentiable',
});

/**
 * The row `batch` times.
 *
 * @param row - (…).
 * @returns (batch, …).
 */
export function repeatRow(row: Tensor, batch: number): Tensor {
  return repeatRowForward({ row }, { batch }).y;
}

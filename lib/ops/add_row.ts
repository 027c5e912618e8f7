// A term shared by the whole batch, such as learned positions.
import type { Tensor } from '../graph';
import { expectRank, expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

const addRowForward = op<{ x: Tensor; row: Tensor }, 'y', object>({
  name: 'add_row',
  infer: ({ x, row }) => {
    expectRank('addRow', 'x', x, ['…', 'B', 'D']);
    expectSpec('addRow', 'row', row, { dtype: 'float32', shape: x.shape.slice(1) });
    return { y: { dtype: 'float32', shape: x.shape } };
  },
  kernel: kernels.addRowForward,
  precision: { alike: ['x', 'y'] },
  gradient: ({ gradients: { y: dy } }) =>
    dy === undefined ? {} : { x: dy, row: addRowBackward({ x: dy }, {}).y },
});

const addRowBackward = op<{ x: Tensor }, 'y', object>({
  name: 'add_row_backward',
  infer: ({ x }) => ({ y: { dtype: 'float32', shape: x.shape.slice(1) } }),
  kernel: kernels.sumRowsForward,
  precision: { any: ['x'] },
  gradient: 'notDifferentiable',
});

/**
 * x[i] + row for every i.
 *
 * @param x - (B, …).
 * @param row - (…).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function addRow(x: Tensor, row: Tensor): Tensor {
  return addRowForward({ x, row }, {}).y;
}

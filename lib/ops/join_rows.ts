// Arrays under one another, and ranges of the rows of one.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { elements, expectSpec, extent, op } from '../graph';
import { kernels } from '../native/kernels';

const joinForward = op<{ parts: readonly Tensor[] }, 'y', object>({
  name: 'join_rows',
  infer: ({ parts }) => {
    const [first] = parts;
    if (parts.length === 0) {
      throw new SiglipError('ERR_ARGUMENT', 'joinRows: parts must not be empty, got none');
    }
    const row = first.shape.slice(1);
    for (const part of parts) {
      expectSpec('joinRows', 'a part', part, {
        dtype: 'float32',
        shape: [extent(part, 0), ...row],
      });
    }
    const rows = parts.reduce((sum, part) => sum + extent(part, 0), 0);
    return { y: { dtype: 'float32', shape: [rows, ...row] } };
  },
  kernel: kernels.joinRowsForward,
  precision: { narrow: ['y'], any: ['parts'] },
  gradient: 'notDifferentiable',
});

/** Arrays (R_i, …) under one another, (Σ R_i, …). Not differentiable. @throws ERR_SHAPE. */
export function joinRows(parts: readonly Tensor[]): Tensor {
  return joinForward({ parts }, {}).y;
}

const rangeForward = op<{ x: Tensor }, 'y', { first: number; rows: number }>({
  name: 'row_range',
  infer: ({ x }, { first, rows }) => {
    if (first < 0 || rows < 1 || first + rows > extent(x, 0)) {
      throw new SiglipError(
        'ERR_SHAPE',
        `rowRange: rows must be within the ${String(extent(x, 0))} there are, got ${String(rows)} from ${String(first)} on`,
      );
    }
    return { y: { dtype: x.dtype, shape: [rows, ...x.shape.slice(1)] } };
  },
  kernel: 'alias',
  aliasOffset: ({ x }, { first }) => (first * elements(x)) / extent(x, 0),
  precision: { alike: ['x', 'y'] },
  gradient: 'notDifferentiable',
});

/** Rows [first, first + rows) of x, in its memory. Not differentiable. @throws ERR_SHAPE. */
export function rowRange(x: Tensor, first: number, rows: number): Tensor {
  return rangeForward({ x }, { first, rows }).y;
}

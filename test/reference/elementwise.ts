// The glue between the larger operations.
import type { NdArray } from './nd_array';
import { inner, item, map, scalar, zeros, zip } from './nd_array';
import { sumRows } from './reduce';

/** y = a + b, same shape. Its gradient is dy for both. */
export function add(a: NdArray, b: NdArray): NdArray {
  return zip(a, b, (x, y) => x + y);
}

/** x (B, …), row (…) -> x[i] + row. */
export function addRow(x: NdArray, row: NdArray): NdArray {
  return {
    shape: [...x.shape],
    data: x.data.map((value, i) => value + row.data[i % row.data.length]),
  };
}

/** dx = dy, drow = Σ_i dy[i]. */
export function addRowBackward(dy: NdArray): { dx: NdArray; drow: NdArray } {
  return { dx: dy, drow: sumRows(dy) };
}

/** row (…) -> (B, …), the row repeated. Its gradient is the sum over rows. */
export function repeatRow(row: NdArray, batch: number): NdArray {
  return addRow(zeros([batch, ...row.shape]), row);
}

/** y = factor · x, factor (1). */
export function scale(x: NdArray, factor: NdArray): NdArray {
  return map(x, (value) => value * item(factor));
}

/** dx = factor · dy, dfactor = Σ dy ∘ x. */
export function scaleBackward(
  dy: NdArray,
  x: NdArray,
  factor: NdArray,
): { dx: NdArray; dfactor: NdArray } {
  return { dx: scale(dy, factor), dfactor: scalar(inner(dy, x)) };
}

/** y = factor · x with a constant factor. Its gradient is itself. */
export function scaleBy(x: NdArray, factor: number): NdArray {
  return map(x, (value) => value * factor);
}

/** momentum · average + (1 − momentum) · x. */
export function movingAverage(average: NdArray, x: NdArray, momentum: number): NdArray {
  return zip(average, x, (a, b) => momentum * a + (1 - momentum) * b);
}

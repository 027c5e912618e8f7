// Sums.
import type { NdArray } from './nd_array';
import { elements, inner, item, map, scalar, zeros } from './nd_array';

/** x (B, …) -> (…) = Σ_i x[i]. */
export function sumRows(x: NdArray): NdArray {
  const y = zeros(x.shape.slice(1));
  const size = elements(y.shape);
  x.data.forEach((value, i) => {
    y.data[i % size] += value;
  });
  return y;
}

/** a, b of one shape -> (1) = Σ a ∘ b. */
export function dot(a: NdArray, b: NdArray): NdArray {
  return scalar(inner(a, b));
}

/** da = dy b, db = dy a. */
export function dotBackward(dy: NdArray, a: NdArray, b: NdArray): { da: NdArray; db: NdArray } {
  return { da: map(b, (value) => value * item(dy)), db: map(a, (value) => value * item(dy)) };
}

/** (1) = √(Σ over all tensors and elements of x²). */
export function globalNorm(tensors: readonly NdArray[]): NdArray {
  return scalar(Math.sqrt(tensors.reduce((sum, x) => sum + inner(x, x), 0)));
}

/** x (…, D) -> x / Σ_D x; zeros where the sum is 0. */
export function rowShares(x: NdArray): NdArray {
  const D = x.shape[x.shape.length - 1];
  const y = { shape: x.shape, data: new Float64Array(x.data.length) };
  for (let row = 0; row < x.data.length; row += D) {
    const sum = x.data.subarray(row, row + D).reduce((total, value) => total + value, 0);
    if (sum === 0) continue;
    for (let i = row; i < row + D; i++) y.data[i] = x.data[i] / sum;
  }
  return y;
}

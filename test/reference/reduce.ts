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

// x Wᵀ with both operands rounded to bfloat16.
import { toBfloat16 } from './cast';
import { linear } from './linear';
import type { NdArray } from './nd_array';
import { map } from './nd_array';

/** x (…, K), weight (N, K) -> (…, N). */
export function product(x: NdArray, weight: NdArray): NdArray {
  return linear(map(x, toBfloat16), map(weight, toBfloat16));
}

// GELU, tanh approximation: y = ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))).
import type { NdArray } from './nd_array';
import { map, zip } from './nd_array';

const SLOPE = Math.sqrt(2 / Math.PI);
const CUBIC = 0.044715;

/** x -> gelu(x), same shape. */
export function gelu(x: NdArray): NdArray {
  return map(x, (v) => 0.5 * v * (1 + Math.tanh(SLOPE * (v + CUBIC * v ** 3))));
}

/** dx = dy · gelu'(x). */
export function geluBackward(dy: NdArray, x: NdArray): NdArray {
  return zip(dy, x, (g, v) => {
    const t = Math.tanh(SLOPE * (v + CUBIC * v ** 3));
    const dt = (1 - t * t) * SLOPE * (1 + 3 * CUBIC * v * v);
    return g * (0.5 * (1 + t) + 0.5 * v * dt);
  });
}

// GELU, tanh approximation: y = ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), and x Φ(x) itself.
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

/** Φ(x): the series of erf about 0, or the continued fraction of erfc, both to float64. */
function normalDistribution(x: number): number {
  const z = Math.abs(x) / Math.SQRT2;
  if (z < 2.5) {
    let term = z;
    let sum = z;
    for (let n = 1; Math.abs(term) > 1e-18; n++) {
      term *= -(z * z) / n;
      sum += term / (2 * n + 1);
    }
    return 0.5 + (Math.sign(x) * sum) / Math.sqrt(Math.PI);
  }
  let fraction = z;
  for (let n = 60; n >= 1; n--) fraction = z + n / 2 / fraction;
  const upper = Math.exp(-z * z) / fraction / Math.sqrt(Math.PI) / 2;
  return x > 0 ? 1 - upper : upper;
}

/** x -> x Φ(x). */
export function geluErf(x: NdArray): NdArray {
  return map(x, (v) => v * normalDistribution(v));
}

/** dx = dy · (Φ(x) + x φ(x)). */
export function geluErfBackward(dy: NdArray, x: NdArray): NdArray {
  return zip(dy, x, (g, v) => {
    const density = Math.exp(-0.5 * v * v) / Math.sqrt(2 * Math.PI);
    return g * (normalDistribution(v) + v * density);
  });
}

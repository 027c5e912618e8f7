// x Wᵀ with both operands quantised, in the very integers of the kernel: scales and factors are float32,
// as is what is rounded; the sum of integers is exact, and what follows float64.
import type { NdArray } from './nd_array';
import { rows, zeros } from './nd_array';

const LEAST = 2 ** -100;
const WEIGHT_LEVELS = 127;

/** Largest integer that stands for an activation, of a product over `inputs`. */
export function levels(inputs: number, bytes: boolean): number {
  return bytes ? 127 : Math.min(32767, Math.floor((2 ** 31 - 1) / (WEIGHT_LEVELS * inputs)));
}

// Ties to even.
function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Integers in [−most, most] per row, and the row's scale; NaN where the row is not finite. */
export function quantise(x: NdArray, most: number): { integers: NdArray; scales: Float64Array } {
  const K = x.shape[x.shape.length - 1];
  const integers = zeros(x.shape);
  const scales = new Float64Array(rows(x));
  for (let m = 0; m < scales.length; m++) {
    const row = x.data.subarray(m * K, (m + 1) * K);
    const largest = row.reduce((best, value) => Math.max(best, Math.abs(value)), 0);
    if (!Number.isFinite(largest)) {
      scales[m] = NaN;
    } else if (largest >= LEAST) {
      const factor = Math.fround(most / largest);
      scales[m] = Math.fround(largest / most);
      row.forEach((value, k) => {
        integers.data[m * K + k] = roundHalfEven(Math.fround(value * factor));
      });
    }
  }
  return { integers, scales };
}

/** x (…, K), weight (N, K) -> (…, N), activations in integers of up to `most`. */
export function product(x: NdArray, weight: NdArray, most: number): NdArray {
  const [N, K] = weight.shape;
  const a = quantise(x, most);
  const b = quantise(weight, WEIGHT_LEVELS);
  const y = zeros([...x.shape.slice(0, -1), N]);
  for (let m = 0; m < a.scales.length; m++) {
    for (let n = 0; n < N; n++) {
      let sum = 0;
      for (let k = 0; k < K; k++) {
        sum += a.integers.data[m * K + k] * b.integers.data[n * K + k];
      }
      y.data[m * N + n] = sum * a.scales[m] * b.scales[n];
    }
  }
  return y;
}

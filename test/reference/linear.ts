// y = x Wᵀ + bias, W in checkpoint layout (out, in).
import type { NdArray } from './nd_array';
import { rows, width, zeros } from './nd_array';

/** x (…, K), weight (N, K), bias (N) -> (…, N). */
export function linear(x: NdArray, weight: NdArray, bias?: NdArray): NdArray {
  const [N, K] = weight.shape;
  const y = zeros([...x.shape.slice(0, -1), N]);
  for (let m = 0; m < rows(x); m++) {
    for (let n = 0; n < N; n++) {
      let sum = bias === undefined ? 0 : bias.data[n];
      for (let k = 0; k < K; k++) sum += x.data[m * K + k] * weight.data[n * K + k];
      y.data[m * N + n] = sum;
    }
  }
  return y;
}

/** dx = dy W, dweight = dyᵀ x, dbias = Σ_m dy. */
export function linearBackward(
  dy: NdArray,
  x: NdArray,
  weight: NdArray,
): { dx: NdArray; dweight: NdArray; dbias: NdArray } {
  const K = width(x);
  const N = width(dy);
  const dx = zeros(x.shape);
  const dweight = zeros(weight.shape);
  const dbias = zeros([N]);
  for (let m = 0; m < rows(x); m++) {
    for (let n = 0; n < N; n++) {
      const g = dy.data[m * N + n];
      dbias.data[n] += g;
      for (let k = 0; k < K; k++) {
        dx.data[m * K + k] += g * weight.data[n * K + k];
        dweight.data[n * K + k] += g * x.data[m * K + k];
      }
    }
  }
  return { dx, dweight, dbias };
}

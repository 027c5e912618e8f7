// y = (x − mean) rstd weight + bias over the last axis, rstd = 1/√(var + eps), biased variance.
import type { NdArray } from './nd_array';
import { rows, width, zeros } from './nd_array';

/** mean and rstd of every row, (rows). */
function statistics(x: NdArray, eps: number): { mean: Float64Array; rstd: Float64Array } {
  const D = width(x);
  const mean = new Float64Array(rows(x));
  const rstd = new Float64Array(rows(x));
  for (let m = 0; m < rows(x); m++) {
    for (let d = 0; d < D; d++) mean[m] += x.data[m * D + d] / D;
    let variance = 0;
    for (let d = 0; d < D; d++) variance += (x.data[m * D + d] - mean[m]) ** 2 / D;
    rstd[m] = 1 / Math.sqrt(variance + eps);
  }
  return { mean, rstd };
}

/** x (…, D), weight (D), bias (D) -> (…, D). */
export function layerNorm(x: NdArray, weight: NdArray, bias: NdArray, eps: number): NdArray {
  const D = width(x);
  const { mean, rstd } = statistics(x, eps);
  const y = zeros(x.shape);
  for (let m = 0; m < rows(x); m++) {
    for (let d = 0; d < D; d++) {
      y.data[m * D + d] = (x.data[m * D + d] - mean[m]) * rstd[m] * weight.data[d] + bias.data[d];
    }
  }
  return y;
}

/** x̂ = (x − mean) rstd, g = dy weight: dx = rstd (g − mean(g) − x̂ mean(g x̂)), dweight = Σ dy x̂, dbias = Σ dy. */
export function layerNormBackward(
  dy: NdArray,
  x: NdArray,
  weight: NdArray,
  eps: number,
): { dx: NdArray; dweight: NdArray; dbias: NdArray } {
  const D = width(x);
  const { mean, rstd } = statistics(x, eps);
  const dx = zeros(x.shape);
  const dweight = zeros([D]);
  const dbias = zeros([D]);
  for (let m = 0; m < rows(x); m++) {
    const normalized = (d: number): number => (x.data[m * D + d] - mean[m]) * rstd[m];
    let meanG = 0;
    let meanGX = 0;
    for (let d = 0; d < D; d++) {
      const g = dy.data[m * D + d] * weight.data[d];
      meanG += g / D;
      meanGX += (g * normalized(d)) / D;
      dweight.data[d] += dy.data[m * D + d] * normalized(d);
      dbias.data[d] += dy.data[m * D + d];
    }
    for (let d = 0; d < D; d++) {
      const g = dy.data[m * D + d] * weight.data[d];
      dx.data[m * D + d] = rstd[m] * (g - meanG - normalized(d) * meanGX);
    }
  }
  return { dx, dweight, dbias };
}

// Pooling without parameters.
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

/** x (B, T, D) -> (B, D), token `index` of every sequence. */
export function tokenSelect(x: NdArray, index: number): NdArray {
  const [B, T, D] = x.shape;
  const y = zeros([B, D]);
  for (let b = 0; b < B; b++) {
    for (let d = 0; d < D; d++) y.data[b * D + d] = x.data[(b * T + index) * D + d];
  }
  return y;
}

/** dy at token `index`, zero elsewhere. */
export function tokenSelectBackward(dy: NdArray, x: NdArray, index: number): NdArray {
  const [B, T, D] = x.shape;
  const dx = zeros(x.shape);
  for (let b = 0; b < B; b++) {
    for (let d = 0; d < D; d++) dx.data[(b * T + index) * D + d] = dy.data[b * D + d];
  }
  return dx;
}

/** x (B, T, D) -> (B, D) = (1/T) Σ_t x[b, t]. */
export function tokenMean(x: NdArray): NdArray {
  const [B, T, D] = x.shape;
  const y = zeros([B, D]);
  for (let b = 0; b < B; b++) {
    for (let t = 0; t < T; t++) {
      for (let d = 0; d < D; d++) y.data[b * D + d] += x.data[(b * T + t) * D + d] / T;
    }
  }
  return y;
}

/** dy/T at every token. */
export function tokenMeanBackward(dy: NdArray, x: NdArray): NdArray {
  const [B, T, D] = x.shape;
  const dx = zeros(x.shape);
  for (let b = 0; b < B; b++) {
    for (let t = 0; t < T; t++) {
      for (let d = 0; d < D; d++) dx.data[(b * T + t) * D + d] = dy.data[b * D + d] / T;
    }
  }
  return dx;
}

/** x with x[b, positions[b]] = token[b]. */
export function tokenWrite(x: NdArray, token: NdArray, positions: NdArray): NdArray {
  const [B, T, D] = x.shape;
  const y = { shape: x.shape, data: x.data.slice() };
  for (let b = 0; b < B; b++) {
    y.data.set(token.data.subarray(b * D, (b + 1) * D), (b * T + positions.data[b]) * D);
  }
  return y;
}

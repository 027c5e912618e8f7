// z = u / (n + eps), n = ‖u‖₂ over the last axis.
import type { NdArray } from './nd_array';
import { rows, width, zeros } from './nd_array';

/** x (…, D) -> (…, D). */
export function l2Normalize(x: NdArray, eps: number): NdArray {
  const D = width(x);
  const y = zeros(x.shape);
  for (let m = 0; m < rows(x); m++) {
    const norm = Math.hypot(...x.data.subarray(m * D, (m + 1) * D));
    for (let d = 0; d < D; d++) y.data[m * D + d] = x.data[m * D + d] / (norm + eps);
  }
  return y;
}

/** du = dz/(n + eps) − u (u·dz) / (n (n + eps)²); zero where n = 0. */
export function l2NormalizeBackward(dy: NdArray, x: NdArray, eps: number): NdArray {
  const D = width(x);
  const dx = zeros(x.shape);
  for (let m = 0; m < rows(x); m++) {
    const norm = Math.hypot(...x.data.subarray(m * D, (m + 1) * D));
    if (norm === 0) continue;
    let along = 0;
    for (let d = 0; d < D; d++) along += x.data[m * D + d] * dy.data[m * D + d];
    for (let d = 0; d < D; d++) {
      dx.data[m * D + d] =
        dy.data[m * D + d] / (norm + eps) -
        (x.data[m * D + d] * along) / (norm * (norm + eps) ** 2);
    }
  }
  return dx;
}

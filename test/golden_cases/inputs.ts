// The inputs of the golden cases in the layouts that our towers take.
import type { NdArray } from '../reference/nd_array';
import { zeros } from '../reference/nd_array';

/** Images (B, height, width, 3) -> (B, 3, height, width). */
export function channelsFirst(images: NdArray): NdArray {
  const [B, height, width, C] = images.shape;
  const y = zeros([B, C, height, width]);
  for (let b = 0; b < B; b++) {
    for (let c = 0; c < C; c++) {
      for (let p = 0; p < height * width; p++) {
        y.data[(b * C + c) * height * width + p] = images.data[(b * height * width + p) * C + c];
      }
    }
  }
  return y;
}

/** Images (B, 3, height, width) -> (B, height, width, 3). */
export function channelsLast(images: NdArray): NdArray {
  const [B, C, height, width] = images.shape;
  const y = zeros([B, height, width, C]);
  for (let b = 0; b < B; b++) {
    for (let c = 0; c < C; c++) {
      for (let p = 0; p < height * width; p++) {
        y.data[(b * height * width + p) * C + c] = images.data[(b * C + c) * height * width + p];
      }
    }
  }
  return y;
}

/** yidx, xidx (B, L) of every token -> the grids (B, 2), one more than the largest index. */
export function gridsOf(yidx: NdArray, xidx: NdArray): NdArray {
  const [B, L] = yidx.shape;
  const grids = zeros([B, 2]);
  for (let b = 0; b < B; b++) {
    grids.data[b * 2] = 1 + Math.max(...yidx.data.subarray(b * L, (b + 1) * L));
    grids.data[b * 2 + 1] = 1 + Math.max(...xidx.data.subarray(b * L, (b + 1) * L));
  }
  return grids;
}

/** The rows of x (B, L, D) whose mask (B, L) is 1, one after the other. */
export function validRows(x: { readonly data: ArrayLike<number> }, mask: NdArray): Float64Array {
  const D = x.data.length / mask.data.length;
  const kept: number[] = [];
  mask.data.forEach((valid, row) => {
    if (valid === 1) for (let d = 0; d < D; d++) kept.push(x.data[row * D + d]);
  });
  return Float64Array.from(kept);
}

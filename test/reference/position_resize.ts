// Bilinear, antialiased resize of a square grid of positions to each image's own grid of patches.
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

/** The (m, n) matrix of one axis: s = n/m, f = max(s, 1), c = s (i + ½), w_k = max(0, 1 − |k − c + ½|/f), rows sum to 1. */
export function resizeWeights(n: number, m: number): NdArray {
  const s = n / m;
  const f = Math.max(s, 1);
  const weights = zeros([m, n]);
  for (let i = 0; i < m; i++) {
    const c = s * (i + 0.5);
    const low = Math.max(Math.floor(c - f + 0.5), 0);
    const high = Math.min(Math.floor(c + f + 0.5), n);
    let total = 0;
    for (let k = low; k < high; k++) {
      weights.data[i * n + k] = Math.max(0, 1 - Math.abs(k - c + 0.5) / f);
      total += weights.data[i * n + k];
    }
    for (let k = low; k < high; k++) weights.data[i * n + k] /= total;
  }
  return weights;
}

/** Calls visit(row of positions, row of grid, weight) for every pair that takes part. */
function forEachWeight(
  grid: readonly number[],
  shapes: NdArray,
  length: number,
  visit: (position: number, source: number, weight: number) => void,
): void {
  const n = Math.sqrt(grid[0]);
  for (let b = 0; b < shapes.shape[0]; b++) {
    const gh = shapes.data[b * 2];
    const gw = shapes.data[b * 2 + 1];
    const wy = resizeWeights(n, gh);
    const wx = resizeWeights(n, gw);
    for (let y = 0; y < gh; y++) {
      for (let x = 0; x < gw; x++) {
        for (let ky = 0; ky < n; ky++) {
          for (let kx = 0; kx < n; kx++) {
            const weight = wy.data[y * n + ky] * wx.data[x * n + kx];
            if (weight !== 0) visit(b * length + y * gw + x, ky * n + kx, weight);
          }
        }
      }
    }
  }
}

/** grid (n·n, D), shapes (B, 2) rows (gh, gw) -> (B, length, D); rows beyond gh·gw are zero. */
export function positionResize(grid: NdArray, shapes: NdArray, length: number): NdArray {
  const D = grid.shape[1];
  const positions = zeros([shapes.shape[0], length, D]);
  forEachWeight(grid.shape, shapes, length, (position, source, weight) => {
    for (let d = 0; d < D; d++)
      positions.data[position * D + d] += weight * grid.data[source * D + d];
  });
  return positions;
}

/** The transpose, summed over the batch. */
export function positionResizeBackward(
  dpositions: NdArray,
  shapes: NdArray,
  grid: NdArray,
): NdArray {
  const D = grid.shape[1];
  const dgrid = zeros(grid.shape);
  forEachWeight(grid.shape, shapes, dpositions.shape[1], (position, source, weight) => {
    for (let d = 0; d < D; d++)
      dgrid.data[source * D + d] += weight * dpositions.data[position * D + d];
  });
  return dgrid;
}

// The learned positions of a fixed-resolution model for images of another size: the grid is resized
// with a cubic kernel (a = −0.75), half-pixel centres, borders repeated and without antialiasing, as
// `interpolate_pos_encoding` of transformers does (torch interpolate, bicubic, align_corners false).
import { SiglipError } from '../errors';
import type { ModelConfig } from '../model';
import { checkConfig, gridSide } from '../model';

const A = -0.75;
const { floor, min, max } = Math;

// Weight of a sample at this distance.
function cubic(distance: number): number {
  const x = Math.abs(distance);
  if (x <= 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  if (x < 2) return ((A * x - 5 * A) * x + 8 * A) * x - 4 * A;
  return 0;
}

interface Samples {
  readonly indices: Int32Array;
  readonly weights: Float64Array;
}

// Four samples for every cell of an axis that goes from n cells to m.
function samplesOf(n: number, m: number): Samples {
  const indices = new Int32Array(4 * m);
  const weights = new Float64Array(4 * m);
  for (let i = 0; i < m; i++) {
    const centre = ((i + 0.5) * n) / m - 0.5;
    const first = floor(centre) - 1;
    for (let k = 0; k < 4; k++) {
      indices[4 * i + k] = min(n - 1, max(0, first + k));
      weights[4 * i + k] = cubic(centre - (first + k));
    }
  }
  return { indices, weights };
}

/**
 * Resizes a square grid of positions.
 *
 * @param grid - (n·n, D), row by row
 * @param width - D
 * @param side - m
 * @returns (m·m, D); the grid itself where n is m
 */
export function resizePositionGrid(grid: Float32Array, width: number, side: number): Float32Array {
  const n = Math.sqrt(grid.length / width);
  if (n === side) return grid;
  const { indices, weights } = samplesOf(n, side);
  const rows = new Float64Array(side * n * width);
  for (let y = 0; y < side; y++) {
    for (let k = 0; k < 4; k++) {
      const weight = weights[4 * y + k];
      const from = indices[4 * y + k] * n * width;
      const to = y * n * width;
      for (let i = 0; i < n * width; i++) rows[to + i] += weight * grid[from + i];
    }
  }
  const result = new Float32Array(side * side * width);
  const sum = new Float64Array(width);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      sum.fill(0);
      for (let k = 0; k < 4; k++) {
        const weight = weights[4 * x + k];
        const from = (y * n + indices[4 * x + k]) * width;
        for (let i = 0; i < width; i++) sum[i] += weight * rows[from + i];
      }
      result.set(sum, (y * side + x) * width);
    }
  }
  return result;
}

/**
 * The config of a fixed-resolution model for square images of another size.
 *
 * @throws SiglipError ERR_ARGUMENT for a NaFlex model, which takes any size as it is, or a size that
 * is no number of pixels of at least one patch
 */
export function configForImageSize(config: ModelConfig, imageSize: number): ModelConfig {
  const { vision } = config;
  if (vision.layout === 'naflex') {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `load: imageSize must be absent for a NaFlex model, got ${String(imageSize)}\n` +
        'to do: choose the number of patches with maxPatches when embedding.',
    );
  }
  if (!Number.isSafeInteger(imageSize) || imageSize < vision.patch || imageSize > MAX_SIZE) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `load: imageSize must be an integer from ${String(vision.patch)} (one patch) to ${String(MAX_SIZE)}, ` +
        `got ${String(imageSize)}`,
    );
  }
  const resized = { ...vision, imageSize };
  return checkConfig({
    ...config,
    vision: { ...resized, positions: gridSide(resized) ** 2 },
  });
}

// Far more than attention over all patches can bear.
const MAX_SIZE = 1 << 14;

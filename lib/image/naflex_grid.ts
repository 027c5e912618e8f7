// The NaFlex input: an image resized to whole patches within a budget, aspect ratio roughly kept.
import { SiglipError } from '../errors';

/** Rows and columns of patches. */
export interface PatchGrid {
  readonly rows: number;
  readonly columns: number;
}

// The search stops when the interval of scales is shorter than this.
const SCALE_TOLERANCE = 1e-5;
const LARGEST_SCALE = 100;

/**
 * The grid an image of `height` × `width` pixels is resized to: the largest scale, found by
 * bisection, at which both sides rounded **up** to whole patches stay within `maxPatches`. Small
 * images are enlarged to fill the budget, by a factor of 100 at most.
 *
 * Same result as `get_image_size_for_max_num_patches` of the reference, for every size.
 *
 * @throws SiglipError ERR_IMAGE when the image is so long that one row of patches exceeds the budget
 */
export function naflexGrid(
  height: number,
  width: number,
  patch: number,
  maxPatches: number,
): PatchGrid {
  for (const [name, value] of Object.entries({ height, width, patch, maxPatches })) {
    if (!Number.isSafeInteger(value) || value < 1) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `naflexGrid: ${name} must be a positive integer, got ${String(value)}`,
      );
    }
  }
  const patches = (extent: number, scale: number): number =>
    Math.max(patch, Math.ceil((extent * scale) / patch) * patch) / patch;
  let low = SCALE_TOLERANCE / 10;
  let high = LARGEST_SCALE;
  while (high - low >= SCALE_TOLERANCE) {
    const scale = (low + high) / 2;
    if (patches(height, scale) * patches(width, scale) <= maxPatches) low = scale;
    else high = scale;
  }
  const grid = { rows: patches(height, low), columns: patches(width, low) };
  if (grid.rows * grid.columns > maxPatches) {
    throw new SiglipError(
      'ERR_IMAGE',
      `naflexGrid: an image of ${String(height)} × ${String(width)} pixels (height × width) must fit ` +
        `into ${String(maxPatches)} patches, got ${String(grid.rows)} × ${String(grid.columns)} at ` +
        'the smallest scale',
    );
  }
  return grid;
}

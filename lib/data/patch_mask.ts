// Which patches the student does not see: scattered ones (TIPS, arXiv 2410.16512; SigLIP 2,
// arXiv 2502.14786 §2.3 masks half of them) or rectangles of them (BEiT, iBOT; DINOv2 data/masking.py).
import type { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';

/** Patches of an image. */
export interface PatchGridSize {
  readonly rows: number;
  readonly columns: number;
}

export interface PatchMaskOptions {
  /** Default `'random'`. */
  readonly kind?: 'random' | 'block';
  /** Share of the patches that is masked, from 0 to 1; default 0.5 (SigLIP 2). */
  readonly ratio?: number;
}

// Of DINOv2's MaskingGenerator.
const BLOCK_TRIES = 10;
const LEAST_BLOCK = 4;
const LEAST_ASPECT = 0.3;

/**
 * Draws the mask of one image: exactly round(ratio · N) patches, of `'block'` masks at most so many,
 * where no further block is found.
 *
 * @returns (N) bytes, 1 where a patch is masked
 * @throws ERR_ARGUMENT for a grid or a ratio that is none
 */
export function patchMask(
  random: Philox4x32,
  { rows, columns }: PatchGridSize,
  options: PatchMaskOptions = {},
): Uint8Array {
  const { kind = 'random' } = options;
  const count = maskedPatches(rows, columns, options);
  const mask = new Uint8Array(rows * columns);
  if (kind === 'random') scatter(random, count, mask);
  else placeBlocks(random, { rows, columns }, count, mask);
  return mask;
}

/** The masks of a batch, as the vision tower and the masked loss take them. */
export interface MaskedBatch {
  /** (B, N): 1 where a patch is masked. */
  readonly mask: Uint8Array;
  /**
   * (B · round(ratio · N)): b·N + n of every masked patch. An image with fewer of them fills up with
   * its first patch.
   */
  readonly rows: Int32Array;
  /** As many: 1 / (B · masked patches of the image); 0 where a row fills up. */
  readonly weights: Float32Array;
}

/**
 * Draws the masks of a batch, each image's from a stream of its own.
 *
 * @param randoms - one stream per image
 * @throws ERR_ARGUMENT
 * @example
 * const { mask, rows, weights } = maskBatch(
 *   indices.map((index) => new Philox4x32(seed, `mask/${index}`)),
 *   { rows: 16, columns: 16 },
 * );
 */
export function maskBatch(
  randoms: readonly Philox4x32[],
  grid: PatchGridSize,
  options: PatchMaskOptions = {},
): MaskedBatch {
  const patches = grid.rows * grid.columns;
  const count = maskedPatches(grid.rows, grid.columns, options);
  const batch = randoms.length;
  const mask = new Uint8Array(batch * patches);
  const rows = new Int32Array(batch * count);
  const weights = new Float32Array(batch * count);
  randoms.forEach((random, b) => {
    const own = patchMask(random, grid, options);
    mask.set(own, b * patches);
    const masked = Array.from(own.keys()).filter((n) => own[n] === 1);
    rows.fill(b * patches, b * count, (b + 1) * count);
    masked.forEach((n, i) => {
      rows[b * count + i] = b * patches + n;
      weights[b * count + i] = 1 / (batch * masked.length);
    });
  });
  return { mask, rows, weights };
}

function maskedPatches(rows: number, columns: number, { ratio = 0.5 }: PatchMaskOptions): number {
  const patches = rows * columns;
  if (!Number.isSafeInteger(patches) || !Number.isSafeInteger(rows) || rows < 1 || columns < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `patchMask: rows and columns must be positive integers, got ${String(rows)} and ${String(columns)}`,
    );
  }
  if (!(ratio >= 0 && ratio <= 1)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `patchMask: ratio must be in [0, 1], got ${String(ratio)}`,
    );
  }
  return Math.round(ratio * patches);
}

// The first `count` members of a random permutation.
function scatter(random: Philox4x32, count: number, mask: Uint8Array): void {
  const order = Int32Array.from(mask.keys());
  for (let i = 0; i < count; i++) {
    const j = i + random.integer(order.length - i);
    [order[i], order[j]] = [order[j], order[i]];
    mask[order[i]] = 1;
  }
}

function placeBlocks(
  random: Philox4x32,
  { rows, columns }: PatchGridSize,
  count: number,
  mask: Uint8Array,
): void {
  for (let remaining = count; remaining > 0;) {
    const placed = placeBlock(random, { rows, columns }, remaining, mask);
    if (placed === 0) return;
    remaining -= placed;
  }
}

// Masks one more rectangle of at most `most` new patches; gives their number.
function placeBlock(
  random: Philox4x32,
  { rows, columns }: PatchGridSize,
  most: number,
  mask: Uint8Array,
): number {
  for (let i = 0; i < BLOCK_TRIES; i++) {
    const area = random.uniform(LEAST_BLOCK, most);
    const aspect = Math.exp(random.uniform(Math.log(LEAST_ASPECT), -Math.log(LEAST_ASPECT)));
    const height = Math.round(Math.sqrt(area * aspect));
    const width = Math.round(Math.sqrt(area / aspect));
    if (height < 1 || width < 1 || height >= rows || width >= columns) continue;
    const top = random.integer(rows - height + 1);
    const left = random.integer(columns - width + 1);
    const cells = Array.from(
      { length: height * width },
      (_, k) => (top + Math.floor(k / width)) * columns + left + (k % width),
    ).filter((cell) => mask[cell] === 0);
    if (cells.length === 0 || cells.length > most) continue;
    for (const cell of cells) mask[cell] = 1;
    return cells.length;
  }
  return 0;
}

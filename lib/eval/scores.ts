// Scores of every query against every candidate, a block of queries at a time: memory stays at a
// few megabytes whatever the sizes, and a row of scores is used while it is in the cache.
import { SiglipError } from '../errors';

/** Queries scored together. */
const BLOCK = 32;
/** Candidates scored together: 64 rows of width 768 fit the second-level cache. */
const TILE = 64;

/** Rows of equal width, as embeddings come: (N, width). */
export interface Rows {
  readonly data: Float32Array;
  readonly width: number;
}

/**
 * Number of rows.
 *
 * @throws ERR_SHAPE when the data is not a whole number of rows
 */
export function rowCount({ data, width }: Rows): number {
  if (!Number.isInteger(width) || width < 1 || data.length % width !== 0) {
    throw new SiglipError(
      'ERR_SHAPE',
      `rows: data must be whole rows of a positive width, ` +
        `got ${String(data.length)} values of width ${String(width)}`,
    );
  }
  return data.length / width;
}

/**
 * Calls `visit` once per query, in order, with its dot products with all candidates. Sums are in
 * double precision and in index order, so a score does not depend on the blocking. The array is
 * reused: copy what should last.
 *
 * @throws ERR_SHAPE when the widths differ
 */
export function forEachScores(
  queries: Rows,
  candidates: Rows,
  visit: (query: number, scores: Float64Array) => void,
): void {
  const [count, total] = [rowCount(queries), rowCount(candidates)];
  const { width } = queries;
  if (candidates.width !== width) {
    throw new SiglipError(
      'ERR_SHAPE',
      `scores: candidates must have the width ${String(width)}, got ${String(candidates.width)}`,
    );
  }
  const block = Array.from({ length: Math.min(BLOCK, count) }, () => new Float64Array(total));
  const [q, c] = [queries.data, candidates.data];
  for (let first = 0; first < count; first += BLOCK) {
    const rows = Math.min(BLOCK, count - first);
    for (let tile = 0; tile < total; tile += TILE) {
      const end = Math.min(tile + TILE, total);
      let row = 0;
      for (; row + 1 < rows; row += 2) {
        let candidate = tile;
        for (; candidate + 3 < end; candidate += 4) {
          twoByFour(q, first + row, c, candidate, width, block[row], block[row + 1]);
        }
        for (; candidate < end; candidate++) {
          block[row][candidate] = dot(q, first + row, c, candidate, width);
          block[row + 1][candidate] = dot(q, first + row + 1, c, candidate, width);
        }
      }
      for (; row < rows; row++) {
        for (let candidate = tile; candidate < end; candidate++) {
          block[row][candidate] = dot(q, first + row, c, candidate, width);
        }
      }
    }
    for (let row = 0; row < rows; row++) visit(first + row, block[row]);
  }
}

/** Dot product of row a of x and row b of y. */
function dot(x: Float32Array, a: number, y: Float32Array, b: number, width: number): number {
  let sum = 0;
  for (let i = 0; i < width; i++) sum += x[a * width + i] * y[b * width + i];
  return sum;
}

/** Rows a, a + 1 of x times rows b … b + 3 of y: six loads serve eight products. */
function twoByFour(
  x: Float32Array,
  a: number,
  y: Float32Array,
  b: number,
  width: number,
  outA: Float64Array,
  outNext: Float64Array,
): void {
  const [x0, x1] = [a * width, (a + 1) * width];
  const [y0, y1, y2, y3] = [b * width, (b + 1) * width, (b + 2) * width, (b + 3) * width];
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  let t0 = 0;
  let t1 = 0;
  let t2 = 0;
  let t3 = 0;
  for (let i = 0; i < width; i++) {
    const p = x[x0 + i];
    const q = x[x1 + i];
    const v0 = y[y0 + i];
    const v1 = y[y1 + i];
    const v2 = y[y2 + i];
    const v3 = y[y3 + i];
    s0 += p * v0;
    s1 += p * v1;
    s2 += p * v2;
    s3 += p * v3;
    t0 += q * v0;
    t1 += q * v1;
    t2 += q * v2;
    t3 += q * v3;
  }
  outA[b] = s0;
  outA[b + 1] = s1;
  outA[b + 2] = s2;
  outA[b + 3] = s3;
  outNext[b] = t0;
  outNext[b + 1] = t1;
  outNext[b + 2] = t2;
  outNext[b + 3] = t3;
}

/**
 * How many candidates stand before this one when they are sorted by falling score, ties by rising
 * index (a stable sort of the negated scores).
 */
export function rankOf(scores: ArrayLike<number>, candidate: number): number {
  const own = scores[candidate];
  let rank = 0;
  for (let i = 0; i < scores.length; i++) {
    if (scores[i] > own || (scores[i] === own && i < candidate)) rank++;
  }
  return rank;
}

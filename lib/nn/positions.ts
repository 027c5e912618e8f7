// Learned positions, added to the tokens.
import type { Tensor } from '../graph';
import { extent, fill } from '../graph';
import * as ops from '../ops';

/** tokens (B, T, D) + positions (T, D), the same for the whole batch. */
export function addPositions(tokens: Tensor, positions: Tensor): Tensor {
  return ops.addRow(tokens, positions);
}

/**
 * tokens (B, T, D) + the learned grid resized to side × side cells (bilinear, antialiased), the same
 * for the whole batch.
 *
 * @param grid - (n·n, D), n × n cells row by row
 * @param side - its square is T
 */
export function addPositionsOfSide(tokens: Tensor, grid: Tensor, side: number): Tensor {
  const cells = side * side;
  const positions = ops.positionResize(grid, fill(side, [1, 2], 'int32'), cells);
  return ops.addRow(tokens, ops.reshape(positions, [cells, extent(grid, 1)]));
}

/**
 * tokens (B, L, D) + the learned grid resized to every image's own grid of patches (bilinear,
 * antialiased). Tokens beyond gh·gw get no position; they are padding and must be masked. Packed
 * tokens (T, D) come with their segments.
 *
 * @param grid - (n·n, D), n × n cells row by row
 * @param shapes - (B, 2) int32, rows (gh, gw) with gh·gw ≤ L
 * @param segments - (B + 1) int32, gh·gw rows each
 */
export function addResizedPositions(
  tokens: Tensor,
  grid: Tensor,
  shapes: Tensor,
  segments?: Tensor,
): Tensor {
  return ops.add(tokens, ops.positionResize(grid, shapes, extent(tokens, -2), segments));
}

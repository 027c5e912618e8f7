// Bilinear antialiased resize of the learned position grid to each image's own grid of patches
// (big_vision naflex_vit.py, Hugging Face modular_siglip2.py).
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op } from '../graph';
import { kernels } from '../native/kernels';

const positionResizeForward = op<{ grid: Tensor; shapes: Tensor }, 'positions', { length: number }>(
  {
    name: 'position_resize',
    infer: ({ grid, shapes }, { length }) => {
      const [cells = 0, width = 0] = expectRank('positionResize', 'grid', grid, ['n·n', 'D']);
      const [batch = 0] = expectRank('positionResize', 'shapes', shapes, ['B', '2'], 'int32');
      expectSpec('positionResize', 'shapes', shapes, { dtype: 'int32', shape: [batch, 2] });
      if (!Number.isInteger(Math.sqrt(cells))) {
        throw new SiglipError(
          'ERR_SHAPE',
          `positionResize: grid must have a square number of rows, got ${String(cells)}`,
        );
      }
      return { positions: { dtype: 'float32', shape: [batch, length, width] } };
    },
    kernel: ({ grid, shapes, positions }) =>
      kernels.positionResizeForward({ grid, shapes, positions }),
    gradient: ({ inputs: { grid, shapes }, gradients: { positions: dpositions } }) =>
      dpositions === undefined
        ? {}
        : {
            grid: positionResizeBackward({ dpositions, shapes }, { cells: extent(grid, 0) }).dgrid,
          },
  },
);

const positionResizeBackward = op<
  { dpositions: Tensor; shapes: Tensor },
  'dgrid',
  { cells: number }
>({
  name: 'position_resize_backward',
  infer: ({ dpositions }, { cells }) => ({
    dgrid: { dtype: 'float32', shape: [cells, extent(dpositions, -1)] },
  }),
  kernel: ({ dpositions, shapes, dgrid }) =>
    kernels.positionResizeBackward({ dpositions, shapes, dgrid }),
  gradient: 'notDifferentiable',
});

/**
 * Positions for images of different patch grids, padded with zero rows to one length.
 *
 * @param grid - (n·n, D), a square grid, row-major.
 * @param shapes - (B, 2) int32 rows (gh, gw) with gh·gw ≤ length; others make the run fail with
 * ERR_SHAPE.
 * @param length - L.
 * @returns (B, L, D).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function positionResize(grid: Tensor, shapes: Tensor, length: number): Tensor {
  return positionResizeForward({ grid, shapes }, { length }).positions;
}

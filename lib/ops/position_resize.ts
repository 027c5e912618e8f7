// Bilinear antialiased resize of the learned position grid to each image's own grid of patches
// (big_vision naflex_vit.py, Hugging Face modular_siglip2.py).
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op, Reshaped } from '../graph';
import type { Ref } from '../native/kernels';
import { kernels } from '../native/kernels';

interface Inputs {
  readonly shapes: Tensor;
  readonly segments: Tensor | null;
}

// Packed rows (T, D) as the kernel sees them: one batch.
function batched(positions: Ref): Ref {
  return positions.shape.length === 2
    ? new Reshaped(positions, [1, ...positions.shape])
    : positions;
}

const positionResizeForward = op<
  Inputs & { readonly grid: Tensor },
  'positions',
  { length: number }
>({
  name: 'position_resize',
  infer: ({ grid, shapes, segments }, { length }) => {
    const [cells = 0, width = 0] = expectRank('positionResize', 'grid', grid, ['n·n', 'D']);
    const [batch = 0] = expectRank('positionResize', 'shapes', shapes, ['B', '2'], 'int32');
    expectSpec('positionResize', 'shapes', shapes, { dtype: 'int32', shape: [batch, 2] });
    if (!Number.isInteger(Math.sqrt(cells))) {
      throw new SiglipError(
        'ERR_SHAPE',
        `positionResize: grid must have a square number of rows, got ${String(cells)}`,
      );
    }
    if (segments !== null) {
      expectSpec('positionResize', 'segments', segments, { dtype: 'int32', shape: [batch + 1] });
    }
    const shape = segments === null ? [batch, length, width] : [length, width];
    return { positions: { dtype: 'float32', shape } };
  },
  kernel: ({ grid, shapes, segments, positions }) =>
    kernels.positionResizeForward({ grid, shapes, segments, positions: batched(positions) }),
  precision: { narrow: ['positions'] },
  gradient: ({ inputs: { grid, shapes, segments }, gradients: { positions: dpositions } }) =>
    dpositions === undefined
      ? {}
      : {
          grid: positionResizeBackward({ dpositions, shapes, segments }, { cells: extent(grid, 0) })
            .dgrid,
        },
});

const positionResizeBackward = op<
  Inputs & { readonly dpositions: Tensor },
  'dgrid',
  { cells: number }
>({
  name: 'position_resize_backward',
  infer: ({ dpositions }, { cells }) => ({
    dgrid: { dtype: 'float32', shape: [cells, extent(dpositions, -1)] },
  }),
  kernel: ({ dpositions, shapes, segments, dgrid }) =>
    kernels.positionResizeBackward({ dpositions: batched(dpositions), shapes, segments, dgrid }),
  precision: { any: ['dpositions'] },
  gradient: 'notDifferentiable',
});

/**
 * Positions for images of different patch grids, padded with zero rows to one length, or packed.
 *
 * @param grid - (n·n, D), a square grid, row-major.
 * @param shapes - (B, 2) int32 rows (gh, gw) with gh·gw ≤ length; others make the run fail with
 * ERR_ARGUMENT.
 * @param length - L; with `segments` all rows of the packed batch.
 * @param segments - (B + 1) int32: image b has rows [segments[b], segments[b + 1]), gh·gw of them, or
 * the run fails with ERR_ARGUMENT; rows behind the last image are zero.
 * @returns (B, L, D); with `segments` (length, D).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function positionResize(
  grid: Tensor,
  shapes: Tensor,
  length: number,
  segments: Tensor | null = null,
): Tensor {
  return positionResizeForward({ grid, shapes, segments }, { length }).positions;
}

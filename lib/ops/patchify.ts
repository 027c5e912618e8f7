// Images to rows of patches, in the (colour, row, column) order of a convolution weight.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, op } from '../graph';
import { kernels } from '../native/kernels';

const patchifyForward = op<{ images: Tensor }, 'patches', { patch: number }>({
  name: 'patchify',
  infer: ({ images }, { patch }) => {
    const [batch = 0, colours = 0, height = 0, width = 0] = expectRank(
      'patchify',
      'images',
      images,
      ['B', 'C', 'height', 'width'],
    );
    const count = Math.floor(height / patch) * Math.floor(width / patch);
    if (!Number.isInteger(patch) || patch < 1 || count < 1) {
      throw new SiglipError(
        'ERR_SHAPE',
        `patchify: images must hold at least one patch of ${String(patch)} pixels, got [${images.shape.join(', ')}]`,
      );
    }
    return { patches: { dtype: 'float32', shape: [batch, count, colours * patch * patch] } };
  },
  kernel: kernels.patchifyForward,
  precision: { narrow: ['patches'] },
  gradient: ({ inputs: { images }, attributes: { patch }, gradients: { patches: dpatches } }) =>
    dpatches === undefined
      ? {}
      : { images: patchifyBackward({ dpatches }, { patch, shape: images.shape }).dimages },
});

const patchifyBackward = op<
  { dpatches: Tensor },
  'dimages',
  { patch: number; shape: readonly number[] }
>({
  name: 'patchify_backward',
  infer: (_, { shape }) => ({ dimages: { dtype: 'float32', shape } }),
  kernel: ({ dpatches, patch, dimages }) => kernels.patchifyBackward({ dpatches, patch, dimages }),
  precision: { any: ['dpatches'] },
  gradient: 'notDifferentiable',
});

/**
 * Cuts images into non-overlapping patches, row-major; a border of less than one patch at the
 * bottom and right is dropped (valid convolution with stride `patch`).
 *
 * @param images - (B, C, height, width) float32.
 * @returns (B, N, C·P·P).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function patchify(images: Tensor, patch: number): Tensor {
  return patchifyForward({ images }, { patch }).patches;
}

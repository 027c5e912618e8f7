// uint8 pixels to float images through a table of 256 values per colour.
import type { Tensor } from '../graph';
import { expectRank, expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

const normalizePixelsForward = op<{ pixels: Tensor; table: Tensor }, 'images', object>({
  name: 'normalize_pixels',
  infer: ({ pixels, table }) => {
    const [batch = 0, height = 0, width = 0] = expectRank(
      'normalizePixels',
      'pixels',
      pixels,
      ['B', 'height', 'width', '3'],
      'uint8',
    );
    expectSpec('normalizePixels', 'pixels', pixels, {
      dtype: 'uint8',
      shape: [batch, height, width, 3],
    });
    expectSpec('normalizePixels', 'table', table, { dtype: 'float32', shape: [3, 256] });
    return { images: { dtype: 'float32', shape: [batch, 3, height, width] } };
  },
  kernel: kernels.normalizePixelsForward,
  precision: 'float32',
  gradient: 'stops',
});

/**
 * table[colour][pixel], colours first.
 *
 * @param pixels - (B, height, width, 3) uint8.
 * @param table - (3, 256) float32.
 * @returns (B, 3, height, width).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function normalizePixels(pixels: Tensor, table: Tensor): Tensor {
  return normalizePixelsForward({ pixels, table }, {}).images;
}

// uint8 pixels to float images by a table of 256 values per colour.
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

/** pixels (B, height, width, 3), table (3, 256) -> (B, 3, height, width). */
export function normalizePixels(pixels: NdArray, table: NdArray): NdArray {
  const [B, height, width, C] = pixels.shape;
  const images = zeros([B, C, height, width]);
  for (let b = 0; b < B; b++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        for (let c = 0; c < C; c++) {
          const pixel = pixels.data[((b * height + y) * width + x) * C + c];
          images.data[((b * C + c) * height + y) * width + x] = table.data[c * 256 + pixel];
        }
      }
    }
  }
  return images;
}

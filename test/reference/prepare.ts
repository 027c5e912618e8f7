// What follows the resize of an image, written to be read.
import type { RgbImage } from '../../lib/image';

/** (3, height, width): pixels by a table (3, 256), channels first. */
export function planesReference({ data, width, height }: RgbImage, table: Float32Array): number[] {
  const planes: number[] = [];
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < width * height; i++) planes.push(table[256 * c + data[3 * i + c]]);
  }
  return planes;
}

/** (rows · columns, P · P · 3): patches row by row, inside a patch y, x, colour. */
export function patchesReference(
  { data, width, height }: RgbImage,
  patch: number,
  table: Float32Array,
): number[] {
  const values: number[] = [];
  for (let top = 0; top < height; top += patch) {
    for (let left = 0; left < width; left += patch) {
      for (let y = top; y < top + patch; y++) {
        for (let x = left; x < left + patch; x++) {
          for (let c = 0; c < 3; c++) values.push(table[256 * c + data[3 * (y * width + x) + c]]);
        }
      }
    }
  }
  return values;
}

// What comes before and after the resize of an image, written to be read.
import type { Colour, RawImage, RgbImage } from '../../lib/image';

/** Grey replicated, alpha dropped or laid over a background. */
export function rgbReference(image: RawImage, background?: Colour): RgbImage {
  const { width, height, channels } = image;
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    const pixel = image.data.subarray(channels * i, channels * (i + 1));
    for (let c = 0; c < 3; c++) {
      const value = channels < 3 ? pixel[0] : pixel[c];
      const alpha = channels % 2 === 0 && background !== undefined ? pixel[channels - 1] : 255;
      const behind = background?.[c] ?? 0;
      data[3 * i + c] = Math.floor((value * alpha + behind * (255 - alpha) + 127) / 255);
    }
  }
  return { data, width, height, channels: 3 };
}

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

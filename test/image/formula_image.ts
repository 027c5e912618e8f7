import { createHash } from 'node:crypto';
import type { RgbImage } from '../../lib/image';

/** R = 37x + 91y + 13xy, G = 11x + 7y, B = x² + 3y² (mod 256): pixels that need no file. */
export function formulaImage(height: number, width: number): RgbImage {
  const data = new Uint8Array(3 * height * width);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = 3 * (y * width + x);
      data[at] = 37 * x + 91 * y + 13 * x * y;
      data[at + 1] = 11 * x + 7 * y;
      data[at + 2] = x * x + 3 * y * y;
    }
  }
  return { data, width, height, channels: 3 };
}

/** An image whose channels all hold the same values. */
export function greyImage(height: number, width: number, values: readonly number[]): RgbImage {
  const data = Uint8Array.from(values.flatMap((value) => [value, value, value]));
  return { data, width, height, channels: 3 };
}

/** The first channel. */
export function red(image: RgbImage): number[] {
  return Array.from(image.data).filter((_, i) => i % 3 === 0);
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

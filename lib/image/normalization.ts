// Bytes to floats by table: 256 values per colour, computed once in the order of rounding of the
// reference (a float64 product rounded to float32, then float32 arithmetic), so that every published
// normalisation comes out exact.

import type { Normalization } from '../weights/preprocessor_config';

/** Values of all bytes, (3, 256): colour c, byte b at `256 · c + b`. */
export function normalizationTable({ rescaleFactor, mean, std }: Normalization): Float32Array {
  const table = new Float32Array(3 * 256);
  for (let c = 0; c < 3; c++) {
    const centre = Math.fround(mean[c]);
    const spread = Math.fround(std[c]);
    for (let byte = 0; byte < 256; byte++) {
      const value = Math.fround(byte * rescaleFactor);
      table[256 * c + byte] = Math.fround(value - centre) / spread;
    }
  }
  return table;
}

/**
 * Writes pixels (height, width, 3) as float planes (3, height, width) into `out` from `offset`.
 */
export function normalizePlanes(
  pixels: Uint8Array,
  table: Float32Array,
  out: Float32Array,
  offset: number,
): void {
  const count = pixels.length / 3;
  for (let c = 0; c < 3; c++) {
    const plane = offset + c * count;
    for (let i = 0; i < count; i++) out[plane + i] = table[256 * c + pixels[3 * i + c]];
  }
}

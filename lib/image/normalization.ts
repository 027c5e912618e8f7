// Bytes to floats by table: 256 values per colour, computed once in the order of rounding of the
// reference, so that every published normalisation comes out exact.
import type { ImageBackend, Normalization } from '../weights/preprocessor_config';

const { fround } = Math;

/**
 * Values of all bytes, (3, 256): colour c, byte b at `256 · c + b`.
 *
 * With `pillow` (the default) a float64 product `b · rescaleFactor` is rounded to float32, and mean
 * and spread are taken in float32. With `torchvision` mean and spread are brought to the scale of
 * bytes first, all in float32: `(b − 127.5) / 127.5`.
 */
export function normalizationTable({
  rescaleFactor,
  mean,
  std,
  backend = 'pillow',
}: Normalization & { readonly backend?: ImageBackend }): Float32Array {
  const table = new Float32Array(3 * 256);
  for (let c = 0; c < 3; c++) {
    const value = backend === 'pillow' ? inSteps : fused;
    for (let byte = 0; byte < 256; byte++) {
      table[256 * c + byte] = value(byte, rescaleFactor, mean[c], std[c]);
    }
  }
  return table;
}

function inSteps(byte: number, factor: number, mean: number, std: number): number {
  return fround(fround(byte * factor) - fround(mean)) / fround(std);
}

function fused(byte: number, factor: number, mean: number, std: number): number {
  // Normalisation turned off leaves a product.
  if (mean === 0 && std === 1) return byte * fround(factor);
  const scale = fround(1 / factor);
  return fround(byte - fround(fround(mean) * scale)) / fround(fround(std) * scale);
}

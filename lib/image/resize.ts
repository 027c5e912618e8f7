// Pillow's 8-bit resize, bit for bit. Per axis, in -> out samples: s = in/out, f = max(s, 1);
// output i gathers from [⌊c − S + ½⌋, ⌊c + S + ½⌋) clamped to the axis, with centre c = (i + ½) s and
// S = f · support, weights filter((k − c + ½) / f) divided by their sum and rounded to multiples of
// 2⁻²². Rows first, then columns, with an 8-bit image between; an axis that keeps its size is skipped.
import { SiglipError } from '../errors';
import type { Resample } from '../weights/preprocessor_config';
import type { RgbImage } from './rgb_image';

interface Filter {
  readonly support: number;
  weight(x: number): number;
}

// The triangle, and Keys' cubic with a = −½.
const FILTERS: Record<Resample, Filter> = {
  bilinear: { support: 1, weight: triangle },
  bicubic: { support: 2, weight: cubic },
};

function triangle(x: number): number {
  return Math.max(0, 1 - Math.abs(x));
}

const CUBIC_A = -0.5;

function cubic(signed: number): number {
  const x = Math.abs(signed);
  if (x < 1) return ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * CUBIC_A;
  return 0;
}

// 32 bits less 8 of the sample and 2 of overshoot.
const FRACTION_BITS = 22;
const HALF = 1 << (FRACTION_BITS - 1);

// A lookup on the global object costs more than the product where globals are intercepted.
const { imul } = Math;

// For output i: `count[i]` weights from `weights[i · stride]`, over inputs from `first[i]`.
interface Taps {
  readonly first: Int32Array;
  readonly count: Int32Array;
  readonly weights: Int32Array;
  readonly stride: number;
}

function planTaps(from: number, to: number, filter: Filter): Taps {
  const scale = from / to;
  const widening = Math.max(scale, 1);
  const support = filter.support * widening;
  const stride = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(to);
  const count = new Int32Array(to);
  const weights = new Int32Array(to * stride);
  const exact = new Float64Array(stride);
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const low = Math.max(Math.trunc(centre - support + 0.5), 0);
    const high = Math.min(Math.trunc(centre + support + 0.5), from);
    let sum = 0;
    for (let k = low; k < high; k++) {
      const weight = filter.weight((k - centre + 0.5) * (1 / widening));
      exact[k - low] = weight;
      sum += weight;
    }
    first[i] = low;
    count[i] = high - low;
    for (let k = 0; k < high - low; k++) {
      const weight = (sum === 0 ? exact[k] : exact[k] / sum) * (1 << FRACTION_BITS);
      weights[i * stride + k] = Math.trunc(weight + (weight < 0 ? -0.5 : 0.5));
    }
  }
  return { first, count, weights, stride };
}

function clampToByte(accumulator: number): number {
  const value = accumulator >> FRACTION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

function resizeRows(image: RgbImage, width: number, filter: Filter): RgbImage {
  const { first, count, weights, stride } = planTaps(image.width, width, filter);
  const data = new Uint8Array(3 * width * image.height);
  const source = image.data;
  let out = 0;
  for (let y = 0; y < image.height; y++) {
    const row = 3 * y * image.width;
    for (let x = 0; x < width; x++) {
      let red = HALF;
      let green = HALF;
      let blue = HALF;
      let at = row + 3 * first[x];
      const end = x * stride + count[x];
      for (let k = x * stride; k < end; k++, at += 3) {
        const weight = weights[k];
        red = (red + imul(weight, source[at])) | 0;
        green = (green + imul(weight, source[at + 1])) | 0;
        blue = (blue + imul(weight, source[at + 2])) | 0;
      }
      data[out++] = clampToByte(red);
      data[out++] = clampToByte(green);
      data[out++] = clampToByte(blue);
    }
  }
  return { data, width, height: image.height };
}

function resizeColumns(image: RgbImage, height: number, filter: Filter): RgbImage {
  const { first, count, weights, stride } = planTaps(image.height, height, filter);
  const rowBytes = 3 * image.width;
  const data = new Uint8Array(rowBytes * height);
  const sums = new Int32Array(rowBytes);
  const source = image.data;
  for (let y = 0; y < height; y++) {
    sums.fill(HALF);
    for (let k = 0; k < count[y]; k++) {
      const weight = weights[y * stride + k];
      const row = (first[y] + k) * rowBytes;
      for (let x = 0; x < rowBytes; x++) sums[x] += imul(weight, source[row + x]);
    }
    for (let x = 0; x < rowBytes; x++) data[y * rowBytes + x] = clampToByte(sums[x]);
  }
  return { data, width: image.width, height };
}

/**
 * Resizes an image to `width` × `height` pixels, aspect ratio not kept, with the result of Pillow's
 * `Image.resize` (12.3) in every bit.
 *
 * @throws SiglipError ERR_ARGUMENT for a size or a filter that is none
 */
export function resizeImage(
  image: RgbImage,
  width: number,
  height: number,
  resample: Resample,
): RgbImage {
  expectExtent('width', width);
  expectExtent('height', height);
  const filter = filterOf(resample);
  const rows = (from: RgbImage): RgbImage =>
    from.width === width ? from : resizeRows(from, width, filter);
  const columns = (from: RgbImage): RgbImage =>
    from.height === height ? from : resizeColumns(from, height, filter);
  // Pillow shrinks a very tall image along its height first, to save work; rounding shows it.
  const tall = image.height > 100 * image.width && height < image.height;
  const resized = tall ? rows(columns(image)) : columns(rows(image));
  return resized === image ? { ...image, data: image.data.slice() } : resized;
}

// A caller without types may ask for anything.
function filterOf(resample: string): Filter {
  if (isResample(resample)) return FILTERS[resample];
  throw new SiglipError(
    'ERR_ARGUMENT',
    `resizeImage: resample must be bilinear or bicubic, got ${resample}`,
  );
}

function isResample(name: string): name is Resample {
  return Object.hasOwn(FILTERS, name);
}

function expectExtent(name: string, extent: number): void {
  if (Number.isSafeInteger(extent) && extent >= 1) return;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `resizeImage: ${name} must be a positive integer, got ${String(extent)}`,
  );
}

// The 8-bit resize of Pillow and that of torchvision, written to be read. Per axis, in -> out samples:
// s = in/out, f = max(s, 1); output i gathers from [⌊c − S + ½⌋, ⌊c + S + ½⌋) clamped to the axis,
// with centre c = (i + ½) s and S = f · support, weights filter((k − c + ½) / f) divided by their sum
// and rounded to multiples of 2^−bits. Rows first, then columns, with 8 bits between; an axis that
// keeps its size is skipped. Sums are taken in float64, where they are exact.
import type { RgbImage } from '../../lib/image';

export type Filter = 'nearest' | 'lanczos' | 'bilinear' | 'bicubic' | 'box' | 'hamming';
export type Backend = 'pillow' | 'torchvision';

// jest intercepts globals, which costs more than the arithmetic.
const { abs, cos, floor, max, min, sin, trunc, PI } = Math;

interface Kernel {
  readonly support: number;
  weight(x: number): number;
}

const sinc = (x: number): number => (x === 0 ? 1 : sin(x * PI) / (x * PI));

const KERNELS: Record<Exclude<Filter, 'nearest'>, Kernel> = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => max(0, 1 - abs(x)) },
  hamming: {
    support: 1,
    weight: (x) => (abs(x) < 1 ? sinc(abs(x)) * (0.54 + 0.46 * cos(abs(x) * PI)) : 0),
  },
  bicubic: {
    support: 2,
    weight: (signed) => {
      const a = -0.5;
      const x = abs(signed);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

interface Axis {
  /** For each output, its first input and its weights times 2^bits. */
  readonly outputs: readonly { readonly first: number; readonly weights: readonly number[] }[];
  readonly bits: number;
}

function nearestAxis(from: number, to: number): Axis {
  const scale = from / to;
  const outputs: { first: number; weights: number[] }[] = [];
  // Pillow adds up the positions.
  for (let i = 0, position = scale * 0.5; i < to; i++, position += scale) {
    outputs.push({ first: min(trunc(position), from - 1), weights: [2] });
  }
  return { outputs, bits: 1 };
}

function filterAxis(from: number, to: number, kernel: Kernel, backend: Backend): Axis {
  const scale = from / to;
  const widening = max(scale, 1);
  const support = kernel.support * widening;
  const exact = Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = max(trunc(centre - support + 0.5), 0);
    const end = min(trunc(centre + support + 0.5), from);
    const weights: number[] = [];
    for (let k = first; k < end; k++) {
      weights.push(kernel.weight((k - centre + 0.5) * (1 / widening)));
    }
    let sum = 0;
    for (const weight of weights) sum += weight;
    return { first, weights: weights.map((weight) => (sum === 0 ? weight : weight / sum)) };
  });
  let bits = 22;
  if (backend === 'torchvision') {
    let largest = 0;
    for (const { weights } of exact) for (const weight of weights) largest = max(largest, weight);
    bits = 0;
    while (bits < 22 && trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  }
  const outputs = exact.map(({ first, weights }) => ({
    first,
    weights: weights.map((weight) => trunc(weight * 2 ** bits + (weight < 0 ? -0.5 : 0.5))),
  }));
  return { outputs, bits };
}

/** Resamples along one axis: samples at `start(line) + k · step`. */
function alongAxis(
  image: RgbImage,
  axis: Axis,
  size: { readonly width: number; readonly height: number },
): RgbImage {
  const { width, height } = size;
  const data = new Uint8Array(3 * width * height);
  const rows = width !== image.width;
  const step = rows ? 3 : 3 * image.width;
  const half = 2 ** (axis.bits - 1);
  const scale = 2 ** axis.bits;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const { first, weights } = axis.outputs[rows ? x : y];
      for (let c = 0; c < 3; c++) {
        let at = (rows ? 3 * (y * image.width + first) : 3 * (first * image.width + x)) + c;
        let sum = half;
        for (let k = 0; k < weights.length; k++, at += step) sum += weights[k] * image.data[at];
        data[3 * (y * width + x) + c] = min(255, max(0, floor(sum / scale)));
      }
    }
  }
  return { data, width, height, channels: 3 };
}

/** The image resized to `width` × `height`. */
export function resizeReference(
  image: RgbImage,
  width: number,
  height: number,
  filter: Filter,
  backend: Backend = 'pillow',
): RgbImage {
  const axis = (from: number, to: number): Axis =>
    filter === 'nearest' ? nearestAxis(from, to) : filterAxis(from, to, KERNELS[filter], backend);
  const rows = (from: RgbImage): RgbImage =>
    from.width === width
      ? from
      : alongAxis(from, axis(from.width, width), { width, height: from.height });
  const columns = (from: RgbImage): RgbImage =>
    from.height === height
      ? from
      : alongAxis(from, axis(from.height, height), { width: from.width, height });
  // Pillow shrinks a very tall image along its height first, to save work; rounding shows it.
  const tall = backend === 'pillow' && image.height > 100 * image.width && height < image.height;
  const resized = tall ? rows(columns(image)) : columns(rows(image));
  return resized === image ? { ...image, data: image.data.slice() } : resized;
}

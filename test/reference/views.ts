// Augmented views in float64, written to be read: crop and resize with the bits of Pillow, and then the
// formulas of torchvision for colours and of Pillow for the blur, without rounding between them.
import type { ImageView, RgbImage } from '../../lib/image';
import type { Filter } from './resize';
import { resizeReference } from './resize';

type Rgb = [number, number, number];

function clamped(x: number): number {
  return Math.min(255, Math.max(0, x));
}

function luma([r, g, b]: Rgb): number {
  return 0.2989 * r + 0.587 * g + 0.114 * b;
}

function blend(pixel: Rgb, other: number, factor: number): Rgb {
  return pixel.map((x) => clamped(factor * x + (1 - factor) * other)) as Rgb;
}

/** By way of HSV, as torchvision writes it. */
function turned([r, g, b]: Rgb, turn: number): Rgb {
  const v = Math.max(r, g, b);
  const range = v - Math.min(r, g, b);
  const s = v === 0 ? 0 : range / v;
  const d = range === 0 ? 1 : range;
  const [rc, gc, bc] = [(v - r) / d, (v - g) / d, (v - b) / d];
  const sector = r === v ? bc - gc : g === v ? 2 + rc - bc : 4 + gc - rc;
  const h = (((sector / 6 + 1 + turn) % 1) + 1) % 1;
  const i = Math.floor(6 * h);
  const f = 6 * h - i;
  const p = v * (1 - s);
  const q = v * (1 - s * f);
  const t = v * (1 - s * (1 - f));
  const sectors: Rgb[] = [
    [v, t, p],
    [q, v, p],
    [p, v, t],
    [p, q, v],
    [t, p, v],
    [v, p, q],
  ];
  return sectors[i % 6];
}

/** One box of fractional radius along lines of values, the border's value beyond the border. */
function boxed(line: readonly number[], radius: number): number[] {
  const whole = Math.floor(radius);
  const weight = 1 / (2 * radius + 1);
  const edge = (1 - (2 * whole + 1) * weight) / 2;
  const at = (i: number): number => line[Math.min(line.length - 1, Math.max(0, i))];
  return line.map((_, i) => {
    let sum = edge * (at(i - whole - 1) + at(i + whole + 1));
    for (let d = -whole; d <= whole; d++) sum += weight * at(i + d);
    return sum;
  });
}

/** Three boxes in each direction, of the variance of the Gaussian (Pillow's BoxBlur.c). */
function blurred(pixels: readonly Rgb[], size: number, sigma: number): Rgb[] {
  const variance = sigma ** 2 / 3;
  const whole = Math.floor((Math.sqrt(12 * variance + 1) - 1) / 2);
  const part =
    ((2 * whole + 1) * (whole * (whole + 1) - 3 * variance)) / (6 * (variance - (whole + 1) ** 2));
  const result = pixels.map((pixel): Rgb => [...pixel]);
  for (const [step, next] of [
    [1, size],
    [size, 1],
  ]) {
    for (let k = 0; k < size; k++) {
      for (let c = 0; c < 3; c++) {
        let line = Array.from({ length: size }, (_, i) => result[k * next + i * step][c]);
        for (let pass = 0; pass < 3; pass++) line = boxed(line, whole + part);
        line.forEach((value, i) => (result[k * next + i * step][c] = value));
      }
    }
  }
  return result;
}

/** (size, size, 3), not rounded. */
export function viewReference(
  { data, width }: RgbImage,
  { crop, flip, jitter, grey, blur }: ImageView,
  size: number,
  filter: Filter = 'bicubic',
): number[] {
  const cropped: number[] = [];
  for (let y = crop.top; y < crop.top + crop.height; y++) {
    const begin = 3 * (y * width + crop.left);
    cropped.push(...data.subarray(begin, begin + 3 * crop.width));
  }
  const resized = resizeReference(
    { data: Uint8Array.from(cropped), width: crop.width, height: crop.height, channels: 3 },
    size,
    size,
    filter,
    'pillow',
  );
  let pixels = Array.from({ length: size * size }, (_, i): Rgb => {
    const x = flip ? size - 1 - (i % size) : i % size;
    const begin = 3 * (Math.floor(i / size) * size + x);
    return [...resized.data.subarray(begin, begin + 3)] as Rgb;
  });
  for (const change of jitter?.order ?? []) {
    const factor = jitter?.[change] ?? 1;
    const mean = pixels.reduce((sum, pixel) => sum + luma(pixel), 0) / pixels.length;
    const changes = {
      brightness: (pixel: Rgb) => blend(pixel, 0, factor),
      contrast: (pixel: Rgb) => blend(pixel, mean, factor),
      saturation: (pixel: Rgb) => blend(pixel, luma(pixel), factor),
      hue: (pixel: Rgb) => turned(pixel, factor),
    };
    pixels = pixels.map(changes[change]);
  }
  if (grey) pixels = pixels.map((pixel) => blend(pixel, luma(pixel), 0));
  if (blur > 0) pixels = blurred(pixels, size, blur);
  return pixels.flat();
}

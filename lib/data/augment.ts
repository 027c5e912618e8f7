// Random changes to a training image, as one affine map of positions and one of colours.
//
// Every change of shape (turn, mirror, scale, stretch, shear, shift) composes to a 2×3 matrix and
// every change of colour (hue, grey, gain, offset) to a 3×4 matrix, so whatever is switched on, a
// pixel costs one bilinear sample and twelve multiplications. Outside of the image is white.
import { SiglipError } from '../errors';
import type { Philox4x32 } from '../array/random';

/**
 * How strongly images are changed. A single number s stands for a draw from [−s, s]; what is left
 * out is not changed.
 */
export interface AugmentOptions {
  /** Turn, degrees. */
  readonly rotate?: number | undefined;
  /** Smallest and largest size of the drawing relative to the original. */
  readonly scale?: readonly [number, number] | undefined;
  /** Width against height: ratio between exp(−2s) and exp(2s) at unchanged area. */
  readonly stretch?: number | undefined;
  /** Slant, horizontal displacement per unit of height. */
  readonly shear?: number | undefined;
  /** Shift in each direction, as a share of the side. */
  readonly shift?: number | undefined;
  /** Probability of a mirror image, left to right. */
  readonly mirror?: number | undefined;
  /** Turn of the colours around the grey axis, as a share of a full turn. */
  readonly hue?: number | undefined;
  /** Probability of a grey image (Rec. 601 luma). */
  readonly grey?: number | undefined;
  /** Factor 1 ± s of each channel. */
  readonly gain?: number | undefined;
  /** Added to each channel, as a share of the full range. */
  readonly offset?: number | undefined;
}

const LIMITS: Readonly<Record<Exclude<keyof AugmentOptions, 'scale'>, number>> = {
  rotate: 180,
  stretch: 1,
  shear: 1,
  shift: 1,
  mirror: 1,
  hue: 0.5,
  grey: 1,
  gain: 1,
  offset: 1,
};

/** Luma of Rec. 601. */
const LUMA = [0.299, 0.587, 0.114] as const;

/**
 * Checks the strengths once, before a run.
 *
 * @throws ERR_ARGUMENT
 */
export function checkAugment(options: AugmentOptions): void {
  for (const [name, limit] of Object.entries(LIMITS)) {
    const value = options[name as keyof typeof LIMITS];
    if (value !== undefined && !(value >= 0 && value <= limit)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `augment: ${name} must be from 0 to ${String(limit)}, got ${String(value)}`,
      );
    }
  }
  const [low, high] = options.scale ?? [1, 1];
  if (!(low > 0 && high >= low && Number.isFinite(high))) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `augment: scale must be [low, high] with 0 < low ≤ high, got [${String(low)}, ${String(high)}]`,
    );
  }
}

/**
 * Writes a changed copy of a square image to `out`. The change is a function of the options and the
 * random numbers, always sixteen words of them, so switching one change on leaves the draws of the
 * others as they were. Sizes may differ; without any change an image of the same size is copied
 * exactly.
 *
 * @param pixels (size, size, 3) RGB
 * @param out (outSize, outSize, 3), overwritten
 */
export function augment(
  pixels: Uint8Array,
  size: number,
  options: AugmentOptions,
  random: Philox4x32,
  out: Uint8Array,
  outSize: number,
): void {
  const { rotate = 0, scale = [1, 1], stretch = 0, shear = 0, shift = 0 } = options;
  const { mirror = 0, hue = 0, grey = 0, gain = 0, offset = 0 } = options;
  const within = (strength: number): number => random.uniform(-strength, strength);

  // Positions: from the pixel of `out` to the one of `pixels`, both relative to the centre.
  const turn = within((rotate * Math.PI) / 180);
  const factor = random.uniform(scale[0], scale[1]);
  const aspect = Math.exp(within(stretch));
  const slant = within(shear);
  const [shiftX, shiftY] = [within(shift) * outSize, within(shift) * outSize];
  const side = random.uniform() < mirror ? -1 : 1;
  const resize = size / outSize / factor;
  const [cos, sin] = [Math.cos(turn) * resize, Math.sin(turn) * resize];
  const [wide, high] = [side / aspect, aspect];
  const xx = wide * cos + slant * sin;
  const xy = slant * cos - wide * sin;
  const yx = high * sin;
  const yy = high * cos;

  // Colours: turn around the grey axis (Rodrigues), then grey, then gain and offset per channel.
  const angle = within(hue) * 2 * Math.PI;
  const isGrey = random.uniform() < grey;
  const third = (1 - Math.cos(angle)) / 3;
  const tilt = Math.sin(angle) * Math.sqrt(1 / 3);
  const turned = [Math.cos(angle) + third, third - tilt, third + tilt]; // first row, circulant
  const colour = new Float64Array(12); // (3, 4)
  for (let c = 0; c < 3; c++) {
    const channelGain = 1 + within(gain);
    for (let d = 0; d < 3; d++) {
      let weight = turned[(d - c + 3) % 3];
      if (isGrey) {
        weight = 0;
        for (let e = 0; e < 3; e++) {
          weight += (LUMA[e] as number) * turned[(d - e + 3) % 3];
        }
      }
      colour[c * 4 + d] = channelGain * weight;
    }
    colour[c * 4 + 3] = 255 * within(offset) + 0.5; // + 0.5: rounds when truncated
  }
  random.position += 1; // 15 words so far; a round number leaves room for one more change

  const half = (size - 1) / 2;
  const outHalf = (outSize - 1) / 2;
  for (let row = 0, o = 0; row < outSize; row++) {
    const dy = row - outHalf - shiftY;
    for (let column = 0; column < outSize; column++, o += 3) {
      const dx = column - outHalf - shiftX;
      sampleInto(pixels, size, xx * dx + xy * dy + half, yx * dx + yy * dy + half);
      const [r, g, b] = [SAMPLE[0], SAMPLE[1], SAMPLE[2]];
      for (let c = 0, k = 0; c < 3; c++, k += 4) {
        const value = colour[k] * r + colour[k + 1] * g + colour[k + 2] * b + colour[k + 3];
        out[o + c] = value < 0 ? 0 : value > 255 ? 255 : value;
      }
    }
  }
}

/** Result of {@link sampleInto}, kept here so that a pixel costs no allocation. */
const SAMPLE = new Float64Array(3);

/** Bilinear sample at (x, y); what lies outside the image is white. */
function sampleInto(pixels: Uint8Array, size: number, x: number, y: number): void {
  const x0 = Math.floor(x);
  const y0 = Math.floor(y);
  if (x0 < -1 || y0 < -1 || x0 >= size || y0 >= size) {
    SAMPLE.fill(255);
    return;
  }
  const right = x - x0;
  const below = y - y0;
  const inLeft = x0 >= 0;
  const inRight = x0 + 1 < size;
  const inAbove = y0 >= 0;
  const inBelow = y0 + 1 < size;
  const first = (y0 * size + x0) * 3;
  const next = first + size * 3;
  for (let c = 0; c < 3; c++) {
    const a = inAbove && inLeft ? pixels[first + c] : 255;
    const b = inAbove && inRight ? pixels[first + 3 + c] : 255;
    const d = inBelow && inLeft ? pixels[next + c] : 255;
    const e = inBelow && inRight ? pixels[next + 3 + c] : 255;
    const top = a + right * (b - a);
    SAMPLE[c] = top + below * (d + right * (e - d) - top);
  }
}

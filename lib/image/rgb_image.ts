import { SiglipError } from '../errors';

/** 8-bit sRGB pixels: rows from the top, red, green, blue interleaved; `3 · width · height` bytes. */
export interface RgbImage {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/**
 * 8-bit pixels as other programs hand them over: rows from the top, interleaved channels. 1 grey,
 * 2 grey and alpha, 3 RGB, 4 RGBA (alpha not premultiplied).
 */
export interface RawImage {
  readonly data: Uint8Array | Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
  readonly channels: 1 | 2 | 3 | 4;
}

/** Red, green, blue, each 0…255. */
export type Colour = readonly [red: number, green: number, blue: number];

/**
 * Brings raw pixels to RGB. Grey is replicated. Alpha is dropped, so a transparent pixel shows the
 * colour stored under it, as `Image.convert("RGB")` of Pillow does; with `background` the image is
 * laid over that colour instead. Three-channel data is not copied.
 *
 * @throws SiglipError ERR_IMAGE when extents, channels and bytes do not fit together
 */
export function rgbFromRaw(raw: RawImage, background?: Colour): RgbImage {
  expectRaw(raw);
  const { width, height, channels } = raw;
  const from = new Uint8Array(raw.data.buffer, raw.data.byteOffset, raw.data.byteLength);
  if (channels === 3) return { data: from, width, height };
  const pixels = width * height;
  const data = new Uint8Array(3 * pixels);
  const grey = channels < 3;
  for (let pixel = 0; pixel < pixels; pixel++) {
    const source = pixel * channels;
    for (let c = 0; c < 3; c++) data[3 * pixel + c] = from[source + (grey ? 0 : c)];
  }
  if (background !== undefined && channels % 2 === 0) {
    layOver(data, from, channels, background);
  }
  return { data, width, height };
}

// Straight alpha over an opaque background, rounded to nearest.
function layOver(data: Uint8Array, from: Uint8Array, channels: number, background: Colour): void {
  for (let pixel = 0; 3 * pixel < data.length; pixel++) {
    const alpha = from[pixel * channels + channels - 1];
    for (let c = 0; c < 3; c++) {
      const mixed = data[3 * pixel + c] * alpha + background[c] * (255 - alpha);
      data[3 * pixel + c] = Math.floor((mixed + 127) / 255);
    }
  }
}

/**
 * Brings CMYK pixels (4 bytes each, 255 full ink) to RGB as Pillow does, without a profile:
 * `(255 − ink)(255 − black) / 255`, rounded.
 */
export function rgbFromCmyk(inks: Uint8Array, width: number, height: number): RgbImage {
  const data = new Uint8Array(3 * width * height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const light = 255 - inks[4 * pixel + 3];
    for (let c = 0; c < 3; c++) {
      const product = inks[4 * pixel + c] * light + 128;
      data[3 * pixel + c] = light - (((product >> 8) + product) >> 8);
    }
  }
  return { data, width, height };
}

function expectRaw({ data, width, height, channels }: RawImage): void {
  for (const [name, extent] of [
    ['width', width],
    ['height', height],
  ] as const) {
    if (!Number.isSafeInteger(extent) || extent < 1) {
      throw new SiglipError(
        'ERR_IMAGE',
        `decodeImage: ${name} must be a positive integer, got ${String(extent)}`,
      );
    }
  }
  if (![1, 2, 3, 4].includes(channels)) {
    throw new SiglipError(
      'ERR_IMAGE',
      `decodeImage: channels must be 1, 2, 3 or 4, got ${String(channels)}`,
    );
  }
  if (data.byteLength !== width * height * channels) {
    throw new SiglipError(
      'ERR_IMAGE',
      `decodeImage: data of ${String(width)} × ${String(height)} pixels with ${String(channels)} ` +
        `channels must have ${String(width * height * channels)} bytes, got ${String(data.byteLength)}`,
    );
  }
}

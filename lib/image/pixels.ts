// Pixels as programs hand them over, and the one way by which they reach the native side.
import { types } from 'node:util';
import { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { NativePicture, NativePixels } from '../native/addon';
import { loadAddon } from '../native/load';
import type { ImageBackend, Resample } from '../weights/preprocessor_config';
import { RESAMPLE_CODES } from '../weights/preprocessor_config';

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

/** 8-bit sRGB pixels: rows from the top, red, green, blue interleaved; `3 · width · height` bytes. */
export interface RgbImage extends RawImage {
  readonly data: Uint8Array;
  readonly channels: 3;
}

/** Red, green, blue, each 0…255. */
export type Colour = readonly [red: number, green: number, blue: number];

// The numbers of the native side.
const FORMATS = { grey: 0, greyAlpha: 1, rgb: 2, rgba: 3, cmyk: 4 } as const;
const FORMAT_OF_CHANNELS = { 1: 'grey', 2: 'greyAlpha', 3: 'rgb', 4: 'rgba' } as const;
const ROUNDINGS: Readonly<Record<ImageBackend, number>> = { pillow: 0, torchvision: 1 };
const LAYOUTS = { bytes: 0, planes: 1, patches: 2 } as const;

/** Pixels of any format, before they are RGB. */
export interface Pixels {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
  /** CMYK counts ink: 255 is full. */
  readonly format: keyof typeof FORMATS;
  /** Colour shown through alpha; without one, alpha is dropped. */
  readonly background: Colour | undefined;
  /** Nobody else holds `data`, so the native side may read it in place. */
  readonly owned: boolean;
}

/** Pixels and what becomes of them. */
export interface Placed {
  readonly pixels: Pixels;
  /** Pixels of the result. */
  readonly height: number;
  readonly width: number;
  /** Where the result begins, in elements. */
  readonly offset: number;
}

/** How pixels are resized and written. */
export interface Recipe {
  readonly resample: Resample;
  readonly backend: ImageBackend;
  readonly output:
    | { readonly layout: 'bytes' }
    | { readonly layout: 'planes'; readonly table: Float32Array }
    | { readonly layout: 'patches'; readonly table: Float32Array; readonly patch: number };
}

/**
 * Pixels of a raw image, not copied.
 *
 * @throws SiglipError ERR_IMAGE when extents, channels and bytes do not fit together
 */
export function pixelsOf(raw: RawImage, background?: Colour): Pixels {
  expectRaw(raw);
  const { width, height, channels } = raw;
  const { buffer, byteOffset, byteLength } = raw.data;
  const data = new Uint8Array(buffer, byteOffset, byteLength);
  const format = FORMAT_OF_CHANNELS[channels];
  return { data, width, height, format, background, owned: false };
}

/** Pixels for the native side. */
export function nativePixels(pixels: Pixels): NativePixels {
  const { data, width, height, format, background, owned } = pixels;
  return {
    data,
    shared: owned,
    width,
    height,
    format: FORMATS[format],
    background: background === undefined ? null : numberOf(background),
  };
}

/**
 * Resizes pixels and writes them into `into`, which nobody else may hold until the promise settles; on
 * the device of `into`, where a GPU makes bytes alone. Pixels that are not owned are copied before this
 * returns, so they may change afterwards.
 */
export async function preparePixels(
  images: readonly Placed[],
  { resample, backend, output }: Recipe,
  into: Uint8Array | Float32Array | DeviceArray,
): Promise<void> {
  const elementBytes = into instanceof DeviceArray ? 1 : into.BYTES_PER_ELEMENT;
  const pictures = images.map(({ pixels, height, width, offset }): NativePicture => {
    return {
      ...nativePixels(pixels),
      toWidth: width,
      toHeight: height,
      offset: offset * elementBytes,
    };
  });
  const recipe = {
    filter: RESAMPLE_CODES[resample],
    rounding: ROUNDINGS[backend],
    layout: LAYOUTS[output.layout],
    patch: output.layout === 'patches' ? output.patch : 1,
    table: output.layout === 'bytes' ? null : output.table,
  };
  const memory =
    into instanceof DeviceArray
      ? into.buffer
      : new Uint8Array(into.buffer, into.byteOffset, into.byteLength);
  await loadAddon().prepareImages(pictures, recipe, memory);
}

/** RGB bytes of pixels of any format, resized if a size is given. */
export async function rgbOf(
  pixels: Pixels,
  { width, height }: { readonly width: number; readonly height: number } = pixels,
  resample: Resample = 'bilinear',
  backend: ImageBackend = 'pillow',
): Promise<RgbImage> {
  const data = allocate(Uint8Array, [3, width, height]);
  const output = { layout: 'bytes' } as const;
  const placed = { pixels, width, height, offset: 0 };
  await preparePixels([placed], { resample, backend, output }, data);
  return { data, width, height, channels: 3 };
}

/** A typed array of these extents. @throws SiglipError ERR_OUT_OF_MEMORY */
export function allocate<T extends Uint8Array | Float32Array>(
  type: new (length: number) => T,
  extents: readonly number[],
): T {
  const length = extents.reduce((product, extent) => product * extent, 1);
  try {
    return new type(length);
  } catch (error) {
    throw new SiglipError(
      'ERR_OUT_OF_MEMORY',
      `images: an array of ${extents.join(' × ')} elements must fit into memory, got a refusal`,
      { cause: error },
    );
  }
}

function numberOf(colour: Colour): number {
  if (colour.length === 3 && colour.every((c) => Number.isInteger(c) && c >= 0 && c <= 255)) {
    return colour[0] * 0x10000 + colour[1] * 0x100 + colour[2];
  }
  throw new SiglipError(
    'ERR_ARGUMENT',
    `decodeImage: background must be three whole numbers from 0 to 255, got ${String(colour)}`,
  );
}

function expectRaw({ data, width, height, channels }: RawImage): void {
  if (!types.isUint8Array(data) && !types.isUint8ClampedArray(data)) {
    throw new SiglipError(
      'ERR_IMAGE',
      'decodeImage: data must be a Uint8Array or a Uint8ClampedArray, got another typed array',
    );
  }
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

// Encoded bytes to RGB. The rules are those of the reference pipeline (Pillow), except where Pillow
// ruins a picture: 16-bit samples are scaled to 8 bits instead of being clipped at 255.
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { types } from 'node:util';
import sharp from 'sharp';
import { SiglipError } from '../errors';
import { pixelsOf, rgbOf } from './pixels';
import type { Colour, Pixels, RawImage, RgbImage } from './pixels';

/**
 * An image: the path or `file:` URL of a file, its encoded bytes (JPEG, PNG, WebP, GIF, AVIF, TIFF,
 * SVG), or raw 8-bit pixels. Raw RGB is the bit-exact entrance: JPEG decoders differ by a level or
 * two.
 */
export type ImageInput = string | URL | Uint8Array | ArrayBuffer | RawImage;

/** How bytes become RGB. */
export interface DecodeOptions {
  /**
   * Whether the EXIF orientation of the file is applied. Default `'apply'`, as the reference does
   * for images it loads itself.
   */
  readonly orientation?: 'apply' | 'ignore';
  /**
   * Whether an embedded colour profile is converted to sRGB. Default `'ignore'`, as in training and
   * in the reference: a wide-gamut photograph then looks paler than on screen.
   */
  readonly colorProfile?: 'ignore' | 'convert';
  /** Colour shown through transparent parts. Default: alpha is dropped, nothing is composited. */
  readonly background?: Colour;
  /** Largest width · height accepted, checked before pixels are decoded. Default 178,956,970. */
  readonly maxPixels?: number;
  readonly signal?: AbortSignal;
}

// Where Pillow stops with DecompressionBombError.
const MAX_PIXELS = 178_956_970;

/**
 * Decodes one image to 8-bit RGB, off the JavaScript thread.
 *
 * What becomes RGB, and how:
 * - grey, 1-bit and palette images: replicated, or looked up in the palette.
 * - alpha (RGBA, grey and alpha, transparent palette entries): dropped, so a transparent pixel shows
 *   the colour stored under it, as `Image.convert("RGB")` of Pillow does; with
 *   {@link DecodeOptions.background} the image is laid over that colour instead.
 * - CMYK, its alpha dropped: `(255 − ink)(255 − black) / 255` without a profile, as Pillow does; with
 *   `colorProfile: 'convert'` by the printing profile.
 * - 16-bit samples: the upper 8 bits. Pillow clips at 255, which ruins the picture.
 * - EXIF orientation: applied, unless `orientation: 'ignore'`.
 * - colour profiles: ignored, unless `colorProfile: 'convert'`.
 * - animations and files of several pages: the first frame.
 *
 * Damaged and truncated files are refused, never filled up with grey. Raw RGB comes back as it is,
 * sharing its memory.
 *
 * @throws SiglipError ERR_IMAGE when the bytes are not a usable image, ERR_FILE when a path cannot
 * be read, ERR_ABORTED by `signal`
 * @example
 * const image = await decodeImage('cat.jpg');
 * image.data.length === 3 * image.width * image.height;
 */
export async function decodeImage(
  input: ImageInput,
  options: DecodeOptions = {},
): Promise<RgbImage> {
  const pixels = await decodePixels(input, options);
  const { data, width, height, format } = pixels;
  return format === 'rgb' ? { data, width, height, channels: 3 } : rgbOf(pixels);
}

/** Decodes one image, but leaves it to the resize to make it RGB. */
export async function decodePixels(input: ImageInput, options: DecodeOptions): Promise<Pixels> {
  expectNotAborted(options.signal);
  if (isRaw(input)) return rawPixels(input, options);
  const limit = expectLimit(options.maxPixels ?? MAX_PIXELS);
  const { bytes, name } = await bytesOf(input, options.signal);
  const image = await decodeBytes(bytes, name, limit, options);
  expectNotAborted(options.signal);
  return image;
}

/** Raw pixels under the options of a decoder, checked. */
export function rawPixels(image: RawImage, options: DecodeOptions): Pixels {
  const limit = expectLimit(options.maxPixels ?? MAX_PIXELS);
  expectPixels('raw image', image.width, image.height, limit);
  return pixelsOf(image, options.background);
}

/** Whether an image is pixels already. */
export function isRaw(input: ImageInput): input is RawImage {
  return isObject(input) && 'data' in input && ArrayBuffer.isView(input.data);
}

async function decodeBytes(
  bytes: Buffer,
  name: string,
  limit: number,
  options: DecodeOptions,
): Promise<Pixels> {
  try {
    const input = {
      failOn: 'error',
      ignoreIcc: options.colorProfile !== 'convert',
      autoOrient: options.orientation !== 'ignore',
    } as const;
    const header = await sharp(bytes, { ...input, limitInputPixels: false }).metadata();
    expectPixels(name, header.width, header.height, limit);
    const decoder = sharp(bytes, { ...input, limitInputPixels: limit }).raw({ depth: 'uchar' });
    // Without its profile a CMYK image has no colours of its own; the printing profile that the
    // decoder would assume instead is not what the reference does.
    const cmyk = header.space === 'cmyk' && input.ignoreIcc;
    if (cmyk) decoder.removeAlpha().pipelineColourspace('cmyk').toColourspace('cmyk');
    else withoutAlpha(decoder, options.background).toColourspace('srgb');
    const { data, info } = await decoder.toBuffer({ resolveWithObject: true });
    const { width, height, channels } = info;
    // Only this function knows the memory.
    const pixels = { ...pixelsOf({ data, width, height, channels }), owned: true };
    return cmyk ? { ...pixels, format: 'cmyk' } : pixels;
  } catch (error) {
    if (error instanceof SiglipError) throw error;
    throw new SiglipError('ERR_IMAGE', notAnImage(name, bytes, error), { cause: error });
  }
}

function withoutAlpha(decoder: sharp.Sharp, background: Colour | undefined): sharp.Sharp {
  if (background === undefined) return decoder.removeAlpha();
  const [r, g, b] = background;
  return decoder.flatten({ background: { r, g, b } });
}

function notAnImage(name: string, bytes: Buffer, error: unknown): string {
  const reason = error instanceof Error ? error.message : String(error);
  const first = reason.split('\n')[0];
  if (bytes.length === 0) return `decodeImage: ${name} must hold an encoded image, got no bytes`;
  return [
    `decodeImage: ${name} must be an undamaged JPEG, PNG, WebP, GIF, AVIF, TIFF or SVG image, got ` +
      `${String(bytes.length)} bytes that do not decode`,
    `decoder: ${first}`,
    'to do: fetch the file again if it is cut short; convert other formats first.',
  ].join('\n');
}

async function bytesOf(
  input: string | URL | Uint8Array | ArrayBuffer,
  signal: AbortSignal | undefined,
): Promise<{ bytes: Buffer; name: string }> {
  if (typeof input === 'string' || input instanceof URL) {
    const path = pathOf(input);
    return { bytes: await readBytes(path, signal), name: path };
  }
  if (types.isAnyArrayBuffer(input)) return { bytes: Buffer.from(input), name: 'input' };
  if (types.isUint8Array(input)) {
    const bytes = Buffer.from(input.buffer, input.byteOffset, input.byteLength);
    return { bytes, name: 'input' };
  }
  throw new SiglipError(
    'ERR_IMAGE',
    'decodeImage: input must be a path, encoded bytes or { data, width, height, channels }, got ' +
      describe(input),
  );
}

// Bytes are read here and not by the decoder, whose cache by path would miss a changed file.
async function readBytes(path: string, signal: AbortSignal | undefined): Promise<Buffer> {
  try {
    return await readFile(path, { signal });
  } catch (error) {
    expectNotAborted(signal);
    const reason = error instanceof Error ? error.message : String(error);
    throw new SiglipError(
      'ERR_FILE',
      `decodeImage: ${path} must be a readable image file, got ${reason}`,
      { cause: error },
    );
  }
}

function pathOf(input: string | URL): string {
  const text = String(input);
  if (text.startsWith('file:')) return fileURLToPath(text);
  if (/^[a-z][a-z+.-]+:/iu.test(text)) {
    throw new SiglipError(
      'ERR_IMAGE',
      `decodeImage: input must be a path or a file: URL, got ${text.slice(0, 80)}\n` +
        'to do: fetch the address and pass the bytes.',
    );
  }
  return text;
}

// The declared type excludes null; callers without types do not.
function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null;
}

function expectPixels(name: string, width: number, height: number, limit: number): void {
  if (width * height <= limit) return;
  throw new SiglipError(
    'ERR_IMAGE',
    `decodeImage: ${name} must have at most ${String(limit)} pixels, got ` +
      `${String(width)} × ${String(height)}\nto do: raise maxPixels if the source is trusted.`,
  );
}

function expectLimit(limit: number): number {
  if (Number.isSafeInteger(limit) && limit > 0) return limit;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `decodeImage: maxPixels must be a positive integer, got ${String(limit)}`,
  );
}

/** @throws SiglipError ERR_ABORTED */
export function expectNotAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted !== true) return;
  throw new SiglipError('ERR_ABORTED', 'decodeImage: stopped by its signal', {
    cause: signal.reason,
  });
}

function describe(value: unknown): string {
  return value === null ? 'null' : typeof value;
}

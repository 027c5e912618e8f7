// Drawings of emoji as pixels: SVG to RGB on white, once per (style, size), then read from a file.
//
// Cache file: 8 bytes magic, the header's length as uint32 (little endian), the header as JSON, the
// pixels (N, S, S, 3). A header that does not say exactly what is asked, or pixels that do not have
// its SHA-256, make the file as good as absent: it is drawn again.
import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import sharp from 'sharp';
import { SiglipError } from '../errors';
import {
  emojiStyles,
  readEmoji,
  readEmojiJson,
  resolveEmojiPackage,
  type Emoji,
  type EmojiPackageOptions,
  type EmojiStyle,
} from './emoji';
import { iconNames, readIconSet, type IconSet } from './emoji_icons';

const MAGIC = 'SGLPDRAW';
/** Raised whenever the pixels of the same drawing would come out differently. */
const VERSION = 1;
/** A drawing with fewer pixels than this share unlike the background counts as blank. */
const LEAST_INK = 0.01;

interface Header {
  readonly version: number;
  readonly style: string;
  readonly packageVersion: string;
  readonly size: number;
  readonly keys: readonly string[];
  readonly sha256: string;
}

/** How drawings are made and kept. */
export interface DrawingOptions extends EmojiPackageOptions {
  /**
   * Folder of the cached drawings; default: the variable `SIGLIP2_EMOJI_CACHE`, or `.cache/emoji`
   * under the working directory.
   */
  cache?: string | undefined;
  /** Drawings made at the same time, default: the processor's cores, at most 4. */
  concurrency?: number | undefined;
  /** Called while drawing (not when the cache serves) with the count done and the total. */
  onProgress?: ((done: number, total: number) => void) | undefined;
  /** Stops the drawing with ERR_ABORTED. */
  signal?: AbortSignal | undefined;
}

/** Folder in which drawings are cached; see {@link DrawingOptions}. */
export function emojiCacheFolder(options: Pick<DrawingOptions, 'cache'> = {}): string {
  return resolve(options.cache ?? process.env.SIGLIP2_EMOJI_CACHE ?? join('.cache', 'emoji'));
}

/**
 * Pixels of these emoji in one style: (N, S, S, 3) uint8 RGB, centred on a white square. The first
 * call for a style and size draws all emoji that the style has (about 2.5 ms each) and writes the
 * cache; later ones read it.
 *
 * @param emoji of those that the style draws; see {@link drawnRows}
 * @param size pixels per side, 8 to 1024
 * @throws ERR_FILE when a package is missing or the cache folder cannot be written; ERR_IMAGE when
 *   a drawing cannot be made or comes out blank; ERR_ARGUMENT; ERR_ABORTED
 */
export async function emojiDrawings(
  emoji: readonly Emoji[],
  style: EmojiStyle,
  size: number,
  options: DrawingOptions = {},
): Promise<Uint8Array> {
  if (!emojiStyles.includes(style)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `emojiDrawings: style must be one of ${emojiStyles.join(', ')}, got ${style as string}`,
    );
  }
  if (!Number.isInteger(size) || size < 8 || size > 1024) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `emojiDrawings: size must be an integer from 8 to 1024, got ${String(size)}`,
    );
  }
  const names = iconNames(style, options);
  const all = readEmoji(options).filter(({ key }) => names.has(key));
  const rowOf = new Map(all.map(({ key }, row) => [key, row]));
  const { version } = readEmojiJson(
    resolveEmojiPackage(`@iconify-json/${style}/package.json`, options),
  ) as { version: string };
  const wanted: Omit<Header, 'sha256'> = {
    version: VERSION,
    style,
    packageVersion: version,
    size,
    keys: all.map(({ key }) => key),
  };
  const folder = emojiCacheFolder(options);
  const path = join(folder, `${style}-${String(size)}.drawings`);
  let pixels = await readCache(path, wanted);
  if (pixels === undefined) {
    pixels = await draw(all, names, style, size, options);
    await writeCache(folder, path, wanted, pixels);
  }
  const bytes = size * size * 3;
  const chosen = new Uint8Array(emoji.length * bytes);
  for (const [i, { key }] of emoji.entries()) {
    const row = rowOf.get(key);
    if (row === undefined) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `emojiDrawings: emoji must be of those that ${style} draws, got ${key}`,
      );
    }
    chosen.set(pixels.subarray(row * bytes, (row + 1) * bytes), i * bytes);
  }
  return chosen;
}

async function readCache(
  path: string,
  wanted: Omit<Header, 'sha256'>,
): Promise<Uint8Array | undefined> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch {
    return undefined;
  }
  const pixelBytes = wanted.keys.length * wanted.size * wanted.size * 3;
  if (bytes.length < 12 || bytes.toString('latin1', 0, 8) !== MAGIC) return undefined;
  const headerEnd = 12 + bytes.readUInt32LE(8);
  if (bytes.length !== headerEnd + pixelBytes) return undefined;
  const pixels = bytes.subarray(headerEnd);
  const expected: Header = { ...wanted, sha256: sha256(pixels) };
  if (bytes.toString('utf8', 12, headerEnd) !== JSON.stringify(expected)) return undefined;
  return pixels;
}

async function writeCache(
  folder: string,
  path: string,
  wanted: Omit<Header, 'sha256'>,
  pixels: Uint8Array,
): Promise<void> {
  const header = Buffer.from(JSON.stringify({ ...wanted, sha256: sha256(pixels) }));
  const start = Buffer.alloc(12);
  start.write(MAGIC, 'latin1');
  start.writeUInt32LE(header.length, 8);
  // Another process may write the same file: each writes its own, the last rename wins.
  const temporary = `${path}.${randomUUID()}.tmp`;
  try {
    await mkdir(folder, { recursive: true });
    await writeFile(temporary, Buffer.concat([start, header, pixels]));
    await rename(temporary, path);
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw new SiglipError(
      'ERR_FILE',
      `emojiDrawings: ${folder} must be a folder that can be written, got ${String(cause)}\n` +
        'choose another with the option cache or the variable SIGLIP2_EMOJI_CACHE',
      { cause },
    );
  }
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

async function draw(
  emoji: readonly Emoji[],
  names: ReadonlyMap<string, string>,
  style: EmojiStyle,
  size: number,
  options: DrawingOptions,
): Promise<Uint8Array> {
  const set = readIconSet(style, options);
  const bytes = size * size * 3;
  const pixels = new Uint8Array(emoji.length * bytes);
  let next = 0;
  let done = 0;
  const lane = async (): Promise<void> => {
    for (let i = next++; i < emoji.length; i = next++) {
      if (options.signal?.aborted === true) {
        next = emoji.length;
        throw new SiglipError('ERR_ABORTED', `emojiDrawings: drawing ${style} was aborted`, {
          cause: options.signal.reason,
        });
      }
      const { key } = emoji[i];
      const icon = names.get(key) ?? '';
      pixels.set(await drawIcon(set, style, icon, size), i * bytes);
      options.onProgress?.(++done, emoji.length);
    }
  };
  const lanes = Math.max(1, options.concurrency ?? Math.min(4, availableParallelism()));
  await Promise.all(Array.from({ length: lanes }, lane));
  return pixels;
}

async function drawIcon(
  set: IconSet,
  style: EmojiStyle,
  name: string,
  size: number,
): Promise<Uint8Array> {
  const icon = set.icons[name];
  if (icon === undefined) {
    throw new SiglipError(
      'ERR_IMAGE',
      `emojiDrawings: ${style} must have the icon ${name}, got none`,
    );
  }
  const width = icon.width ?? set.width ?? 16;
  const height = icon.height ?? set.height ?? 16;
  // The view box is the square around the drawing: a few are not square.
  const side = Math.max(width, height);
  const box = [(width - side) / 2, (height - side) / 2, side, side].join(' ');
  const svg =
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ' +
    `width="${String(size)}" height="${String(size)}" viewBox="${box}">${icon.body}</svg>`;
  let pixels: Buffer;
  try {
    pixels = await sharp(Buffer.from(svg))
      .flatten({ background: '#ffffff' })
      .toColourspace('srgb')
      .raw()
      .toBuffer();
  } catch (cause) {
    throw new SiglipError(
      'ERR_IMAGE',
      `emojiDrawings: ${style}/${name} must be an SVG that can be drawn, got ${String(cause)}`,
      { cause },
    );
  }
  if (pixels.length !== size * size * 3) {
    throw new SiglipError(
      'ERR_IMAGE',
      `emojiDrawings: ${style}/${name} must give ${String(size * size * 3)} bytes, ` +
        `got ${String(pixels.length)}`,
    );
  }
  let ink = 0;
  for (const value of pixels) if (value < 250) ink++;
  if (ink < LEAST_INK * pixels.length) {
    throw new SiglipError(
      'ERR_IMAGE',
      `emojiDrawings: ${style}/${name} must not be blank, got white`,
    );
  }
  return pixels;
}

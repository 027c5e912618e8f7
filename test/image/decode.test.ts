import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import sharp from 'sharp';
import { decodeImage } from '../../lib/image';
import { Philox4x32 } from '../../lib/array/random';
import { SiglipError } from '../../lib/errors';
import { formulaImage, sha256 } from './formula_image';

const folder = join(__dirname, '..', 'golden', 'image');
const { decoded } = JSON.parse(readFileSync(join(folder, 'pillow.json'), 'utf8')) as {
  decoded: Record<string, { width: number; height: number; sha256: string }>;
};

describe('decodeImage equals Pillow', () => {
  test.each(Object.entries(decoded))('%s', async (name, expected) => {
    const image = await decodeImage(join(folder, name));
    expect([image.width, image.height]).toEqual([expected.width, expected.height]);
    expect(sha256(image.data)).toBe(expected.sha256);
  });
});

describe('decodeImage, inputs', () => {
  const path = join(folder, 'rgb.png');
  const bytes = readFileSync(path);
  const expected = formulaImage(16, 24);

  test.each<[string, string | URL | Uint8Array | ArrayBuffer]>([
    ['a path', path],
    ['a file: URL', pathToFileURL(path)],
    ['a file: URL as text', pathToFileURL(path).href],
    ['a Buffer', bytes],
    ['a Uint8Array in the middle of its buffer', new Uint8Array([0, ...bytes, 0]).subarray(1, -1)],
    ['an ArrayBuffer', new Uint8Array(bytes).buffer],
  ])('%s', async (_, input) => {
    expect(await decodeImage(input)).toEqual(expected);
  });

  test('raw pixels of one to four channels', async () => {
    const size = { width: 2, height: 1 };
    const decode = async (channels: 1 | 2 | 3 | 4, data: number[]): Promise<number[]> =>
      Array.from((await decodeImage({ ...size, channels, data: Uint8Array.from(data) })).data);
    expect(await decode(1, [5, 7])).toEqual([5, 5, 5, 7, 7, 7]);
    expect(await decode(2, [5, 0, 7, 255])).toEqual([5, 5, 5, 7, 7, 7]);
    expect(await decode(3, [1, 2, 3, 4, 5, 6])).toEqual([1, 2, 3, 4, 5, 6]);
    expect(await decode(4, [1, 2, 3, 0, 4, 5, 6, 9])).toEqual([1, 2, 3, 4, 5, 6]);
  });

  test('a background shows through alpha only when asked for', async () => {
    const raw = { width: 1, height: 1, channels: 4, data: Uint8Array.of(100, 0, 200, 51) } as const;
    const white = [255, 255, 255] as const;
    expect([...(await decodeImage(raw)).data]).toEqual([100, 0, 200]);
    expect([...(await decodeImage(raw, { background: white })).data]).toEqual([224, 204, 244]);
    const file = await sharp(raw.data, { raw: { width: 1, height: 1, channels: 4 } })
      .png()
      .toBuffer();
    const fromFile = await decodeImage(file, { background: white });
    fromFile.data.forEach((value, c) => {
      expect(Math.abs(value - [224, 204, 244][c])).toBeLessThanOrEqual(1);
    });
  });

  test('orientation can be left alone', async () => {
    const turned = join(folder, 'orientation_6.jpg');
    expect(await decodeImage(turned)).toMatchObject({ width: 16, height: 24 });
    expect(await decodeImage(turned, { orientation: 'ignore' })).toMatchObject({
      width: 24,
      height: 16,
    });
  });

  test('an embedded profile is ignored unless conversion is asked for', async () => {
    const { data, width, height } = expected;
    const file = await sharp(data, { raw: { width, height, channels: 3 } })
      .png()
      .withIccProfile('p3', { attach: true })
      .toBuffer();
    const stored = await decodeImage(file);
    const converted = await decodeImage(file, { colorProfile: 'convert' });
    expect(sha256(stored.data)).not.toBe(sha256(expected.data));
    const change = converted.data.map((value, i) => Math.abs(value - expected.data[i]));
    const storedChange = stored.data.map((value, i) => Math.abs(value - expected.data[i]));
    const mean = (values: Uint8Array): number => values.reduce((a, b) => a + b, 0) / values.length;
    expect(mean(change)).toBeLessThan(mean(storedChange));
  });

  test('an SVG is drawn', async () => {
    const svg =
      '<svg xmlns="http://www.w3.org/2000/svg" width="2" height="2"><rect width="2" height="2" fill="#0a141e"/></svg>';
    const image = await decodeImage(new TextEncoder().encode(svg));
    expect([...image.data.subarray(0, 3)]).toEqual([10, 20, 30]);
  });
});

describe('decodeImage, refusals', () => {
  const expectCode = async (
    promise: Promise<unknown>,
    code: string,
    text: string,
  ): Promise<void> => {
    const error = await promise.then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(SiglipError);
    expect(error).toMatchObject({ code });
    expect(String(error)).toContain(text);
  };

  test.each(['rgb.jpg', 'rgb.png', 'rgba.webp', 'rgb.tiff'])('%s cut short', async (name) => {
    const bytes = readFileSync(join(folder, name));
    const short = bytes.subarray(0, Math.floor(bytes.length * 0.7));
    await expectCode(decodeImage(short), 'ERR_IMAGE', 'input must be an undamaged');
  });

  test('bytes that are no image', async () => {
    await expectCode(decodeImage(new Uint8Array(0)), 'ERR_IMAGE', 'got no bytes');
    await expectCode(decodeImage(Buffer.from('<!DOCTYPE html>')), 'ERR_IMAGE', '15 bytes');
    await expectCode(decodeImage(7 as never), 'ERR_IMAGE', 'got number');
    await expectCode(decodeImage(null as never), 'ERR_IMAGE', 'got null');
    await expectCode(decodeImage({} as never), 'ERR_IMAGE', 'got object');
  });

  test('paths that are no file', async () => {
    await expectCode(decodeImage(join(folder, 'none.png')), 'ERR_FILE', 'none.png');
    await expectCode(decodeImage(folder), 'ERR_FILE', folder);
    await expectCode(decodeImage('https://example.org/cat.jpg'), 'ERR_IMAGE', 'pass the bytes');
  });

  test('too many pixels, before they are decoded', async () => {
    const options = { maxPixels: 383 };
    const expected = 'at most 383 pixels, got 24 × 16';
    await expectCode(decodeImage(join(folder, 'rgb.png'), options), 'ERR_IMAGE', expected);
    const raw = { ...formulaImage(16, 24), channels: 3 } as const;
    await expectCode(decodeImage(raw, options), 'ERR_IMAGE', expected);
    await expectCode(decodeImage(raw, { maxPixels: 0 }), 'ERR_ARGUMENT', 'maxPixels');
    // A PNG header that promises 2^31 - 1 pixels a side.
    const bomb = Buffer.from(readFileSync(join(folder, 'rgb.png')));
    bomb.writeUInt32BE(0x7fffffff, 16);
    bomb.writeUInt32BE(0x7fffffff, 20);
    await expectCode(decodeImage(bomb), 'ERR_IMAGE', 'input');
  });

  test.each<[string, Record<string, unknown>]>([
    ['width must be a positive integer, got 0', { width: 0 }],
    ['height must be a positive integer, got 1.5', { height: 1.5 }],
    ['channels must be 1, 2, 3 or 4, got 5', { channels: 5 }],
    ['must have 12 bytes, got 11', { data: new Uint8Array(11) }],
  ])('raw pixels: %s', async (message, change) => {
    const raw = { width: 2, height: 2, channels: 3, data: new Uint8Array(12), ...change };
    await expectCode(decodeImage(raw as never), 'ERR_IMAGE', message);
  });

  test('an aborted signal', async () => {
    const signal = AbortSignal.abort();
    await expectCode(decodeImage(join(folder, 'rgb.png'), { signal }), 'ERR_ABORTED', 'stopped');
  });

  test('damaged bytes never do more than fail', async () => {
    const random = new Philox4x32(3, 'decode');
    const names = ['rgb.jpg', 'rgba.png', 'rgba.webp', 'animation.gif', 'rgb.tiff', 'cmyk.jpg'];
    for (let round = 0; round < 60; round++) {
      const bytes = Buffer.from(readFileSync(join(folder, names[round % names.length])));
      for (let change = 0; change < 4; change++) {
        bytes[random.integer(bytes.length)] = random.integer(256);
      }
      const result = await decodeImage(bytes, { maxPixels: 100_000 }).catch(
        (reason: unknown) => reason,
      );
      if (result instanceof SiglipError) expect(result.code).toBe('ERR_IMAGE');
      else expect(result).toHaveProperty('data');
    }
  });
});

// What every kind of encoded file becomes: each rule of `decodeImage`, through files made here by the
// decoder's own encoder.
import sharp from 'sharp';
import { createProcessor, decodeImage } from '../../lib/image';
import { parsePreprocessor } from '../../lib/weights';
import { formulaImage } from './formula_image';

const [width, height] = [7, 5];
const size = { width, height };
const count = width * height;
const colours = formulaImage(height, width);
const greys = Uint8Array.from({ length: count }, (_, i) => (i * 37) % 256);
const greyRgb = [...greys].flatMap((value) => [value, value, value]);
const alphas = Uint8Array.from({ length: count }, (_, i) => (i % 3 === 0 ? 0 : (i * 50) % 256));

/** Straight alpha beside some channels. */
function withAlpha(data: Uint8Array, channels: 1 | 3): Uint8Array {
  const result = new Uint8Array(count * (channels + 1));
  for (let i = 0; i < count; i++) {
    result.set(data.subarray(channels * i, channels * (i + 1)), (channels + 1) * i);
    result[(channels + 1) * (i + 1) - 1] = alphas[i];
  }
  return result;
}

const raw = (data: Uint8Array, channels: 1 | 2 | 3 | 4): sharp.Sharp =>
  sharp(data, { raw: { width, height, channels } });
const pixelsOf = async (file: Buffer, options = {}): Promise<number[]> =>
  Array.from((await decodeImage(file, options)).data);

test.each([
  ['RGB, PNG', () => raw(colours.data, 3).png()],
  ['RGB, TIFF', () => raw(colours.data, 3).tiff({ compression: 'lzw' })],
  ['RGB, lossless WebP', () => raw(colours.data, 3).webp({ lossless: true })],
])('%s: as stored', async (_, encode) => {
  expect(await decodeImage(await encode().toBuffer())).toEqual(colours);
});

test('grey is replicated', async () => {
  const file = await raw(greys, 1).toColourspace('b-w').png().toBuffer();
  expect(await sharp(file).metadata()).toMatchObject({ channels: 1 });
  expect(await pixelsOf(file)).toEqual(greyRgb);
});

test('grey with alpha: the alpha is dropped', async () => {
  const file = await raw(withAlpha(greys, 1), 2).toColourspace('b-w').png().toBuffer();
  expect(await sharp(file).metadata()).toMatchObject({ channels: 2, hasAlpha: true });
  expect(await pixelsOf(file)).toEqual(greyRgb);
});

test('RGBA: the alpha is dropped, and what is fully transparent shows its colour', async () => {
  const file = await raw(withAlpha(colours.data, 3), 4).png().toBuffer();
  expect(await sharp(file).metadata()).toMatchObject({ channels: 4, hasAlpha: true });
  expect(await pixelsOf(file)).toEqual([...colours.data]);
});

test('RGBA over a background, where one is asked for', async () => {
  const file = await raw(withAlpha(colours.data, 3), 4).png().toBuffer();
  const background = [10, 120, 250] as const;
  const pixels = await pixelsOf(file, { background });
  // The decoder rounds its own way, by one at most.
  pixels.forEach((value, i) => {
    const alpha = alphas[Math.floor(i / 3)] / 255;
    const mixed = colours.data[i] * alpha + background[i % 3] * (1 - alpha);
    expect(Math.abs(value - mixed)).toBeLessThanOrEqual(1);
  });
  // Raw pixels are rounded to nearest.
  const data = withAlpha(colours.data, 3);
  const fromRaw = await decodeImage({ data, ...size, channels: 4 }, { background });
  fromRaw.data.forEach((value, i) => {
    const alpha = alphas[Math.floor(i / 3)];
    const mixed = (colours.data[i] * alpha + background[i % 3] * (255 - alpha)) / 255;
    expect(Math.abs(value - mixed)).toBeLessThanOrEqual(0.5);
  });
});

test('a palette is looked up', async () => {
  const few = colours.data.map((value) => (value < 128 ? 20 : 230));
  const file = await raw(few, 3)
    .png({ palette: true, colours: 8, dither: 0, effort: 1 })
    .toBuffer();
  expect(await sharp(file).metadata()).toMatchObject({
    paletteBitDepth: expect.any(Number) as number,
  });
  const stored = await sharp(file).toColourspace('srgb').removeAlpha().raw().toBuffer();
  expect(await pixelsOf(file)).toEqual([...stored]);
  expect(new Set(await pixelsOf(file)).size).toBeLessThanOrEqual(24);
  (await pixelsOf(file)).forEach((value, i) => {
    expect(Math.abs(value - few[i])).toBeLessThanOrEqual(8);
  });
});

// Five channels: CMYK with alpha, which is dropped.
test.each([4, 5])('CMYK of %i channels: (255 − ink)(255 − black) / 255', async (channels) => {
  const inks = Uint8Array.from({ length: 4 * count }, (_, i) => (i * 61) % 256);
  const source = channels === 4 ? raw(inks, 4).removeAlpha() : raw(inks, 4);
  const file = await source
    .pipelineColourspace('cmyk')
    .toColourspace('cmyk')
    .tiff({ compression: 'lzw' })
    .toBuffer();
  expect(await sharp(file).metadata()).toMatchObject({ space: 'cmyk', channels });
  const stored = await sharp(file, { ignoreIcc: true })
    .removeAlpha()
    .pipelineColourspace('cmyk')
    .toColourspace('cmyk')
    .raw()
    .toBuffer();
  expect(stored.length).toBe(4 * count);
  const pixels = await pixelsOf(file);
  expect(pixels.length).toBe(3 * count);
  pixels.forEach((value, i) => {
    const [ink, black] = [
      stored[4 * Math.floor(i / 3) + (i % 3)],
      stored[4 * Math.floor(i / 3) + 3],
    ];
    expect(Math.abs(value - ((255 - ink) * (255 - black)) / 255)).toBeLessThanOrEqual(0.5);
  });
});

test.each([
  ['grey', 1],
  ['RGB', 3],
  ['RGBA', 4],
] as const)('16-bit %s: the upper byte, not clipped', async (_, channels) => {
  const samples = Uint16Array.from({ length: count * channels }, (__, i) => (i * 7919) % 65536);
  const file = await sharp(samples, { raw: { width, height, channels } })
    .toColourspace(channels === 1 ? 'grey16' : 'rgb16')
    .png()
    .toBuffer();
  expect(await sharp(file).metadata()).toMatchObject({ depth: 'ushort' });
  const expected = Array.from({ length: 3 * count }, (__, i) => {
    const c = channels === 1 ? 0 : i % 3;
    return samples[channels * Math.floor(i / 3) + c] >> 8;
  });
  expect(await pixelsOf(file)).toEqual(expected);
});

// Where pixel (x, y) of the upright image is stored, by EXIF orientation.
const STORED: Record<number, (x: number, y: number) => [number, number]> = {
  1: (x, y) => [x, y],
  2: (x, y) => [width - 1 - x, y],
  3: (x, y) => [width - 1 - x, height - 1 - y],
  4: (x, y) => [x, height - 1 - y],
  5: (x, y) => [y, x],
  6: (x, y) => [y, height - 1 - x],
  7: (x, y) => [width - 1 - y, height - 1 - x],
  8: (x, y) => [width - 1 - y, x],
};
test.each(Object.entries(STORED))('EXIF orientation %s is applied', async (name, stored) => {
  const orientation = Number(name);
  const file = await raw(colours.data, 3).png().withMetadata({ orientation }).toBuffer();
  const turned = orientation >= 5;
  const image = await decodeImage(file);
  expect([image.width, image.height]).toEqual(turned ? [height, width] : [width, height]);
  for (let y = 0; y < image.height; y++) {
    for (let x = 0; x < image.width; x++) {
      const [fromX, fromY] = stored(x, y);
      const from = 3 * (fromY * width + fromX);
      const at = 3 * (y * image.width + x);
      expect([...image.data.subarray(at, at + 3)]).toEqual([
        ...colours.data.subarray(from, from + 3),
      ]);
    }
  }
  expect(await decodeImage(file, { orientation: 'ignore' })).toEqual(colours);
});

test.each(['webp', 'gif'] as const)('of an animated %s the first frame', async (format) => {
  const frames = new Uint8Array(3 * count * 3);
  frames.fill(250, 0, 3 * count);
  frames.fill(5, 3 * count, 6 * count);
  frames.fill(120, 6 * count);
  const file = await sharp(frames, {
    raw: { width, height: 3 * height, channels: 3, pageHeight: height },
  })
    .toFormat(format, { lossless: true, delay: [10, 10, 10] })
    .toBuffer();
  expect(await sharp(file, { animated: true }).metadata()).toMatchObject({ pages: 3 });
  const image = await decodeImage(file);
  expect([image.width, image.height]).toEqual([width, height]);
  image.data.forEach((value) => {
    expect(Math.abs(value - 250)).toBeLessThanOrEqual(4);
  });
});

test('a processor takes every kind as decodeImage gives it', async () => {
  const processor = createProcessor(parsePreprocessor({ size: 6 }, 'fixed'));
  const inks = Uint8Array.from({ length: 4 * count }, (_, i) => (i * 61) % 256);
  const files = await Promise.all([
    raw(greys, 1).toColourspace('b-w').png().toBuffer(),
    raw(withAlpha(greys, 1), 2).toColourspace('b-w').png().toBuffer(),
    raw(withAlpha(colours.data, 3), 4).png().toBuffer(),
    raw(inks, 4).pipelineColourspace('cmyk').toColourspace('cmyk').tiff().toBuffer(),
    raw(colours.data, 3).jpeg().withMetadata({ orientation: 6 }).toBuffer(),
  ]);
  for (const file of files) {
    const decoded = await processor.prepare(await decodeImage(file));
    expect((await processor.prepare(file)).values).toEqual(decoded.values);
  }
});

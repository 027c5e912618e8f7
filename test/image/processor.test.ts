import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ImageInput, RawImage } from '../../lib/image';
import {
  createProcessor,
  decodeImage,
  FixedProcessor,
  naflexGrid,
  NaflexProcessor,
  resizeImage,
} from '../../lib/image';
import type { FixedPreprocessor } from '../../lib/weights/preprocessor_config';
import { parsePreprocessor } from '../../lib/weights/preprocessor_config';
import { patchesReference, planesReference, rgbReference } from '../reference/prepare';
import { resizeReference } from '../reference/resize';
import { describeGolden } from '../golden_cases/golden';
import { formulaImage, sha256 } from './formula_image';

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array): Buffer =>
  Buffer.from(buffer, byteOffset, byteLength);
const sum = (values: Float32Array): number => values.reduce((total, value) => total + value, 0);
const sumAbs = (values: Float32Array): number =>
  values.reduce((total, value) => total + Math.abs(value), 0);

// Values of transformers 5.18.0 with Pillow on the formula image.
describe('FixedProcessor', () => {
  const config = parsePreprocessor(
    { resample: 2, size: { height: 224, width: 224 } },
    'fixed',
  ) as FixedPreprocessor;
  const processor = new FixedProcessor(config);

  test('480×640 to 224', async () => {
    const { images } = await processor.batch([formulaImage(480, 640)]);
    const pixel = (i: number): number[] => [0, 1, 2].map((c) => images[c * 224 * 224 + i]);
    const close = (actual: number[], expected: number[]): void => {
      actual.forEach((value, c) => {
        expect(value).toBeCloseTo(expected[c], 7);
      });
    };
    close(pixel(0), [-0.12156862, -0.8509804, -0.96078432]);
    close(pixel(1), [0.06666672, -0.62352943, -0.8509804]);
    expect(sum(images)).toBeCloseTo(449.77643, 3);
    expect(sumAbs(images)).toBeCloseTo(32272.64643, 2);
  });

  test('bytes and their table give the same values as floats', async () => {
    const sources = [formulaImage(30, 50), formulaImage(300, 20)];
    const { images } = await processor.batch(sources);
    const bytes = await processor.pixels(sources);
    expect(bytes.length).toBe(images.length);
    const plane = 224 * 224;
    for (let i = 0; i < images.length; i += 997) {
      const [image, c, at] = [Math.floor(i / (3 * plane)), Math.floor(i / plane) % 3, i % plane];
      expect(images[i]).toBe(processor.table[256 * c + bytes[3 * (image * plane + at) + c]]);
    }
  });

  test('decoded images come out with the same bytes on a device', async () => {
    const sources = [formulaImage(30, 50), formulaImage(300, 20)];
    const expected = await processor.pixels(sources);
    const decoded = await Promise.all(sources.map(async (source) => processor.decode(source)));
    using array = await processor.resized(decoded, 'cpu');
    expect(array.shape).toEqual([2, 224, 224, 3]);
    expect(await array.read()).toEqual(expected);
    const shrunk = await Promise.all(decoded.map(async (pixels) => processor.shrunk(pixels)));
    using again = await processor.resized(shrunk, 'cpu');
    expect(await again.read()).toEqual(expected);
  });

  test('without resizing the size must be right', async () => {
    const asIs = new FixedProcessor({
      ...config,
      height: 4,
      width: 6,
      resample: null,
    });
    expect(await asIs.pixels([formulaImage(4, 6)])).toEqual(formulaImage(4, 6).data);
    await expect(asIs.pixels([formulaImage(6, 4)])).rejects.toThrow('image must have 4 × 6 pixels');
  });
});

describe('NaflexProcessor', () => {
  const processor = createProcessor(parsePreprocessor({}, 'naflex')) as NaflexProcessor;

  test.each([
    [480, 640, 252, 564.9853, 44986.43543],
    [100, 300, 243, 359.48621, 69955.66587],
  ])('%i×%i', async (height, width, count, total, absolute) => {
    const { patches, mask, shapes } = await processor.batch([formulaImage(height, width)]);
    expect(patches.length).toBe(256 * 768);
    expect(mask.reduce((n, value) => n + value, 0)).toBe(count);
    expect(shapes[0] * shapes[1]).toBe(count);
    expect(mask.lastIndexOf(1)).toBe(count - 1);
    expect(sum(patches)).toBeCloseTo(total, 3);
    expect(sumAbs(patches)).toBeCloseTo(absolute, 1);
  });

  test('the order inside a patch', async () => {
    const { patches } = await processor.batch([formulaImage(480, 640)]);
    const expected = [-0.20784312, -0.88235295, -0.96862745, 0.07450986, -0.70980394, -0.90588236];
    expected.forEach((value, i) => {
      expect(patches[i]).toBeCloseTo(value, 7);
    });
    [-0.23921567, 0.16078436, -0.27843136].forEach((value, i) => {
      expect(patches[768 + i]).toBeCloseTo(value, 7);
    });
  });

  test('images of a batch do not mix, and the budget can be given', async () => {
    const sources = [formulaImage(60, 40), formulaImage(40, 160)];
    const both = await processor.batch(sources, { maxPatches: 64 });
    for (const [i, source] of sources.entries()) {
      const one = await processor.batch([source], { maxPatches: 64 });
      const patches = both.patches.subarray(i * 64 * 768, (i + 1) * 64 * 768);
      expect(Buffer.compare(bytesOf(patches), bytesOf(one.patches))).toBe(0);
      expect(both.mask.subarray(i * 64, (i + 1) * 64)).toEqual(one.mask);
      expect(both.shapes.subarray(2 * i, 2 * i + 2)).toEqual(one.shapes);
    }
  });
});

// From any pixel format to floats, against the steps of the reference one after the other.
describe('pixels of every format', () => {
  const configs = ['SiglipImageProcessor', 'SiglipImageProcessorFast'].flatMap((name) =>
    [2, 3].map((resample) => ({
      resample,
      image_processor_type: name,
      image_mean: [0.48, 0.45, 0.4],
      image_std: [0.26, 0.27, 0.28],
      size: { height: 24, width: 20 },
      patch_size: 4,
      max_num_patches: 30,
    })),
  );
  const raw = (channels: 1 | 2 | 3 | 4, width: number, height: number): RawImage => {
    const data = new Uint8Array(channels * width * height);
    for (let i = 0; i < data.length; i++) data[i] = (i * 2654435761) >>> 11;
    return { data, width, height, channels };
  };
  // In turn: both axes, rows alone, columns alone, neither, the rule for tall images.
  const sizes = [
    [33, 19],
    [31, 24],
    [20, 61],
    [20, 24],
    [2, 250],
  ] as const;

  test.each(configs)('$image_processor_type, filter $resample', async (json) => {
    const fixedConfig = parsePreprocessor(json, 'fixed') as FixedPreprocessor;
    const fixed = new FixedProcessor(fixedConfig);
    const naflex = createProcessor(parsePreprocessor(json, 'naflex')) as NaflexProcessor;
    const { resample, backend } = fixedConfig;
    for (const channels of [1, 2, 3, 4] as const) {
      for (const [width, height] of sizes) {
        const image = raw(channels, width, height);
        const background = channels === 4 && width > 20 ? ([9, 200, 70] as const) : undefined;
        const rgb = rgbReference(image, background);
        const square = resizeReference(rgb, 20, 24, resample ?? 'bilinear', backend);
        const one = await fixed.prepare(image, { background });
        expect([one.width, one.height]).toEqual([20, 24]);
        expect([...one.values]).toEqual(planesReference(square, fixed.table));

        const { rows, columns } = naflexGrid(height, width, 4, 30);
        const grid = resizeReference(rgb, 4 * columns, 4 * rows, resample ?? 'bilinear', backend);
        const patches = await naflex.prepare(image, { background });
        expect([patches.width, patches.height]).toEqual([4 * columns, 4 * rows]);
        expect([...patches.values]).toEqual(patchesReference(grid, 4, naflex.table));
      }
    }
  });
});

describe('a batch', () => {
  const json = { size: 32, patch_size: 8, max_num_patches: 40 };
  const fixed = createProcessor(parsePreprocessor(json, 'fixed')) as FixedProcessor;
  const naflex = createProcessor(parsePreprocessor(json, 'naflex')) as NaflexProcessor;
  const folder = join(__dirname, '..', 'golden', 'image');
  const mixed = (): ImageInput[] => [
    join(folder, 'rgb.png'),
    formulaImage(50, 70),
    ...['cmyk.jpg', 'rgba.png', 'grey.png', 'rgb.jpg', 'rgba.webp'].map((name) =>
      readFileSync(join(folder, name)),
    ),
    formulaImage(7, 90),
    ...Array.from({ length: 12 }, () => join(folder, 'orientation_6.jpg')),
  ];

  test('of files and pixels holds what each gives alone', async () => {
    const { images } = await fixed.batch(mixed());
    const { patches, shapes, mask } = await naflex.batch(mixed());
    for (const [i, image] of mixed().entries()) {
      const { values } = await fixed.prepare(image);
      const row = images.subarray(i * values.length, (i + 1) * values.length);
      expect(Buffer.compare(bytesOf(row), bytesOf(values))).toBe(0);

      const one = await naflex.prepare(image);
      const count = one.values.length / 192;
      expect([...shapes.subarray(2 * i, 2 * i + 2)]).toEqual([one.height / 8, one.width / 8]);
      const rows = patches.subarray(i * 40 * 192, (i + 1) * 40 * 192);
      expect(Buffer.compare(bytesOf(rows.subarray(0, count * 192)), bytesOf(one.values))).toBe(0);
      expect(rows.subarray(count * 192).every((value) => value === 0)).toBe(true);
      const expected = Array.from({ length: 40 }, (_, k) => (k < count ? 1 : 0));
      expect([...mask.subarray(40 * i, 40 * i + 40)]).toEqual(expected);
    }
  });

  test('names the image that cannot be prepared', async () => {
    const failing = async (bad: ImageInput): Promise<unknown> => {
      const images = mixed();
      images[9] = bad;
      return fixed.batch(images).catch((error: unknown) => error);
    };
    expect(await failing(Buffer.from('no image'))).toMatchObject({
      code: 'ERR_IMAGE',
      message: expect.stringContaining('image 9: decodeImage: input must be') as string,
    });
    expect(await failing({ ...formulaImage(2, 2), width: 3 })).toMatchObject({
      code: 'ERR_IMAGE',
      message: expect.stringContaining('image 9: decodeImage: data of 3 × 2') as string,
    });
    await expect(naflex.batch([formulaImage(2, 2)], { maxPatches: 0 })).rejects.toThrow(
      'NaflexProcessor: maxPatches must be a positive integer, got 0',
    );
    const long = { data: new Uint8Array(9_000_000), width: 9_000_000, height: 1, channels: 1 };
    await expect(
      naflex.batch([formulaImage(2, 2), long as RawImage], { maxPatches: 1 }),
    ).rejects.toThrow('image 1: naflexGrid: an image of 1 × 9000000 pixels');
  });

  test('of none is empty', async () => {
    expect((await fixed.batch([])).images.length).toBe(0);
    expect((await naflex.batch([])).patches.length).toBe(0);
  });

  test('takes pixels as they are when it is called', async () => {
    const image = formulaImage(50, 70);
    const expected = (await fixed.batch([image])).images;
    const done = fixed.batch([image]);
    image.data.fill(0);
    expect((await done).images).toEqual(expected);
  });

  test('stops by its signal', async () => {
    const options = { signal: AbortSignal.abort() };
    for (const image of [formulaImage(3, 3), join(folder, 'rgb.png')]) {
      await expect(fixed.batch([image], options)).rejects.toMatchObject({ code: 'ERR_ABORTED' });
      await expect(naflex.prepare(image, options)).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    }
  });

  test('too large for memory is an error', async () => {
    const vast = new FixedProcessor({
      ...(parsePreprocessor({}, 'fixed') as FixedPreprocessor),
      height: 2 ** 22,
      width: 2 ** 22,
    });
    await expect(vast.prepare(formulaImage(3, 3))).rejects.toMatchObject({
      code: 'ERR_OUT_OF_MEMORY',
    });
  });
});

// Values of the published NaFlex checkpoint's processor, made by others.
const published = join(
  process.env.SIGLIP2_DATA ?? join(__dirname, '..', '..', '..', 'shared', 'data'),
  'golden',
  'naflex-512',
  'preprocess.json',
);
(existsSync(published) ? describe : describe.skip)('published preprocessing', () => {
  const golden = JSON.parse(existsSync(published) ? readFileSync(published, 'utf8') : '{}') as {
    budget_table: { height: number; width: number; grid: [number, number] }[];
    resize_u8: {
      src_h: number;
      src_w: number;
      dst_h: number;
      dst_w: number;
      src: number[];
      dst: number[];
    }[];
    normalize: { samples: { u8: number; f32: number }[] };
    patchify: { grid_h: number; grid_w: number; pixels: number[]; patches: number[] };
  };

  test('grids', () => {
    for (const { height, width, grid } of golden.budget_table) {
      const { rows, columns } = naflexGrid(height, width, 16, 512);
      expect([height, width, rows, columns]).toEqual([height, width, ...grid]);
    }
  });

  test('bytes', async () => {
    for (const { src_h, src_w, dst_h, dst_w, src, dst } of golden.resize_u8) {
      const channels = src.length / (src_h * src_w) === 3 ? 3 : 1;
      const image = { data: Uint8Array.from(src), width: src_w, height: src_h, channels } as const;
      const { data } = await resizeImage(image, dst_w, dst_h, 'bilinear');
      expect(channels === 3 ? [...data] : [...data].filter((_, i) => i % 3 === 0)).toEqual(dst);
    }
  });

  test('floats', () => {
    const { table } = createProcessor(parsePreprocessor({}, 'naflex'));
    for (const { u8, f32 } of golden.normalize.samples) expect(table[u8]).toBe(f32);
  });

  test('patches', async () => {
    const { grid_h, grid_w, pixels, patches } = golden.patchify;
    const patch = Math.sqrt(pixels.length / (3 * grid_h * grid_w));
    const off = { do_rescale: false, do_normalize: false };
    const processor = createProcessor(
      parsePreprocessor({ ...off, patch_size: patch, max_num_patches: grid_h * grid_w }, 'naflex'),
    );
    const [height, width] = [grid_h * patch, grid_w * patch];
    const image = { data: Uint8Array.from(pixels), width, height, channels: 3 } as const;
    const prepared = await processor.prepare(image);
    expect([prepared.height, prepared.width]).toEqual([height, width]);
    // The file numbers its pixels beyond 255; bytes keep the lower part.
    expect([...prepared.values]).toEqual(patches.map((value) => value & 255));
  });
});

// Photographs through the reference's NaFlex processor, as bytes in (y, x, colour) order.
describeGolden('preprocess', (golden) => {
  test.each(['00', '01', '02', '03', '04'])('photograph %s', async (name) => {
    const image = await decodeImage(join(golden.folder, `${name}.png`));
    const identity = { rescaleFactor: 1, mean: [0, 0, 0], std: [1, 1, 1] } as const;
    const processor = new NaflexProcessor({
      layout: 'naflex',
      patch: 16,
      maxPatches: 256,
      resample: 'bilinear',
      backend: 'pillow',
      ...identity,
    });
    for (const budget of [64, 256, 729]) {
      const key = `${name}.naflex${String(budget)}.patches_uint8`;
      const expected = golden.file('resized.safetensors').get(key);
      if (expected === undefined) continue;
      const { patches } = await processor.batch([image], { maxPatches: budget });
      const bytes = Uint8Array.from(patches.subarray(0, expected.data.length));
      expect(sha256(bytes)).toBe(sha256(Uint8Array.from(expected.data)));
    }
  });
});

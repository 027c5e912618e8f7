import { join } from 'node:path';
import { createProcessor, decodeImage, FixedProcessor, NaflexProcessor } from '../../lib/image';
import type { FixedPreprocessor } from '../../lib/weights/preprocessor_config';
import { parsePreprocessor } from '../../lib/weights/preprocessor_config';
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

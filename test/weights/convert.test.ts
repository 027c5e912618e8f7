import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Siglip2 } from '../../lib';
import type { DeviceArray } from '../../lib/array';
import { disposeArrays, flatten } from '../../lib/graph';
import { adaptModel } from '../../lib/model';
import type { Checkpoint } from '../../lib/weights';
import {
  convertCheckpoint,
  loadCheckpoint,
  parsePreprocessor,
  saveCheckpoint,
} from '../../lib/weights';
import { image, IMAGE_SIZE, modelFolder, PATCH } from '../embed/random_model';
import { GoldenCase } from '../golden_cases/golden';
import { temporaryFolder } from './files';
import { smallConfig, smallParameters } from './small_model';

async function valuesOf({ parameters }: Checkpoint): Promise<Map<string, Float32Array>> {
  const values = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(parameters)) {
    values.set(path, (await (leaf as DeviceArray).read()) as Float32Array);
  }
  disposeArrays(parameters);
  return values;
}

const folder = temporaryFolder();
const fixed = modelFolder('fixed');
const naflex = modelFolder('naflex');

describe('convertCheckpoint', () => {
  test.each([
    ['fixed', fixed],
    ['naflex', naflex],
  ] as const)('to its own shape: the same files, bit for bit (%s)', async (_, source) => {
    await convertCheckpoint(source(), folder());
    const files = readdirSync(source()).sort();
    expect(readdirSync(folder()).sort()).toEqual(files);
    expect(files).toContain('tokenizer.json');
    for (const file of files) {
      expect(readFileSync(join(folder(), file)).equals(readFileSync(join(source(), file)))).toBe(
        true,
      );
    }
  });

  test('another image size and patch: what adaptModel gives, and a model that takes such images', async () => {
    const options = { imageSize: 33, patch: 6, positionMethod: 'corner' } as const;
    const config = await convertCheckpoint(fixed(), folder(), options);
    expect(config.vision).toMatchObject({ patch: 6, imageSize: 33, positions: 25 });
    const before = await loadCheckpoint(fixed());
    const after = await loadCheckpoint(folder());
    expect(after.config).toEqual(config);
    expect(after.preprocessor).toEqual({ ...before.preprocessor, height: 33, width: 33 });
    const { adapt } = adaptModel(before.config, options, { positions: 'corner' });
    const [old, converted] = [await valuesOf(before), await valuesOf(after)];
    expect([...converted.keys()]).toEqual([...old.keys()]);
    for (const [path, values] of old) expect(converted.get(path)).toEqual(adapt(path, values));
    using model = await Siglip2.load(folder());
    const pixelValues = Float32Array.from({ length: 3 * 33 * 33 }, (_, i) => Math.sin(i));
    const [embedding] = await model.embedImages([{ pixelValues }]);
    expect(Math.hypot(...embedding)).toBeCloseTo(1, 5);
  });

  test('NaFlex at the full square grid is the fixed model', async () => {
    const side = IMAGE_SIZE / PATCH;
    const layout = { layout: 'naflex', positions: side * side } as const;
    await convertCheckpoint(fixed(), folder(), layout);
    using before = await Siglip2.load(fixed());
    using after = await Siglip2.load(folder());
    const { pixelValues } = image(3);
    const rows = Float32Array.from({ length: pixelValues.length }, (_, at) => {
      const [patch, y, x] = [3 * PATCH * PATCH, 3 * PATCH, 3].map((step) => Math.floor(at / step));
      const row = Math.floor(patch / side) * PATCH + (y % PATCH);
      const column = (patch % side) * PATCH + (x % PATCH);
      return pixelValues[((at % 3) * IMAGE_SIZE + row) * IMAGE_SIZE + column];
    });
    const [expected] = await before.embedImages([{ pixelValues }]);
    const [actual] = await after.embedImages([{ pixelValues: rows, spatialShape: [side, side] }]);
    expect(Math.max(...actual.map((value, i) => Math.abs(value - expected[i])))).toBeLessThan(1e-6);
  });

  test('the preparation of images goes along', async () => {
    const config = smallConfig('fixed');
    const preprocessor = parsePreprocessor(
      {
        image_processor_type: 'SiglipImageProcessorFast',
        resample: 3,
        image_std: [0.3, 0.4, 0.6],
        size: { height: 14, width: 14 },
      },
      'fixed',
    );
    const source = join(folder(), 'source');
    await saveCheckpoint(source, { config, parameters: smallParameters(config), preprocessor });
    const output = join(folder(), 'output');
    await convertCheckpoint(source, output, { layout: 'naflex', patch: 5 });
    const converted = await loadCheckpoint(output);
    disposeArrays(converted.parameters);
    expect(converted.preprocessor).toEqual({
      layout: 'naflex',
      patch: 5,
      maxPatches: 256,
      resample: 'bicubic',
      backend: 'torchvision',
      rescaleFactor: 1 / 255,
      mean: [0.5, 0.5, 0.5],
      std: [0.3, 0.4, 0.6],
    });
  });

  test('half the bytes in bfloat16', async () => {
    await convertCheckpoint(fixed(), folder(), { dtype: 'BF16' });
    const [old, converted] = await Promise.all(
      [fixed(), folder()].map(async (path) => valuesOf(await loadCheckpoint(path))),
    );
    for (const [path, values] of old) {
      const rounded = converted.get(path) ?? new Float32Array();
      for (const [i, value] of values.entries()) {
        expect(Math.abs(rounded[i] - value)).toBeLessThanOrEqual(Math.abs(value) / 256);
      }
    }
  });

  test('into its own folder is refused', async () => {
    await expect(convertCheckpoint(fixed(), join(fixed(), '.'))).rejects.toThrow(
      'convert: output must be another folder than the model',
    );
  });

  test('a failure leaves the folder as it was', async () => {
    writeFileSync(join(folder(), 'notes.txt'), 'mine');
    const source = join(folder(), 'source');
    const config = smallConfig('fixed');
    await saveCheckpoint(source, { config, parameters: smallParameters(config) });
    const file = join(source, 'model.safetensors');
    writeFileSync(file, readFileSync(file).subarray(0, -4));
    const output = join(folder(), 'output');
    await expect(convertCheckpoint(source, output, { imageSize: 20 })).rejects.toThrow();
    expect(readdirSync(folder()).sort()).toEqual(['notes.txt', 'source']);
  });
});

const golden = new GoldenCase('bv_two_towers_fixed');
(golden.present ? describe : describe.skip)('an archive of big_vision', () => {
  test('becomes a folder with a tokenizer of another', async () => {
    const archive = join(golden.folder, 'checkpoint_scan_layout.npz');
    const [imageSize] = golden.tensor('in/image').shape.slice(1);
    const config = await convertCheckpoint(archive, folder(), {
      tokenizer: fixed(),
      sourceImageSize: imageSize,
    });
    const loaded = await loadCheckpoint(folder());
    expect(loaded.config).toEqual(config);
    const values = await valuesOf(loaded);
    const scale = golden.tensor('param/t').data;
    expect([...(values.get('logitScale') ?? [])]).toEqual([...scale]);
    expect(readdirSync(folder())).toContain('tokenizer.json');
  });
});

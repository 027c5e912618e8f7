// The object a user holds, on small models saved in Hugging Face layout.
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import { Siglip2 } from '../../lib';
import type { EmbedImage, EmbedText } from '../../lib';
import { loadAddon } from '../../lib/native/load';
import { saveCheckpoint } from '../../lib/weights';
import { failure } from '../failure';
import { smallConfig, smallParameters } from '../weights/small_model';
import { expectGivenBack } from '../memory';

let folder = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-embed-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

async function load(layout: 'fixed' | 'naflex', pool: 'map' | 'none' = 'map'): Promise<Siglip2> {
  const config = smallConfig(layout, pool);
  await saveCheckpoint(folder, { config, parameters: smallParameters(config) });
  return Siglip2.load(folder);
}

function noise(count: number, seed = 1): Float32Array {
  const random = new Philox4x32(seed, 'embed test');
  return Float32Array.from({ length: count }, () => random.uniform(-1, 1));
}

const pixels = (seed = 1): { pixelValues: Float32Array } => ({
  pixelValues: noise(3 * 14 * 14, seed),
});
const ids = (...values: number[]): { inputIds: Int32Array } => ({
  inputIds: Int32Array.from(values),
});

function norm(x: Float32Array): number {
  return Math.hypot(...x);
}

describe('embedding', () => {
  test('one vector per entry, unit length by default, raw on request', async () => {
    using model = await load('fixed');
    const images = await model.embedImages([pixels(1), pixels(2), pixels(3)]);
    const texts = await model.embedTexts([ids(1, 2, 3, 4, 5), ids(5, 4, 3, 2, 1)]);
    expect([images.length, texts.length]).toEqual([3, 2]);
    for (const vector of [...images, ...texts]) {
      expect(vector).toHaveLength(12);
      expect(norm(vector)).toBeCloseTo(1, 5);
    }
    const [raw] = await model.embedImages([pixels(1)], { normalize: false });
    const length = norm(raw);
    raw.forEach((value, i) => {
      expect(value / length).toBeCloseTo(images[0][i], 5);
    });
  });

  test('the batch a vector is computed in does not matter', async () => {
    using model = await load('fixed');
    const all = [1, 2, 3, 4, 5].map((seed) => pixels(seed));
    const together = await model.embedImages(all);
    const apart = await model.embedImages(all, { batchSize: 2 });
    together.forEach((vector, i) => {
      vector.forEach((value, k) => {
        expect(apart[i][k]).toBeCloseTo(value, 6);
      });
    });
  });

  test('encoded bytes and raw pixels are the same image', async () => {
    using model = await load('fixed');
    const data = Uint8Array.from({ length: 14 * 14 * 3 }, (_, i) => (i * 37) % 256);
    const raw = { data, width: 14, height: 14, channels: 3 as const };
    const { default: sharp } = await import('sharp');
    const png = await sharp(data, { raw: { width: 14, height: 14, channels: 3 } })
      .png()
      .toBuffer();
    const [a, b] = await model.embedImages([raw, png]);
    expect(b).toEqual(a);
  });

  test('NaFlex: grids of different sizes in one call, rows beyond the grid ignored', async () => {
    using model = await load('naflex');
    const row = 4 * 4 * 3;
    const wide = { pixelValues: noise(6 * row), spatialShape: [2, 3] as const };
    const square = { pixelValues: noise(4 * row, 2), spatialShape: [2, 2] as const };
    const padded = new Float32Array(9 * row).fill(NaN);
    padded.set(wide.pixelValues);
    const [a] = await model.embedImages([wide]);
    const [b, , c] = await model.embedImages([
      wide,
      square,
      { pixelValues: padded, spatialShape: [2, 3] },
    ]);
    a.forEach((value, i) => {
      expect(b[i]).toBeCloseTo(value, 5);
      expect(c[i]).toBeCloseTo(value, 5);
    });
  });

  test('imageTokens gives the grid and one vector per patch', async () => {
    using model = await load('fixed', 'none');
    const { tokens, grid, width } = await model.imageTokens(pixels());
    expect([grid, width, tokens.length]).toEqual([[3, 3], 12, 9 * 12]);
    const { code } = await failure(model.embedImages([pixels()]));
    expect(code).toBe('ERR_CONFIG');
  });

  test('score is the sigmoid of scale times cosine plus bias', async () => {
    using model = await load('fixed');
    const [image] = await model.embedImages([pixels()]);
    const { logit, probability } = model.score(image, image);
    expect(logit).toBeCloseTo(model.logitScale + model.logitBias, 4);
    expect(probability).toBeCloseTo(1 / (1 + Math.exp(-logit)), 12);
  });

  test('dispose gives everything back, and later calls say so', async () => {
    const before = loadAddon().memory();
    const model = await load('fixed');
    await model.embedImages([pixels()]);
    await model.embedTexts([ids(1, 2, 3, 4, 5)]);
    model.dispose();
    model.dispose();
    expectGivenBack(before);
    expect((await failure(model.embedImages([pixels()]))).code).toBe('ERR_DISPOSED');
  });

  test('calls repeated do not grow memory', async () => {
    using model = await load('fixed');
    await model.embedImages([pixels()]);
    const before = loadAddon().memory();
    for (let i = 0; i < 20; i++) await model.embedImages([pixels(i)]);
    expectGivenBack(before);
  });
});

describe('bad input', () => {
  const tooLarge = pixels();
  tooLarge.pixelValues[17] = Infinity;

  test.each<[string, readonly EmbedImage[], string, RegExp]>([
    ['no images', [], 'ERR_ARGUMENT', /at least one entry, got none/],
    ['wrong pixel count', [{ pixelValues: noise(5) }], 'ERR_SHAPE', /\[3, 14, 14\].*got 5/],
    [
      'a pixel that is not finite',
      [pixels(), tooLarge],
      'ERR_NOT_FINITE',
      /image 1: .*Infinity at 17/,
    ],
    ['bytes that are no image', [new Uint8Array(100)], 'ERR_IMAGE', /image 0/],
    ['a path without a file', ['/nonexistent.png'], 'ERR_FILE', /nonexistent/],
  ])('%s', async (_, images, code, message) => {
    using model = await load('fixed');
    const error = await failure(model.embedImages(images));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
    // The model is as good as before.
    expect(await model.embedImages([pixels()])).toHaveLength(1);
  });

  test('what is refused while it runs leaves calls beside and behind it as they are', async () => {
    using model = await load('fixed');
    const expected = await model.embedImages([pixels(3)]);
    const calls = Array.from({ length: 6 }, (_, i) =>
      model.embedImages([i % 2 === 0 ? pixels(3) : tooLarge]),
    );
    for (const [i, call] of (await Promise.allSettled(calls)).entries()) {
      if (i % 2 === 0) expect(call).toEqual({ status: 'fulfilled', value: expected });
      else expect(call).toMatchObject({ status: 'rejected', reason: { code: 'ERR_NOT_FINITE' } });
    }
    expect(await model.embedImages([pixels(3)])).toEqual(expected);
    const refused = model.embedImages([tooLarge]);
    model.dispose();
    expect((await failure(refused)).code).toBe('ERR_NOT_FINITE');
  });

  test.each<[string, readonly EmbedText[], string, RegExp]>([
    ['no texts', [], 'ERR_ARGUMENT', /at least one entry/],
    ['too few ids', [ids(1, 2)], 'ERR_SHAPE', /5 ids, got 2/],
    [
      'an id outside of the vocabulary',
      [ids(0, 1, 2, 3, 17)],
      'ERR_ARGUMENT',
      /\[0, 17\), got 17 at 4/,
    ],
    ['a negative id', [ids(0, -1, 2, 3, 4)], 'ERR_ARGUMENT', /got -1 at 1/],
    ['a string without a tokenizer', ['cat'], 'ERR_TOKENIZER', /tokenizer\.json/],
  ])('%s', async (_, texts, code, message) => {
    using model = await load('fixed');
    const error = await failure(model.embedTexts(texts));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
  });

  test.each<[string, EmbedImage, RegExp]>([
    ['no grid', { pixelValues: noise(48) }, /spatialShape/],
    ['a grid of zero rows', { pixelValues: noise(48), spatialShape: [0, 1] }, /spatialShape/],
    ['too few rows', { pixelValues: noise(48), spatialShape: [2, 1] }, /at least 2 rows/],
  ])('NaFlex: %s', async (_, image, message) => {
    using model = await load('naflex');
    const error = await failure(model.embedImages([image]));
    expect(error.code).toBe('ERR_SHAPE');
    expect(error.message).toMatch(message);
  });

  test('an aborted signal ends the call', async () => {
    using model = await load('fixed');
    const error = await failure(model.embedImages([pixels()], { signal: AbortSignal.abort() }));
    expect(error.code).toBe('ERR_ABORTED');
  });

  test('folders that hold no usable model', async () => {
    expect((await failure(Siglip2.load('/nonexistent'))).code).toBe('ERR_FILE');
    (await load('fixed')).dispose();
    expect((await failure(Siglip2.load(folder, { device: 'cuda:99' }))).code).toBe('ERR_DEVICE');
    const weights = join(folder, 'model.safetensors');
    const whole = readFileSync(weights);
    truncateSync(weights, whole.length - 10);
    expect((await failure(Siglip2.load(folder))).code).toBe('ERR_WEIGHTS');
    writeFileSync(weights, whole);
    const config = join(folder, 'config.json');
    const text = readFileSync(config, 'utf8');
    writeFileSync(config, text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'));
    expect((await failure(Siglip2.load(folder))).code).toBe('ERR_WEIGHTS');
    writeFileSync(config, '{ "model_type": "clip" }');
    expect((await failure(Siglip2.load(folder))).code).toBe('ERR_CONFIG');
  });
});

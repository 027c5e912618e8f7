// Models large enough for batches to be divided among threads and tiles, saved in Hugging Face layout,
// with inputs for them.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import type { ModelConfig } from '../../lib/model';
import { initialize } from '../../lib/model';
import { saveCheckpoint } from '../../lib/weights';
import { smallTokenizerJson } from '../text/small_tokenizer';

/** Side of an image of the fixed-resolution model. */
export const IMAGE_SIZE = 28;
/** Side of a patch. */
export const PATCH = 4;
/** Ids of a text. */
export const TEXT_LENGTH = 16;

export function randomConfig(layout: 'fixed' | 'naflex'): ModelConfig {
  const tower = { width: 64, depth: 2, mlpWidth: 96, heads: 4, patch: PATCH, pool: 'map' } as const;
  const positions = (IMAGE_SIZE / PATCH) ** 2;
  return {
    vision:
      layout === 'fixed'
        ? { ...tower, layout, positions, imageSize: IMAGE_SIZE }
        : { ...tower, layout, positions },
    text: {
      width: 64,
      depth: 2,
      mlpWidth: 96,
      heads: 4,
      vocabulary: 300,
      length: TEXT_LENGTH,
      pool: 'last',
    },
    embedding: 64,
    layerNormEps: 1e-6,
  };
}

/** Writes a model with random weights and a tokenizer of a dozen pieces into a folder. */
export async function writeModel(folder: string, layout: 'fixed' | 'naflex'): Promise<void> {
  const config = randomConfig(layout);
  await saveCheckpoint(folder, { config, parameters: initialize(config, 7) });
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(smallTokenizerJson()));
}

/** A folder with such a model, for all tests of a file or written anew for each. */
export function modelFolder(
  layout: 'fixed' | 'naflex',
  anew: 'once' | 'each' = 'once',
): () => string {
  let folder = '';
  const [before, after] = anew === 'once' ? [beforeAll, afterAll] : [beforeEach, afterEach];
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'siglip2-model-'));
    await writeModel(folder, layout);
  });
  after(() => {
    rmSync(folder, { recursive: true, force: true });
  });
  return () => folder;
}

export function noise(count: number, seed: number): Float32Array {
  const values = new Float32Array(count);
  new Philox4x32(seed, 'embed test').fillUniform(values, -1, 1);
  return values;
}

/** An image for the fixed-resolution model, prepared. */
export function image(seed: number): { pixelValues: Float32Array } {
  return { pixelValues: noise(3 * IMAGE_SIZE * IMAGE_SIZE, seed) };
}

/** An image for the NaFlex model, prepared. */
export function patches(
  rows: number,
  columns: number,
  seed: number,
): { pixelValues: Float32Array; spatialShape: readonly [number, number] } {
  const pixelValues = noise(rows * columns * PATCH * PATCH * 3, seed);
  return { pixelValues, spatialShape: [rows, columns] };
}

/** A text as ids. */
export function ids(seed: number): { inputIds: Int32Array } {
  const inputIds = Int32Array.from({ length: TEXT_LENGTH }, (_, i) => (seed * 31 + i * 7) % 300);
  return { inputIds };
}

/** Raw pixels, as a camera gives them. */
export function picture(
  seed: number,
  width = 40,
  height = 30,
): {
  data: Uint8Array;
  width: number;
  height: number;
  channels: 3;
} {
  const data = Uint8Array.from({ length: width * height * 3 }, (_, i) => (i * (seed + 7)) % 256);
  return { data, width, height, channels: 3 };
}

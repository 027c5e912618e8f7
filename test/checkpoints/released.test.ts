// Every released checkpoint, small but with its names, ranks and files: written, loaded by its folder
// and held to the float64 reference.
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Siglip2 } from '../../lib';
import { createProcessor } from '../../lib/image';
import type { ModelConfig, Release } from '../../lib/model';
import { parameterCount, parameterTable, releaseConfig, releases } from '../../lib/model';
import { loadTokenizer } from '../../lib/text';
import { huggingFaceTensors, readPreprocessor } from '../../lib/weights';
import { valuesOf } from '../../lib/weights/safetensors';
import { fromHuggingFace } from '../golden_cases/parameters';
import type { NaflexInput } from '../reference/model';
import { runText, runVision } from '../reference/model';
import type { NdArray } from '../reference/nd_array';
import { ndArray } from '../reference/nd_array';
import { smallTokenizerJson } from '../text/small_tokenizer';
import { randomTensors, writeCheckpoint } from './layout';
import { shrunkenConfig } from './shrunken';

const TEXT = 'a cat at a CAT';
// Pieces of the two small tokenizers.
const VOCABULARIES = { 1: 1600, 2: 12 } as const;

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-released-'));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

function putTokenizer({ generation }: Release): void {
  if (generation === 1) {
    const model = join(__dirname, '..', 'golden', 'tokenizer', 'unigram_rules.model');
    copyFileSync(model, join(folder, 'spiece.model'));
    return;
  }
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(smallTokenizerJson()));
  writeFileSync(join(folder, 'tokenizer_config.json'), '{"tokenizer_class": "GemmaTokenizer"}');
}

const picture = {
  width: 40,
  height: 30,
  channels: 3,
  data: Uint8Array.from({ length: 3600 }, (_, i) => (i * i * 7 + 13 * i) % 256),
} as const;

async function preparedImage(config: ModelConfig): Promise<NdArray | NaflexInput> {
  const processor = createProcessor(await readPreprocessor(folder, config));
  if (processor.layout === 'fixed') {
    const { images } = await processor.batch([picture]);
    return ndArray([1, 3, processor.height, processor.width], images);
  }
  const { patches, shapes, mask } = await processor.batch([picture]);
  const { patch } = config.vision;
  const rows = patches.length / (3 * patch * patch);
  return {
    patches: ndArray([1, rows, 3 * patch * patch], patches),
    shapes: ndArray([1, 2], shapes),
    mask: ndArray([1, rows], mask),
  };
}

function bytesOf(config: ModelConfig): number {
  return 4 * parameterCount(parameterTable(config));
}

function unit(vector: ArrayLike<number>): number[] {
  const length = Math.hypot(...Array.from(vector));
  return Array.from(vector, (value) => value / length);
}

async function referenceOf(config: ModelConfig): Promise<{ image: number[]; text: number[] }> {
  const tensors = new Map<string, NdArray>();
  for (const [name, { data, shape }] of randomTensors(config)) {
    tensors.set(name, ndArray(shape, await valuesOf(data)));
  }
  const get = (name: string): NdArray => {
    const tensor = tensors.get(name);
    if (tensor === undefined) throw new Error(`${name} must be written`);
    return tensor;
  };
  const towers = fromHuggingFace(get, new Set(tensors.keys()));
  const image = runVision(
    towers.vision,
    await preparedImage(config),
    config.vision,
    config.vision.patch,
  );
  const tokenizer = await loadTokenizer(folder);
  const ids = tokenizer?.encode(TEXT, config.text.length) ?? [];
  const text = runText(towers.text, ndArray([1, config.text.length], ids), config.text);
  return { image: unit(image.pooled.data), text: unit(text.projected.data) };
}

test.each(releases)('$repository', async (release) => {
  const config = shrunkenConfig(release, VOCABULARIES[release.generation]);
  const bytes = bytesOf(config);
  const giant = release.variant.startsWith('g-opt');
  await writeCheckpoint(folder, release, config, {
    shardBytes: giant ? Math.ceil(bytes * 0.6) : Infinity,
    maxPatches: 12,
  });
  putTokenizer(release);
  using model = await Siglip2.load(folder);
  expect(model.config).toEqual(config);
  const [image] = await model.embedImages([picture]);
  const [text] = await model.embedTexts([TEXT]);
  const reference = await referenceOf(config);
  for (const [actual, expected] of [
    [image, reference.image],
    [text, reference.text],
  ] as const) {
    expect(actual).toHaveLength(config.embedding);
    const difference = Math.max(...expected.map((value, i) => Math.abs(value - actual[i])));
    expect(difference).toBeLessThan(2e-5);
  }
});

test.each(releases)(
  '$repository: names and ranks of the small one are the true ones',
  (release) => {
    const named = (config: ModelConfig): [string, number][] =>
      huggingFaceTensors(config).map(({ name, shape }) => [name, shape.length]);
    expect(named(shrunkenConfig(release, 9))).toEqual(named(releaseConfig(release)));
  },
);

test('the giants lie in two files with an index', async () => {
  const release = releases.find(({ variant }) => variant === 'g-opt/16');
  if (release === undefined) throw new Error('there must be a giant');
  const config = shrunkenConfig(release, 12);
  const bytes = bytesOf(config);
  await writeCheckpoint(folder, release, config, { shardBytes: Math.ceil(bytes * 0.6) });
  const index = JSON.parse(readFileSync(join(folder, 'model.safetensors.index.json'), 'utf8')) as {
    metadata: { total_size: number };
    weight_map: Record<string, string>;
  };
  expect(index.metadata.total_size).toBe(bytes);
  expect(new Set(Object.values(index.weight_map))).toEqual(
    new Set(['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']),
  );
});

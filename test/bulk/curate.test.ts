import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import type { CuratedPart, CurateOptions, ScoredFile } from '../../lib/bulk';
import { curate, embeddingCandidates } from '../../lib/bulk';
import type { Pairs } from '../../lib/kernels';
import { learnability } from '../../lib/kernels';
import { loadAddon } from '../../lib/native/load';
import { writeSafetensors } from '../../lib/weights';
import { failure } from '../failure';
import { expectGivenBack } from '../memory';

const rows = 44;
let folder = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-curate-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

function values(name: string, width: number): Float32Array {
  const random = new Philox4x32(1, name);
  return Float32Array.from({ length: rows * width }, () => random.uniform(-0.5, 0.5));
}

function pairs(name: string, width: number): Pairs<Float32Array> {
  const [images, texts] = [values(`${name} image`, width), values(`${name} text`, width)];
  return { images, texts, width, logitScale: 1.5, logitBias: -1 };
}

async function file(name: string, width: number, ids?: readonly string[]): Promise<ScoredFile> {
  const path = join(folder, `${name}.safetensors`);
  const { images, texts, logitScale, logitBias } = pairs(name, width);
  const shape = [rows, width];
  await writeSafetensors(
    path,
    new Map([
      ['image', { dtype: 'F32', shape, data: images }],
      ['text', { dtype: 'F32', shape, data: texts }],
    ]),
  );
  if (ids !== undefined) {
    const lines = ids.map((id) => `${JSON.stringify({ id })}\n`).join('');
    writeFileSync(join(folder, `${name}.ids.jsonl`), lines);
  }
  return { path, logitScale, logitBias };
}

type Files = Record<'learner' | 'reference', ScoredFile>;

async function curated({
  learner,
  reference,
  ...options
}: CurateOptions & Files): Promise<CuratedPart[]> {
  const parts: CuratedPart[] = [];
  const candidates = await embeddingCandidates(learner, reference);
  for await (const part of curate(candidates, options)) parts.push(part);
  return parts;
}

const ids = Array.from({ length: rows }, (_, i) => `example ${String(i)}`);

test('selects its share of every super-batch, with scores and ids, the same again', async () => {
  const before = loadAddon().memory();
  const learner = await file('learner', 6, ids);
  const reference = await file('reference', 4, ids);
  const options = { learner, reference, superBatch: 16, filterRatio: 0.5, chunks: 4, seed: 3 };
  const parts = await curated(options);
  expect(parts.map(({ next }) => next.row)).toEqual([16, 32, 44]);
  const selectedOf = ({ rows: all }: CuratedPart): CuratedPart['rows'] =>
    all.filter((row) => row.selected);
  // Half of 12 is one chunk of four and a half.
  expect(parts.map((part) => selectedOf(part).length)).toEqual([8, 8, 4]);
  const cut = (model: Pairs<Float32Array>, first: number, count: number): typeof model => ({
    ...model,
    images: model.images.slice(first * model.width, (first + count) * model.width),
    texts: model.texts.slice(first * model.width, (first + count) * model.width),
  });
  for (const { superBatch, next, rows: all } of parts) {
    const first = 16 * superBatch;
    const models = [
      cut(pairs('learner', 6), first, next.row - first),
      cut(pairs('reference', 4), first, next.row - first),
    ] as const;
    const { diagonal } = await learnability(...models);
    const { diagonal: hard } = await learnability(...models, 'hardLearner');
    const { diagonal: easy } = await learnability(...models, 'easyReference');
    expect(all.map(({ row }) => row)).toEqual(
      Array.from({ length: next.row - first }, (_, i) => first + i),
    );
    for (const { row, id, score, learnerLoss, referenceLoss } of all) {
      expect(id).toBe(ids[row]);
      expect(score).toBe(diagonal[row - first]);
      expect([learnerLoss, -referenceLoss]).toEqual([hard[row - first], easy[row - first]]);
    }
  }
  expect(await curated(options)).toEqual(parts);
  expect(await curated({ ...options, seed: 4 })).not.toEqual(parts);
  expectGivenBack(before);
});

test('files that do not belong to each other are refused', async () => {
  const learner = await file('learner', 6, ids);
  const reference = await file('reference', 4, [...ids.slice(0, 20), 'another', ...ids.slice(21)]);
  const options = { learner, reference, superBatch: 16, filterRatio: 0.5, chunks: 4 };
  const error = await failure(curated(options));
  expect(error.code).toBe('ERR_DATA');
  expect(error.message).toMatch(/row 20 must have one id in .* got example 20 and another/);
  const path = join(folder, 'other.safetensors');
  await writeSafetensors(
    path,
    new Map([['image', { dtype: 'F32', shape: [2, 3], data: new Float32Array(6) }]]),
  );
  expect(
    (await failure(curated({ ...options, reference: { ...reference, path } }))).message,
  ).toMatch(/other.safetensors must hold image and text of one shape/);
  expect((await failure(curated({ ...options, filterRatio: 1 }))).code).toBe('ERR_ARGUMENT');
});

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import type { CuratedPart, CurateOptions, ScoredFile } from '../../lib/bulk';
import { curateEmbeddings } from '../../lib/bulk';
import type { Pairs } from '../../lib/kernels';
import { learnability } from '../../lib/kernels';
import { loadAddon } from '../../lib/native/load';
import { writeSafetensors } from '../../lib/weights';
import { failure } from '../failure';

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

async function selected(options: CurateOptions): Promise<CuratedPart[]> {
  const parts: CuratedPart[] = [];
  for await (const part of curateEmbeddings(options)) parts.push(part);
  return parts;
}

const ids = Array.from({ length: rows }, (_, i) => `example ${String(i)}`);

test('selects its share of every super-batch, with scores and ids, the same again', async () => {
  const before = loadAddon().memory();
  const learner = await file('learner', 6, ids);
  const reference = await file('reference', 4, ids);
  const options = { learner, reference, superBatch: 16, filterRatio: 0.5, chunks: 4, seed: 3 };
  const parts = await selected(options);
  expect(parts.map(({ done }) => done)).toEqual([16, 32, 44]);
  // Half of 12 is one chunk of four and a half.
  expect(parts.map((part) => part.rows.length)).toEqual([8, 8, 4]);
  const cut = (model: Pairs<Float32Array>, first: number, count: number): typeof model => ({
    ...model,
    images: model.images.slice(first * model.width, (first + count) * model.width),
    texts: model.texts.slice(first * model.width, (first + count) * model.width),
  });
  for (const { superBatch, done, rows: chosen } of parts) {
    const first = 16 * superBatch;
    const { diagonal } = await learnability(
      cut(pairs('learner', 6), first, done - first),
      cut(pairs('reference', 4), first, done - first),
    );
    for (const { row, id, score } of chosen) {
      expect(id).toBe(ids[row]);
      expect(score).toBe(diagonal[row - first]);
    }
    expect(new Set(chosen.map(({ row }) => row)).size).toBe(chosen.length);
  }
  expect(await selected(options)).toEqual(parts);
  expect(await selected({ ...options, seed: 4 })).not.toEqual(parts);
  expect(loadAddon().memory()).toEqual(before);
});

test('files that do not belong to each other are refused', async () => {
  const learner = await file('learner', 6, ids);
  const reference = await file('reference', 4, [...ids.slice(0, 20), 'another', ...ids.slice(21)]);
  const options = { learner, reference, superBatch: 16, filterRatio: 0.5, chunks: 4 };
  const error = await failure(selected(options));
  expect(error.code).toBe('ERR_DATA');
  expect(error.message).toMatch(/row 20 must have one id in .* got example 20 and another/);
  const path = join(folder, 'other.safetensors');
  await writeSafetensors(
    path,
    new Map([['image', { dtype: 'F32', shape: [2, 3], data: new Float32Array(6) }]]),
  );
  expect(
    (await failure(selected({ ...options, reference: { ...reference, path } }))).message,
  ).toMatch(/other.safetensors must hold image and text of one shape/);
  expect((await failure(selected({ ...options, filterRatio: 1 }))).code).toBe('ERR_ARGUMENT');
});

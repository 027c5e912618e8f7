// Curation straight from two models and a data set: a learner of a fixed resolution, a NaFlex reference.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Candidates, CuratedPart, CurateToFileOptions, ScoringModel } from '../../lib/bulk';
import {
  copyRows,
  corpusCandidates,
  curate,
  curateToFile,
  modelLogits,
  scoringModel,
} from '../../lib/bulk';
import type { Row, Source } from '../../lib/corpus';
import { openCorpus } from '../../lib/corpus';
import { Siglip2 } from '../../lib/embed';
import { learnability } from '../../lib/kernels';
import { picture } from '../corpus/corpus_files';
import { kinds, putCorpus, rowOf } from '../data/pair_corpora';
import { modelFolder } from '../embed/random_model';
import { failure } from '../failure';

const learnerFolder = modelFolder('fixed');
const referenceFolder = modelFolder('naflex');
const [FILES, ROWS, TORN] = [2, 11, 5] as const;
let folder = '';
let models: Siglip2[] = [];

beforeAll(async () => {
  models = [await Siglip2.load(learnerFolder()), await Siglip2.load(referenceFolder())];
});

afterAll(() => {
  for (const model of models) model.dispose();
});

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-curate-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

async function sourcesOf(kind: (typeof kinds)[number]): Promise<Source[]> {
  const corpus = await putCorpus(folder, kind, FILES, ROWS, TORN);
  return openCorpus({ inputs: corpus.inputs, what: 'both', keep: ['language'] });
}

async function scoring(): Promise<{ learner: ScoringModel; reference: ScoringModel }> {
  return {
    learner: await scoringModel(models[0], learnerFolder()),
    reference: await scoringModel(models[1], referenceFolder()),
  };
}

function candidatesOf(sources: readonly Source[], batch = 3): Candidates {
  return corpusCandidates({ sources, models: scoring, batch });
}

const selection = { superBatch: 8, filterRatio: 0.5, chunks: 2, seed: 4 };

async function partsOf(candidates: Candidates): Promise<CuratedPart[]> {
  const parts: CuratedPart[] = [];
  for await (const part of curate(candidates, selection)) parts.push(part);
  return parts;
}

const sound = Array.from({ length: FILES * ROWS }, (_, i) => i).filter((i) => i !== TORN);

test.each(kinds)(
  '%s: super-batches over files, scores of both models, half of them',
  async (kind) => {
    const parts = await partsOf(candidatesOf(await sourcesOf(kind)));
    expect(parts.map(({ rows }) => rows.length)).toEqual([8, 8, 5]);
    expect(parts.map(({ rows }) => rows.filter((row) => row.selected).length)).toEqual([4, 4, 2]);
    const ids = parts.flatMap(({ rows }) => rows.map(({ id }) => id));
    expect(ids).toEqual(
      kind === 'tar' ? sound.map(String) : sound.map((number) => rowOf(number).id),
    );
    expect(
      parts.flatMap(({ failures }) => failures.map(({ source, index }) => [source, index])),
    ).toEqual([[0, TORN]]);
    expect(parts.map(({ next }) => next)).toEqual([
      { source: 0, row: 9 },
      { source: 1, row: 6 },
      { source: 1, row: 11 },
    ]);
    expect(parts.at(-1)?.through).toBe(1);
    // The same by way of the model's own door.
    const numbers = sound.slice(8, 16);
    const images = await Promise.all(numbers.map(picture));
    const texts = numbers.map((number) => rowOf(number).text);
    const [learner, reference] = await Promise.all(
      models.map(async (model, i) => ({
        images: Float32Array.from((await model.embedImages(images)).flatMap((row) => [...row])),
        texts: Float32Array.from((await model.embedTexts(texts)).flatMap((row) => [...row])),
        width: model.config.embedding,
        ...(await modelLogits([learnerFolder(), referenceFolder()][i])),
      })),
    );
    const { diagonal } = await learnability(learner, reference);
    for (const [i, { score }] of parts[1].rows.entries()) {
      expect(Math.abs(score - diagonal[i])).toBeLessThan(1e-4);
    }
  },
);

describe('to a file', () => {
  async function toFile(
    sources: readonly Source[],
    changes: Partial<CurateToFileOptions> = {},
  ): Promise<string> {
    const output = join(folder, 'selected.jsonl');
    await curateToFile({ candidates: candidatesOf(sources), output, ...selection, ...changes });
    return existsSync(output) ? readFileSync(output, 'utf8') : '';
  }

  test('an interrupted selection goes on to the same bytes, and no other one does', async () => {
    const sources = await sourcesOf('jsonl');
    const whole = await toFile(sources);
    expect(whole.split('\n')).toHaveLength(11);
    const failed = join(folder, 'selected.failures.jsonl');
    expect(JSON.parse(readFileSync(failed, 'utf8'))).toMatchObject({
      source: join(folder, '0.jsonl'),
      row: TORN,
      id: 'row 5',
      code: 'ERR_IMAGE',
    });
    rmSync(join(folder, 'selected.jsonl'));
    const stop = new AbortController();
    const first: number[] = [];
    const interrupted = await toFile(sources, {
      signal: stop.signal,
      onProgress: ({ done }) => {
        first.push(done);
        if (done > 8) stop.abort();
      },
    });
    expect(interrupted).toBe('');
    expect(await failure(toFile(sources, { seed: 5 }))).toMatchObject({ code: 'ERR_CONFIG' });
    const befores = new Set<number>();
    const continued = await toFile(sources, {
      onProgress: ({ done, before, total, estimated, finished }) => {
        befores.add(before);
        if (!finished) return;
        expect({ done, total, estimated }).toEqual({ done: 22, total: 22, estimated: false });
      },
    });
    expect([...befores]).toEqual([9]);
    expect(continued).toBe(whole);
    expect(existsSync(join(folder, 'selected.jsonl.parts'))).toBe(false);
  });

  test.each(kinds)('%s: the copy is a data set again', async (kind) => {
    const sources = await sourcesOf(kind);
    const copy = join(folder, 'copy.jsonl');
    const output = await toFile(sources, {
      beside: async (_, parts) => {
        const places = [];
        for await (const { rows } of parts()) places.push(...rows);
        await copyRows(copy, sources, places);
      },
    });
    const lines = output.split('\n').filter((line) => line !== '');
    const chosen = lines.map((line) => (JSON.parse(line) as { readonly id: string }).id);
    const again = await openCorpus({ inputs: [copy], what: 'both', keep: ['language'] });
    const rows: Row[] = [];
    for await (const row of again[0].rows(() => true)) rows.push(row);
    expect(rows.map(({ id }) => id)).toEqual(chosen);
    for (const { id, text, fields, image, failure: failed } of rows) {
      expect(failed).toBeUndefined();
      const number = Number(id.replace('row ', ''));
      expect(text).toBe(rowOf(number).text);
      expect(fields).toEqual({ language: rowOf(number).language });
      const bytes =
        image !== undefined && 'path' in image ? readFileSync(image.path) : image?.bytes;
      expect(Buffer.compare(bytes ?? Buffer.of(), await picture(number))).toBe(0);
    }
  });
});

test('what is asked for must make sense', async () => {
  const sources = await sourcesOf('jsonl');
  expect(() => candidatesOf(sources, 0)).toThrow('curate: batch must be a positive integer, got 0');
  const candidates = candidatesOf(sources);
  const refused = async (changes: object): Promise<string> =>
    (await failure(curate(candidates, { ...selection, ...changes }).next())).message;
  expect(await refused({ filterRatio: 1 })).toBe('curate: filterRatio must be in [0, 1), got 1');
  expect(await refused({ superBatch: 0 })).toBe(
    'curate: superBatch must be a positive integer, got 0',
  );
});

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import { disposeArrays } from '../../lib/graph';
import { variant } from '../../lib/model';
import { resizeImage } from '../../lib/image';
import { loadAddon } from '../../lib/native/load';
import type { CurationConfig, Selection, StepMetrics, TrainerConfig } from '../../lib/train';
import { modelReference, readMetrics, storedReference, superBatch, Trainer } from '../../lib/train';
import { PairEmbedder } from '../../lib/train/pair_embedder';
import { admitPairs } from '../../lib/train/two_towers';
import { failure } from '../failure';
import { parametersOf, wide } from './curation_run';
import { configIn, examples, model, noise, pixelTable, values, withoutTimes } from './noise';

let folder = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-curation-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

async function run(
  curation: CurationConfig | undefined,
  changes: Partial<TrainerConfig> = {},
  stopAfter?: number,
): Promise<{
  metrics: object[];
  parameters: Map<string, Float32Array>;
  selections: readonly Selection[];
}> {
  const stop = new AbortController();
  const selections: Selection[] = [];
  const trainer = await Trainer.start(
    configIn(folder, { curation, ...changes }),
    noise(curation === undefined ? 8 : superBatch(8, curation.filterRatio)),
  );
  await trainer.train({
    signal: stop.signal,
    onStep: ({ step }) => {
      if (step === stopAfter) stop.abort();
    },
    onSelection: (selection) => selections.push(selection),
  });
  const parameters = await values(trainer);
  trainer.dispose();
  return {
    metrics: withoutTimes(readMetrics(join(folder, 'metrics.jsonl'))),
    parameters,
    selections,
  };
}

async function withWideReference<T>(
  body: (reference: Awaited<ReturnType<typeof modelReference>>) => Promise<T>,
): Promise<T> {
  const parameters = parametersOf(wide, 9);
  const reference = await modelReference({ model: wide, parameters, batch: 4, pixelTable });
  try {
    return await body(reference);
  } finally {
    reference.dispose();
  }
}

describe('superBatch', () => {
  test.each([
    [32768, 0.5, 65536],
    [32768, 0.75, 131072],
    [32768, 0.8, 163840],
    [32768, 0.9, 327680],
    [8, 0, 8],
  ])('of %i with %f dropped is %i', (batch, ratio, pairs) => {
    expect(superBatch(batch, ratio)).toBe(pairs);
  });

  test.each([
    [8, 1],
    [8, -0.5],
    [8, 0.3],
    [8, NaN],
  ])('of %i with %f dropped is refused', (batch, ratio) => {
    expect(() => superBatch(batch, ratio)).toThrow('curation: filterRatio must be in [0, 1)');
  });
});

describe('a run with curation', () => {
  test('that drops nothing is the run without, bit for bit', async () => {
    const plain = await run(undefined);
    rmSync(folder, { recursive: true });
    const all = await run({ filterRatio: 0, selection: 'uniform' });
    expect(all.parameters).toEqual(plain.parameters);
  });

  test.each(['joint', 'independent'] as const)(
    '%s: prefers what is worth more, and continues bit for bit',
    async (selection) => {
      await withWideReference(async (reference) => {
        const { bufferBytes } = loadAddon().memory();
        const curation = { reference, filterRatio: 0.5, selection, chunks: 4, gain: 5 };
        const whole = await run(curation);
        expect(whole.selections).toHaveLength(8);
        for (const { rows, candidates, batch, scores } of whole.selections) {
          expect(new Set(rows).size).toBe(8);
          expect(scores).toHaveLength(16);
          expect([...batch.examples]).toEqual([...rows].map((row) => candidates.examples[row]));
          expect(batch.texts).toEqual([...rows].map((row) => candidates.texts[row]));
          const [mine, theirs] = [batch.tokens, candidates.tokens].map((ids) => [...(ids ?? [])]);
          expect(mine.slice(0, 6)).toEqual(theirs.slice(6 * rows[0], 6 * rows[0] + 6));
        }
        const lines = whole.metrics as StepMetrics[];
        const mean = (of: (line: StepMetrics) => number | undefined): number =>
          lines.reduce((sum, line) => sum + (of(line) ?? NaN), 0) / lines.length;
        expect(mean((line) => line.curation?.candidates)).toBe(16);
        if (selection === 'independent') {
          expect(mean((line) => line.curation?.selectedScore)).toBeGreaterThan(
            mean((line) => line.curation?.score),
          );
        }
        rmSync(folder, { recursive: true });
        await run(curation, {}, 3);
        const { metrics, parameters } = await run(curation);
        expect({ metrics, parameters }).toEqual({
          metrics: whole.metrics,
          parameters: whole.parameters,
        });
        expect(loadAddon().memory().bufferBytes).toBe(bufferBytes);
      });
    },
  );

  test('works with micro-batches, and gives the same bits again', async () => {
    await withWideReference(async (reference) => {
      const curation = { reference, filterRatio: 0.5, chunks: 2 };
      const once = await run(curation, { microBatch: 4 });
      rmSync(folder, { recursive: true });
      const again = await run(curation, { microBatch: 4 });
      expect(again.parameters).toEqual(once.parameters);
      expect(again.metrics).toEqual(once.metrics);
    });
  });

  test('needs a reference, unless it does not look', async () => {
    const error = await failure(run({ filterRatio: 0.5 }));
    expect(error.message).toBe('curation: reference must be given for joint selection, got none');
  });
});

describe('scores', () => {
  test('are the learner’s loss less the reference’s, and the sharpest choice takes the highest', async () => {
    const random = new Philox4x32(1, 'stored');
    const unit = (): Float32Array => {
      const rows = Float32Array.from({ length: examples * 3 }, () => random.uniform(-1, 1));
      for (let i = 0; i < examples; i++) {
        const row = rows.subarray(3 * i, 3 * i + 3);
        const norm = Math.hypot(...row);
        for (const k of row.keys()) row[k] /= norm;
      }
      return rows;
    };
    const stored = { images: unit(), texts: unit() };
    const reference = storedReference(stored, { width: 3, logitScale: 1.5, logitBias: -1 });
    const gain = 1e6;
    const { selections } = await run(
      { reference, filterRatio: 0.5, selection: 'independent', gain },
      {},
      0,
    );
    const [{ candidates, rows, scores = new Float32Array(0) }] = selections;
    const parameters = parametersOf(model, 1);
    const embedder = new PairEmbedder({ model, batch: 16 });
    const learner = await embedder.embed(
      parameters,
      admitPairs({ model: model, batch: 16, pixelTable }, candidates),
      16,
    );
    const [t] = await parameters.logitScale.read();
    const dot = (a: Float32Array, i: number, b: Float32Array, j: number, width: number): number => {
      let sum = 0;
      for (let k = 0; k < width; k++) sum += a[i * width + k] * b[j * width + k];
      return sum;
    };
    const loss = (cosine: number, scale: number, bias: number): number =>
      Math.log1p(Math.exp(-(Math.exp(scale) * cosine + bias)));
    for (let i = 0; i < 16; i++) {
      const example = candidates.examples[i];
      const wanted =
        loss(dot(learner.images, i, learner.texts, i, model.embedding), t, -2) -
        loss(dot(stored.images, example, stored.texts, example, 3), 1.5, -1);
      expect(Math.abs(scores[i] - wanted)).toBeLessThan(1e-5);
    }
    const best = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, 8);
    expect([...rows]).toEqual(best.sort((a, b) => a - b));
    disposeArrays(parameters);
    embedder.dispose();
  });

  test('of a learner that is its own reference are zero', async () => {
    const parameters = parametersOf(model, 1);
    const reference = await modelReference({ model, parameters, batch: 8, pixelTable });
    expect((await failure(run({ reference, filterRatio: 0.5 }))).message).toBe(
      'jointSelection: batch must be a positive multiple of chunks, got 8 and 16',
    );
    const { selections: chosen } = await run({ reference, filterRatio: 0.5, chunks: 4 }, {}, 0);
    for (const score of chosen[0].scores ?? [NaN]) expect(score).toBe(0);
    reference.dispose();
  });
});

test('embeddings do not depend on how a batch is cut', async () => {
  const batch = await noise(10).next();
  const parameters = parametersOf(model, 2);
  const pairs = admitPairs({ model: model, batch: 10, pixelTable }, batch);
  const results: { images: Float32Array; texts: Float32Array }[] = [];
  for (const rows of [10, 4]) {
    const embedder = new PairEmbedder({ model, batch: rows });
    results.push(await embedder.embed(parameters, pairs, 10));
    embedder.dispose();
  }
  const [whole, cut] = results;
  for (const tower of ['images', 'texts'] as const) {
    for (const [i, x] of whole[tower].entries()) {
      expect(Math.abs(x - cut[tower][i])).toBeLessThan(1e-6);
    }
  }
  disposeArrays(parameters);
});

test('a reference of another image size sees the images resized to its own', async () => {
  const larger = variant('mu/8', { imageSize: 24, vocabulary: 40, length: 6 });
  const parameters = parametersOf(larger, 4);
  const reference = await modelReference({ model: larger, parameters, batch: 8, pixelTable });
  const batch = await noise(8).next();
  const resized = new Uint8Array(8 * 24 * 24 * 3);
  for (let i = 0; i < 8; i++) {
    const data = batch.images.subarray(i * 768, (i + 1) * 768);
    const image = { data, width: 16, height: 16, channels: 3 } as const;
    resized.set((await resizeImage(image, 24, 24, 'bilinear')).data, i * 24 * 24 * 3);
  }
  const expected = await reference.embed({ ...batch, images: resized, size: 24 });
  expect(await reference.embed(batch)).toEqual(expected);
  reference.dispose();
});

test('a stored reference refuses what it does not hold', async () => {
  const four = new Float32Array(4);
  expect(() =>
    storedReference(
      { images: four, texts: new Float32Array(6) },
      {
        width: 2,
        logitScale: 0,
        logitBias: 0,
      },
    ),
  ).toThrow('storedReference: images and texts must be (N, 2), got 4 and 6 elements');
  const reference = storedReference(
    { images: four, texts: four },
    { width: 2, logitScale: 0, logitBias: 0 },
  );
  expect((await failure(reference.embed(await noise(8).next()))).code).toBe('ERR_DATA');
});

// Concurrent calls on real models, small ones with random weights.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { EmbedImage, EmbedText, EmbedderOptions } from '../../lib';
import { Embedder, Siglip2, SiglipError } from '../../lib';
import { loadAddon } from '../../lib/native/load';
import { ids, image, noise, patches, picture, writeModel } from './random_model';
import { expectGivenBack } from '../memory';

const root = mkdtempSync(join(tmpdir(), 'siglip2-embedder-'));
const folders = { fixed: join(root, 'fixed'), naflex: join(root, 'naflex') };

beforeAll(async () => {
  await writeModel(folders.fixed, 'fixed');
  await writeModel(folders.naflex, 'naflex');
});

afterAll(() => {
  rmSync(root, { recursive: true, force: true });
});

const load = (options?: EmbedderOptions): Promise<Embedder> =>
  Embedder.load(folders.fixed, options);

async function codeOf(work: Promise<unknown>): Promise<string> {
  const error: unknown = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (error instanceof SiglipError) return error.code;
  return String(error);
}

/** Until some run, or have run: a busy machine may not look in between. */
async function textsRun(embedder: Embedder): Promise<void> {
  for (;;) {
    const { running, completed } = embedder.stats().texts;
    if (running + completed > 0) return;
    await turn();
  }
}

const turn = (): Promise<void> =>
  new Promise((resolve) => {
    setImmediate(resolve);
  });

describe('results', () => {
  test('are bit for bit those of single calls, in any company', async () => {
    await using embedder = await load({ maxBatch: 8, maxDelay: 10_000 });
    const images: readonly EmbedImage[] = [
      ...Array.from({ length: 9 }, (_, i) => image(i)),
      ...Array.from({ length: 4 }, (_, i) => picture(i)),
    ];
    const texts: readonly EmbedText[] = [
      ...Array.from({ length: 12 }, (_, i) => ids(i)),
      ...['cat', 'a cat at', 'tac'],
    ];
    const { model } = embedder;
    const aloneImages: Float32Array[] = [];
    for (const one of images) aloneImages.push(...(await model.embedImages([one])));
    const aloneTexts: Float32Array[] = [];
    for (const one of texts) aloneTexts.push(...(await model.embedTexts([one])));
    const [gotImages, gotTexts] = await Promise.all([
      Promise.all(images.map((one) => embedder.embedImage(one))),
      Promise.all(texts.map((one) => embedder.embedText(one))),
    ]);
    expect(gotImages).toEqual(aloneImages);
    expect(gotTexts).toEqual(aloneTexts);
    expect(await embedder.embedImages(images)).toEqual(aloneImages);
    expect(await embedder.embedTexts(texts)).toEqual(aloneTexts);
    const stats = embedder.stats();
    expect(stats.images.meanBatch).toBeGreaterThan(2);
    expect(stats.texts.meanBatch).toBeGreaterThan(2);
    expect(stats.images).toMatchObject({ completed: 26, failed: 0, queued: 0, running: 0 });
  });

  test('own their memory', async () => {
    await using embedder = await load();
    const vectors = await embedder.embedTexts([ids(1), ids(2), ids(3)]);
    for (const vector of vectors) {
      expect(vector).toBeInstanceOf(Float32Array);
      expect(vector.buffer.byteLength).toBe(vector.byteLength);
    }
  });

  test('normalised and raw ones do not mix', async () => {
    await using embedder = await load({ maxDelay: 10_000 });
    const [unit, raw] = await Promise.all([
      embedder.embedText(ids(1)),
      embedder.embedText(ids(1), { normalize: false }),
    ]);
    const length = Math.hypot(...raw);
    expect(Math.abs(length - 1)).toBeGreaterThan(1e-3);
    unit.forEach((value, i) => {
      expect(raw[i] / length).toBeCloseTo(value, 5);
    });
    expect(embedder.stats().texts.batches).toBe(2);
  });

  test('NaFlex: images of many grids, each as if alone', async () => {
    await using embedder = await Embedder.load(folders.naflex, { maxBatch: 4, maxDelay: 10_000 });
    const images: readonly EmbedImage[] = [
      ...[7, 3, 5, 7, 6, 7, 4].map((rows, i) => patches(rows, 9 - (i % 3), i)),
      picture(1, 64, 40),
      picture(2, 30, 90),
    ];
    const alone: Float32Array[] = [];
    for (const one of images) {
      alone.push(...(await embedder.model.embedImages([one], { maxPatches: 64 })));
    }
    const together = await Promise.all(
      images.map((one) => embedder.embedImage(one, { maxPatches: 64 })),
    );
    expect(together).toEqual(alone);
    expect(embedder.stats().images.batches).toBeLessThan(images.length);
  });
});

test('calls of one moment share a batch, and a broken image fails alone', async () => {
  await using embedder = await load({ maxBatch: 8, maxDelay: 60_000 });
  const calls = [picture(1), picture(2), new Uint8Array(50), picture(3), image(4)];
  const results = await Promise.allSettled(calls.map((one) => embedder.embedImage(one)));
  expect(results.map(({ status }) => status)).toEqual([
    'fulfilled',
    'fulfilled',
    'rejected',
    'fulfilled',
    'fulfilled',
  ]);
  expect(embedder.stats().images).toMatchObject({ batches: 1, meanBatch: 4, failed: 1 });
  expect((results[2] as PromiseRejectedResult).reason).toMatchObject({ code: 'ERR_IMAGE' });
});

test('a list fails as one, naming the entry, and its others leave the queue', async () => {
  await using embedder = await load();
  const list = [image(1), { pixelValues: noise(5, 1) }, image(2)];
  await expect(embedder.embedImages(list)).rejects.toThrow(/embedImages: image 1: .*got 5/);
  expect(await codeOf(embedder.embedImages([]))).toBe('ERR_ARGUMENT');
  await embedder.drain();
  expect(embedder.stats().images).toMatchObject({ queued: 0, waiting: 0, failed: 1 });
});

test('a flood of one kind does not starve the other', async () => {
  await using embedder = await load({ maxBatch: 4, maxQueue: 8 });
  const order: string[] = [];
  const flood = Array.from({ length: 60 }, (_, i) =>
    embedder.embedImage(image(i)).then(() => order.push('image')),
  );
  while (embedder.stats().images.completed < 8) await turn();
  const texts = Array.from({ length: 4 }, (_, i) =>
    embedder.embedText(ids(i)).then(() => order.push('text')),
  );
  await Promise.all(texts);
  const before = order.lastIndexOf('text') + 1;
  // What had completed, the batch under way, and no more than one between the texts' own.
  expect(before).toBeLessThan(60 - 16);
  await Promise.all(flood);
  expect(order).toHaveLength(64);
});

test('a signal that many calls share warns nobody', async () => {
  await using embedder = await load();
  const warnings: string[] = [];
  const listen = (warning: Error): void => void warnings.push(warning.name);
  process.on('warning', listen);
  const stop = new AbortController();
  const calls = Array.from({ length: 30 }, (_, i) =>
    embedder.embedText(ids(i), { signal: stop.signal }),
  );
  stop.abort(new Error('enough'));
  const codes = await Promise.all(calls.map(codeOf));
  await turn();
  process.off('warning', listen);
  expect(codes).toEqual(Array(30).fill('ERR_ABORTED'));
  expect(warnings).toEqual([]);
  expect(embedder.stats().texts).toMatchObject({ aborted: 30, batches: 0 });
  expect(await codeOf(embedder.embedText(ids(1), { signal: stop.signal }))).toBe('ERR_ABORTED');
});

test('when full, calls wait or are refused', async () => {
  await using waiting = await load({ maxQueue: 2, maxBatch: 2 });
  const slow = Array.from({ length: 20 }, (_, i) => waiting.embedText(ids(i)));
  expect(waiting.stats().texts).toMatchObject({ queued: 2, waiting: 18 });
  expect(await Promise.all(slow)).toHaveLength(20);

  await using refusing = await load({ maxQueue: 2, whenFull: 'reject' });
  const codes = await Promise.all(
    Array.from({ length: 5 }, (_, i) => codeOf(refusing.embedText(ids(i)))),
  );
  expect(codes.slice(2)).toEqual(Array(3).fill('ERR_BUSY'));
  expect(codes.slice(0, 2)).toEqual(['undefined', 'undefined']);
  // The queue of images is another one.
  expect(await refusing.embedImage(image(1))).toHaveLength(64);
});

describe('the end', () => {
  test('drain waits for what there is and lets more come', async () => {
    await using embedder = await load();
    const done: number[] = [];
    for (let i = 0; i < 5; i++) void embedder.embedText(ids(i)).then(() => done.push(i));
    await embedder.drain();
    expect(done).toHaveLength(5);
    expect(await embedder.embedText(ids(9))).toHaveLength(64);
  });

  test('close finishes what is queued and frees what it loaded', async () => {
    const before = loadAddon().memory();
    const embedder = await load();
    const calls = Array.from({ length: 40 }, (_, i) => embedder.embedText(ids(i)));
    const closed = embedder.close();
    expect(await codeOf(embedder.embedText(ids(1)))).toBe('ERR_DISPOSED');
    await closed;
    expect(await Promise.all(calls)).toHaveLength(40);
    expectGivenBack(before);
    await embedder.close();
    expect(embedder.stats().closed).toBe(true);
  });

  test('close can reject what is queued; what runs comes to its end', async () => {
    const embedder = await load({ maxBatch: 4 });
    const calls = Array.from({ length: 40 }, (_, i) => codeOf(embedder.embedText(ids(i))));
    await textsRun(embedder);
    await embedder.close({ queued: 'reject' });
    const codes = await Promise.all(calls);
    const finished = codes.filter((code) => code === 'undefined').length;
    expect(finished).toBeGreaterThan(0);
    expect(codes.filter((code) => code === 'ERR_DISPOSED')).toHaveLength(40 - finished);
  });

  test('dispose in the middle of everything frees everything', async () => {
    const before = loadAddon().memory();
    const embedder = await load({ maxBatch: 4, maxQueue: 10 });
    const calls = [
      ...Array.from({ length: 300 }, (_, i) => codeOf(embedder.embedImage(picture(i)))),
      ...Array.from({ length: 300 }, (_, i) => codeOf(embedder.embedText(ids(i)))),
    ];
    await textsRun(embedder);
    embedder.dispose();
    embedder.dispose();
    const codes = new Set(await Promise.all(calls));
    expect([...codes].sort()).toEqual(['ERR_DISPOSED', 'undefined']);
    await embedder.close();
    expectGivenBack(before);
  });

  test('a model given to it stays the caller’s, and its end is told to every call', async () => {
    const model = await Siglip2.load(folders.fixed);
    const embedder = new Embedder(model);
    await embedder.embedText(ids(1));
    await embedder.close();
    expect(await model.embedTexts([ids(1)])).toHaveLength(1);
    const second = new Embedder(model, { maxBatch: 2 });
    const calls = Array.from({ length: 100 }, (_, i) => codeOf(second.embedText(ids(i))));
    while (second.stats().texts.running === 0) await turn();
    model.dispose();
    const codes = await Promise.all(calls);
    const finished = codes.indexOf('ERR_DISPOSED');
    expect(finished).toBeGreaterThan(0);
    expect(new Set(codes.slice(0, finished))).toEqual(new Set(['undefined']));
    expect(new Set(codes.slice(finished))).toEqual(new Set(['ERR_DISPOSED']));
    expect(await codeOf(second.embedText(ids(1)))).toBe('ERR_DISPOSED');
  });
});

describe('options are checked', () => {
  test.each<[string, Record<string, unknown>]>([
    ['maxBatch', { maxBatch: 0 }],
    ['maxDelay', { maxDelay: -1 }],
    ['maxDelay', { maxDelay: 2 ** 31 }],
    ['maxQueue', { maxQueue: 1.5 }],
    ['maxQueueBytes', { maxQueueBytes: NaN }],
    ['whenFull', { whenFull: 'drop' }],
    ['maxPreparing', { maxPreparing: '4' }],
  ])('%s: %p', async (name, options) => {
    const before = loadAddon().memory();
    const error = await load(options).then(
      () => undefined,
      (reason: unknown) => reason as SiglipError,
    );
    expect(error).toMatchObject({ code: 'ERR_ARGUMENT' });
    expect(error?.message).toMatch(new RegExp(`Embedder: ${name} must be`, 'u'));
    expectGivenBack(before);
  });

  test('of calls, of close, and the model', async () => {
    await using embedder = await load();
    const bad = (options: object): Promise<string> =>
      codeOf(embedder.embedImage(image(1), options));
    expect(await bad({ normalize: 1 })).toBe('ERR_ARGUMENT');
    expect(await bad({ signal: {} })).toBe('ERR_ARGUMENT');
    expect(await bad({ maxPatches: 0 })).toBe('ERR_ARGUMENT');
    expect(await codeOf(embedder.close({ queued: 'no' as never }))).toBe('ERR_ARGUMENT');
    expect(() => new Embedder({} as never)).toThrow('model must be a Siglip2');
    for (const text of [5, null, undefined, {}, { inputIds: [1] }]) {
      expect(await codeOf(embedder.embedText(text as never))).toBe('ERR_ARGUMENT');
    }
    for (const one of [5, null, undefined, {}]) {
      expect(await codeOf(embedder.embedImage(one as never))).toBe('ERR_IMAGE');
    }
  });
});

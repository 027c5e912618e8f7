import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Worker } from 'node:worker_threads';
import type { CorpusBatch, CorpusBatchOptions, DataNotice } from '../../lib/data/corpus_batches';
import { CorpusBatchStream, openCorpusBatches } from '../../lib/data/corpus_batches';
import type { Mixture, PairCorpus } from '../../lib/data/mixture';
import { checkMixture, pageLanguageMixture, readMixture } from '../../lib/data/mixture';
import type { StreamState } from '../../lib/data/stream';
import { decodeImage, resizeImage } from '../../lib/image';
import { BytePairTokenizer, loadTokenizer, saveTokenizer, TokenizerSubset } from '../../lib/text';
import { failure } from '../failure';
import { folderForAll, picture, put } from '../corpus/corpus_files';
import { kinds, putCorpus, rowOf } from './pair_corpora';

const execArgv = ['--require', join(__dirname, '..', 'typescript.js')];
const gemma = join(__dirname, '..', '..', 'node_modules', '@lenml', 'tokenizer-gemma', 'models');
const folder = folderForAll();
const ROWS = 24;
const TORN = 5;
let corpora: Record<(typeof kinds)[number], PairCorpus>;
let tokenizer = '';

beforeAll(async () => {
  // A small part of it opens at once.
  const whole = await loadTokenizer(gemma);
  if (!(whole instanceof BytePairTokenizer))
    throw new Error('the Gemma tokenizer must be installed');
  const texts = Array.from({ length: ROWS }, (_, i) => rowOf(i).text);
  tokenizer = join(folder(), 'tokenizer');
  await saveTokenizer(tokenizer, TokenizerSubset.from(whole, texts).tokenizer);
  const entries = await Promise.all(
    kinds.map(async (kind) => [
      kind,
      await putCorpus(join(folder(), kind), kind, 3, ROWS / 3, TORN),
    ]),
  );
  corpora = Object.fromEntries(entries) as typeof corpora;
});

function options(mixture: Mixture, rest: Partial<CorpusBatchOptions> = {}): CorpusBatchOptions {
  return {
    mixture,
    batch: 4,
    size: 6,
    tokenizer,
    tokens: 8,
    buffer: 7,
    seed: 2,
    execArgv,
    ...rest,
  };
}

const single = (corpus: PairCorpus): Mixture => ({
  corpora: { only: corpus },
  streams: [{ name: 'all', weight: 1, corpus: 'only' }],
});

/** Plain values: typed arrays of a thread are of another realm, which Jest tells apart. */
function plain({ images, tokens, originals, ...rest }: CorpusBatch): object {
  return {
    ...rest,
    images: Buffer.from(images).toString('base64'),
    tokens: [...tokens],
    originals: originals?.map(({ data, width, height }) => [width, height, ...data]),
  };
}

async function collect(
  stream: { next(): Promise<CorpusBatch>; state(): StreamState },
  count: number,
): Promise<{ batches: object[]; states: StreamState[] }> {
  const result = { batches: [] as object[], states: [] as StreamState[] };
  for (let i = 0; i < count; i++) {
    result.batches.push(plain(await stream.next()));
    result.states.push(stream.state());
  }
  return result;
}

async function run(given: CorpusBatchOptions, count: number): ReturnType<typeof collect> {
  const stream = await CorpusBatchStream.open(given);
  const result = await collect(stream, count);
  await stream.close();
  return result;
}

test('a batch is squashed pictures, ids of lower-cased texts, regions, and what rows say', async () => {
  const corpus = { ...corpora.jsonl, fields: { ...corpora.jsonl.fields, attributes: 'id' } };
  const stream = await CorpusBatchStream.open(options(single(corpus), { originals: 7 }));
  const batch = await stream.next();
  const ids = await loadTokenizer(tokenizer);
  for (const [row, id] of batch.ids.entries()) {
    const number = Number(id.slice(4));
    const whole = await decodeImage(await picture(number));
    const squashed = await resizeImage(whole, 6, 6, 'bilinear');
    expect([...batch.images.subarray(row * 108, (row + 1) * 108)]).toEqual([...squashed.data]);
    const { text, regions, language } = rowOf(number);
    expect([...batch.tokens.subarray(row * 8, (row + 1) * 8)]).toEqual([
      ...(ids?.encode(text, 8) ?? []),
    ]);
    expect([batch.texts[row], batch.regions[row], batch.languages[row]]).toEqual([
      text,
      regions,
      language,
    ]);
    expect([batch.attributes[row], batch.streams[row]]).toEqual([id, 'all']);
    const original = batch.originals?.[row];
    const side = Math.max(whole.width, whole.height);
    expect([original?.width, original?.height]).toEqual(
      [whole.width, whole.height].map((each) => Math.round((each * Math.min(7, side)) / side)),
    );
    if (side <= 7) expect([...(original?.data ?? [])]).toEqual([...whole.data]);
  }
  await stream.close();
});

test.each(kinds)('%s: from any batch on, restoring gives what would have come', async (kind) => {
  const given = options(pageLanguageMixture(corpora[kind], 0.5));
  const { batches, states } = await run(given, 14);
  for (let stop = 1; stop < 14; stop += 3) {
    const stream = await CorpusBatchStream.open(given);
    await stream.next();
    await stream.restore(JSON.parse(JSON.stringify(states[stop - 1])) as StreamState);
    expect(stream.state()).toEqual(states[stop - 1]);
    const rest = await collect(stream, 14 - stop);
    expect(rest.batches).toEqual(batches.slice(stop));
    expect(rest.states).toEqual(states.slice(stop));
    await stream.close();
  }
});

test('a state goes on with another batch size', async () => {
  const given = options(single(corpora.tar));
  const { batches, states } = await run(given, 6);
  const halves = await CorpusBatchStream.open({ ...given, batch: 2 });
  await halves.restore(states[1]);
  const texts = (batch: object): readonly string[] => (batch as CorpusBatch).texts;
  const rest = (await collect(halves, 8)).batches.flatMap(texts);
  expect(rest).toEqual(batches.slice(2).flatMap(texts));
  await halves.close();
});

test('an image that is torn is skipped, counted and named, once an epoch', async () => {
  const notices: DataNotice[] = [];
  const stream = await CorpusBatchStream.open(
    options(single(corpora.tar), { batch: ROWS - 1 }),
    (notice) => {
      notices.push(notice);
    },
  );
  const batch = await stream.next();
  const next = await stream.next();
  await stream.close();
  const sound = Array.from({ length: ROWS }, (_, i) => rowOf(i).id).filter((_, i) => i !== TORN);
  expect([...batch.ids].sort()).toEqual([...sound].sort());
  expect(next.skipped).toBe(2);
  expect(notices).toHaveLength(2);
  expect(notices[0]).toMatchObject({
    kind: 'skipped',
    stream: 'all',
    source: join(folder(), 'tar', '0.tar'),
    row: TORN,
    id: rowOf(TORN).id,
    code: 'ERR_IMAGE',
    reason: expect.stringMatching(/4 bytes that do not decode/) as string,
  });
});

test('a corpus of torn images ends in an error that names one', async () => {
  const path = put(join(folder(), 'torn', 'a.jsonl'), '{"image":"gone.png","text":"x","id":"z"}\n');
  const stream = await CorpusBatchStream.open(options(single({ inputs: [path] })));
  expect(await failure(stream.next())).toMatchObject({
    code: 'ERR_DATA',
    message: expect.stringMatching(/got none\nthe last one, z of .*gone\.png/) as string,
  });
  await stream.close();
});

test('boxes in pixels become shares, cut at the edge; empty texts are <eos> and padding', async () => {
  const image = 'a.png';
  put(join(folder(), 'boxes', image), await picture(0)); // 8 wide, 6 high
  const regions = [
    { box: [0, 2, 3, 40], text: 'in part' },
    { box: [9, 9, 12, 12], text: 'beyond' },
  ];
  const path = put(
    join(folder(), 'boxes', 'a.jsonl'),
    JSON.stringify({ image, text: '', regions }),
  );
  const stream = await CorpusBatchStream.open(
    options(single({ inputs: [path], boxes: 'pixels' }), { batch: 1 }),
  );
  const batch = await stream.next();
  expect(batch.regions).toEqual([[{ box: [0, 0.25, 0.5, 1], text: 'in part' }]]);
  expect([...batch.tokens]).toEqual([1, 0, 0, 0, 0, 0, 0, 0]);
  await stream.close();
});

test('as many workers as you like, and one that dies: the same batches', async () => {
  const given = options(pageLanguageMixture(corpora.parquet, 0.5), { originals: 5 });
  const expected = await run(given, 10);
  expect(await run({ ...given, workers: 1 }, 10)).toEqual(expected);
  const notices: DataNotice[] = [];
  const stream = await CorpusBatchStream.open({ ...given, workers: 3 }, (notice) => {
    notices.push(notice);
  });
  const before = await collect(stream, 4);
  // The pool's own threads, of which one is ended in the middle of its work.
  const pool = Reflect.get(stream, 'pool') as { readonly members: { readonly thread: Worker }[] };
  const [{ thread }] = pool.members;
  const next = collect(stream, 6);
  await thread.terminate();
  const after = await next;
  await stream.close();
  expect([...before.batches, ...after.batches]).toEqual(expected.batches);
  expect([...before.states, ...after.states]).toEqual(expected.states);
  expect(notices.filter(({ kind }) => kind === 'lost worker')).toEqual([
    { kind: 'lost worker', worker: 'decoder 1', reason: 'the thread ended with code 1' },
  ]);
});

test('on a thread of their own, with decoders under it: the same batches, states and notices', async () => {
  const given = options(single(corpora.jsonl), { originals: 8, workers: 2 });
  const expected = await run({ ...given, workers: 0 }, 8);
  const notices: DataNotice[] = [];
  const stream = await openCorpusBatches(given, {
    onNotice: (notice) => {
      notices.push(notice);
    },
  });
  const first = await collect(stream, 8);
  expect(first).toEqual(expected);
  expect(notices).toMatchObject([{ kind: 'skipped', row: TORN }]);
  await stream.restore(expected.states[2]);
  expect((await collect(stream, 5)).batches).toEqual(expected.batches.slice(3));
  // Its thread dies, with the decoders under it.
  await stream.restore(expected.states[0]);
  await stream.next();
  const prefetch = Reflect.get(stream, 'stream') as { readonly worker: Worker };
  await prefetch.worker.terminate();
  const rest = await collect(stream, 6);
  expect(rest).toEqual({ batches: expected.batches.slice(2), states: expected.states.slice(2) });
  expect(notices.at(-1)).toEqual({
    kind: 'lost worker',
    worker: 'corpus batches',
    reason: 'Prefetch: worker corpus batches failed: the thread ended with code 1',
  });
  await stream.close();
});

describe('a mixture file', () => {
  test('is read with paths from its folder, and says what is wrong', async () => {
    const path = put(
      join(folder(), 'mixture.json'),
      JSON.stringify({
        corpora: { web: { inputs: ['tar/*.tar'], fields: { id: 'id' } } },
        streams: [{ name: 'all', weight: 1, corpus: 'web' }],
      }),
    );
    const mixture = await readMixture(path);
    expect(mixture.corpora['web'].inputs).toEqual([join(folder(), 'tar/*.tar')]);
    expect((await run(options(mixture), 2)).batches).toHaveLength(2);
    expect(await failure(readMixture(join(folder(), 'none.json')))).toMatchObject({
      code: 'ERR_FILE',
    });
    expect(JSON.parse(readFileSync(path, 'utf8'))).toMatchObject({ streams: [{ weight: 1 }] });
  });

  const corpus = { inputs: ['a.tar'] };
  const stream = { name: 'all', weight: 1, corpus: 'web' };
  test.each([
    [{ corpora: { web: corpus }, streams: [] }, 'streams must be a list that is not empty, got []'],
    [
      { corpora: { web: corpus }, streams: [{ ...stream, weight: 0 }] },
      'streams.0.weight must be a positive number, got 0',
    ],
    [
      { corpora: { web: { inputs: [] } }, streams: [stream] },
      'corpora.web.inputs must be a list that is not empty, got []',
    ],
    [
      { corpora: { web: corpus }, streams: [{ ...stream, corpus: 'books' }] },
      'corpus of stream all must be one of web, got books',
    ],
    [
      { corpora: { web: corpus }, streams: [stream, stream] },
      'names of streams must differ, got all twice',
    ],
    [
      {
        corpora: { web: corpus },
        streams: [{ ...stream, where: { field: 'x', in: ['a'], notIn: ['b'] } }],
      },
      'streams.0.where must be an object with one of in and notIn, got {"field":"x","in":["a"],"notIn":["b"]}',
    ],
  ])('%j', (value, message) => {
    expect(() => checkMixture(value, 'file')).toThrow(`file: ${message}`);
  });
});

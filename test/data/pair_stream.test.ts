import { join } from 'node:path';
import type { Mixture, PairCorpus } from '../../lib/data/mixture';
import { pageLanguageMixture } from '../../lib/data/mixture';
import type { DrawnPair, PairStreamOptions } from '../../lib/data/pair_stream';
import { PairStream } from '../../lib/data/pair_stream';
import { failure } from '../failure';
import { folderForAll, put } from '../corpus/corpus_files';
import { kinds, putCorpus, rowOf } from './pair_corpora';

const folder = folderForAll();
const ROWS = 36;
let corpora: Record<(typeof kinds)[number], PairCorpus>;

beforeAll(async () => {
  const entries = await Promise.all(
    kinds.map(async (kind) => [kind, await putCorpus(join(folder(), kind), kind, 4, ROWS / 4)]),
  );
  corpora = Object.fromEntries(entries) as typeof corpora;
});

const single = (corpus: PairCorpus): Mixture => ({
  corpora: { only: corpus },
  streams: [{ name: 'all', weight: 1, corpus: 'only' }],
});

async function take(stream: PairStream, count: number): Promise<DrawnPair[]> {
  const pairs: DrawnPair[] = [];
  while (pairs.length < count) pairs.push(await stream.next());
  return pairs;
}

async function draw(options: PairStreamOptions, count: number): Promise<DrawnPair[]> {
  const stream = await PairStream.open(options);
  const pairs = await take(stream, count);
  await stream.close();
  return pairs;
}

const ids = (pairs: readonly DrawnPair[]): string[] => pairs.map(({ id }) => id);
const everyRow = Array.from({ length: ROWS }, (_, i) => rowOf(i).id).sort();

describe.each(kinds)('%s', (kind) => {
  test('rows have their text, regions and language', async () => {
    const pairs = await draw({ mixture: single(corpora[kind]), buffer: 8 }, ROWS);
    for (const { id, pair } of pairs) {
      const { text, language, regions } = rowOf(Number(id.slice(4)));
      expect(pair).toMatchObject({ text, language, regions });
    }
  });

  test('every epoch has every row once, in an order of its own', async () => {
    const pairs = ids(await draw({ mixture: single(corpora[kind]), buffer: 8, seed: 3 }, 3 * ROWS));
    const epochs = [0, 1, 2].map((epoch) => pairs.slice(epoch * ROWS, (epoch + 1) * ROWS));
    for (const epoch of epochs) expect([...epoch].sort()).toEqual(everyRow);
    expect(new Set(epochs.map(String)).size).toBe(3);
    expect(epochs[0]).not.toEqual(everyRow);
    const again = await draw({ mixture: single(corpora[kind]), buffer: 8, seed: 3 }, 3 * ROWS);
    expect(ids(again)).toEqual(pairs);
    const other = await draw({ mixture: single(corpora[kind]), buffer: 8, seed: 4 }, ROWS);
    expect(ids(other)).not.toEqual(epochs[0]);
  });

  test.each([2, 4, 5])('%d ranks share the rows of an epoch', async (ranks) => {
    const shares = await Promise.all(
      Array.from({ length: ranks }, async (_, rank) => {
        const options = { mixture: single(corpora[kind]), buffer: 8, rank, ranks };
        return ids(await draw(options, Math.floor(ROWS / ranks)));
      }),
    );
    const seen = shares.flat();
    expect(new Set(seen).size).toBe(seen.length);
    expect(seen.length).toBeGreaterThan(ROWS - ranks);
  });

  test('from any draw on, restoring gives the pairs that would have come', async () => {
    const options = { mixture: pageLanguageMixture(corpora[kind], 0.6), buffer: 5, seed: 9 };
    const whole = await draw(options, 2 * ROWS);
    for (let stop = 0; stop < 2 * ROWS - 4; stop += 7) {
      const stream = await PairStream.open(options);
      await take(stream, 3);
      // What a checkpoint stores.
      const text = JSON.stringify(
        stop === 0 ? (await PairStream.open(options)).state() : whole[stop - 1].state,
      );
      expect(text.length).toBeLessThan(250);
      await stream.restore(JSON.parse(text));
      expect(await take(stream, 2 * ROWS - stop)).toEqual(whole.slice(stop));
      await stream.close();
    }
  });
});

test('the published mixture: English pages nine times of ten, the others once', async () => {
  const mixture = pageLanguageMixture(corpora.jsonl);
  expect(mixture.streams.map(({ weight }) => weight)).toEqual([0.9, expect.closeTo(0.1)]);
  const pairs = await draw({ mixture, buffer: 16 }, 3000);
  const english = pairs.filter(({ pair }) => pair?.language === 'en');
  expect(english.every(({ stream }) => stream === 'english')).toBe(true);
  // Four standard deviations of 3000 draws.
  expect(Math.abs(english.length / 3000 - 0.9)).toBeLessThan(4 * Math.sqrt(0.09 / 3000));
});

test('one of several texts is drawn at each visit, and stays what it was', async () => {
  const path = put(
    join(folder(), 'texts', 'a.jsonl'),
    `${JSON.stringify({ image: 'a.png', text: ['one', 'two', 'three'] })}\n`,
  );
  const options = { mixture: single({ inputs: [path] }) };
  const texts = (await draw(options, 60)).map(({ pair }) => pair?.text);
  for (const text of ['one', 'two', 'three']) {
    expect(texts.filter((each) => each === text).length).toBeGreaterThan(8);
  }
  expect((await draw(options, 60)).map(({ pair }) => pair?.text)).toEqual(texts);
});

test('rows that are no pairs say why; empty texts stay or go', async () => {
  const image = 'a.png';
  const lines = [
    { id: 'none', image },
    { id: 'empty', image, text: '' },
    { id: 'blank', image, text: ' ' },
    { id: 'object', image, text: {} },
    { id: 'no image', text: 'x' },
    { id: 'no list', image, text: 'x', regions: { box: [0, 0, 1, 1] } },
    { id: 'turned', image, text: 'x', regions: [{ box: [0.5, 0, 0.5, 1], text: 'y' }] },
    { id: 'three', image, text: 'x', regions: [{ box: [0, 0, 1], text: 'y' }] },
    { id: 'sound', image, text: 'x', regions: null },
  ];
  const path = put(
    join(folder(), 'bad', 'a.jsonl'),
    lines.map((l) => JSON.stringify(l)).join('\n'),
  );
  const reasons = async (emptyTexts: 'keep' | 'drop'): Promise<Record<string, string>> => {
    const pairs = await draw({ mixture: single({ inputs: [path], emptyTexts }) }, lines.length);
    return Object.fromEntries(pairs.map(({ id, failure: f }) => [id, f?.reason ?? '']));
  };
  const kept = await reasons('keep');
  expect(kept).toEqual({
    none: 'field "text" must hold a text or a list of texts, got nothing',
    empty: '',
    blank: '',
    sound: '',
    object: 'field "text" must hold a text or a list of texts, got object',
    'no image': 'field "image" must hold an image, got nothing',
    'no list': expect.stringMatching(/^regions must be a list of .*, got object$/) as string,
    turned: expect.stringMatching(/^regions must be .*"box":\[0.5,0,0.5,1\]/) as string,
    three: expect.stringMatching(/^regions must be /) as string,
  });
  const dropped = 'text must not be empty, got nothing';
  expect(await reasons('drop')).toEqual({ ...kept, empty: dropped, blank: dropped });
});

test('a state of another mixture, seed or rank is refused, and so is what is no state', async () => {
  const options = { mixture: single(corpora.jsonl) };
  const stream = await PairStream.open(options);
  for (const other of [
    { seed: 1 },
    { rank: 1, ranks: 2 },
    { buffer: 3 },
    { mixture: single(corpora.tar) },
  ]) {
    const state = (await PairStream.open({ ...options, ...other })).state();
    expect(await failure(stream.restore(state))).toMatchObject({ code: 'ERR_DATA' });
  }
  expect(await failure(stream.restore({ draws: -1 }))).toMatchObject({ code: 'ERR_DATA' });
});

test('a stream without a row, folders of images and bad options are errors', async () => {
  const nobody = {
    corpora: { only: corpora.jsonl },
    streams: [
      { name: 'klingon', weight: 1, corpus: 'only', where: { field: 'language', in: ['tlh'] } },
    ],
  };
  expect(await failure(draw({ mixture: nobody }, 1))).toMatchObject({
    code: 'ERR_DATA',
    message: 'mixture: stream klingon must have rows, got none in a whole epoch',
  });
  const images = { mixture: single({ inputs: [join(folder(), 'jsonl')] }) };
  expect(await failure(PairStream.open(images))).toMatchObject({ code: 'ERR_CONFIG' });
  for (const wrong of [{ rank: 2, ranks: 2 }, { ranks: 0 }, { buffer: 0 }, { seed: -1 }]) {
    const opened = PairStream.open({ mixture: single(corpora.jsonl), ...wrong });
    expect(await failure(opened)).toMatchObject({ code: 'ERR_ARGUMENT' });
  }
});

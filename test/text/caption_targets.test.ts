import type { CaptionFormat } from '../../lib/model';
import { captionVocabulary, defaultCaptionFormat } from '../../lib/model';
import type { Box, CaptionBatch } from '../../lib/text';
import {
  boxIds,
  captionPrompt,
  captionQueries,
  captionTargets,
  captionText,
  groundingPrompt,
  parseBox,
} from '../../lib/text';
import { gemma } from './gemma';

const tokenizer = gemma();
const loc: CaptionFormat = { ...defaultCaptionFormat, boxes: 'loc' };
const box: Box = [0.1, 0, 0.5, 1];
const example = { caption: 'A Cat on a mat', region: { box, caption: 'the cat' } };
const draw = { seed: 3, position: 0 };
const length = 32;

/** The texts of the parts of a row: what carries no loss, and what does. */
function parts(batch: CaptionBatch, row: number): { prompt: string; learned: string } {
  const labels = batch.labels.subarray(row * length, (row + 1) * length);
  const weights = batch.weights.subarray(row * length, (row + 1) * length);
  const first = weights.indexOf(1);
  const count = weights.reduce((sum, weight) => sum + weight, 0);
  return {
    prompt: tokenizer.decode(labels.subarray(0, first)),
    learned: tokenizer.decode(labels.subarray(first, first + count)),
  };
}

test('three sequences for an image: caption, box of a text, text of a box', () => {
  const batch = captionTargets(tokenizer, [example], draw, { length, parallel: 0 });
  expect(parts(batch, 0)).toEqual({ prompt: 'cap:', learned: ' a cat on a mat' });
  expect(parts(batch, 1)).toEqual({ prompt: 'aref:', learned: ' the cat : 50 0 250 499' });
  expect(parts(batch, 2)).toEqual({ prompt: 'gcap:', learned: ' 50 0 250 499 : the cat' });
  expect([...batch.causal]).toEqual([1, 1, 1]);
});

test('autoregressive sequences go in shifted behind a 0; <eos> is learned and padding is not', () => {
  const batch = captionTargets(tokenizer, [example], draw, { length, parallel: 0 });
  for (let row = 0; row < 3; row++) {
    const labels = batch.labels.subarray(row * length, (row + 1) * length);
    const ids = batch.ids.subarray(row * length, (row + 1) * length);
    expect([...ids]).toEqual([0, ...labels.subarray(0, length - 1)]);
    const end = labels.indexOf(tokenizer.eosId);
    expect(batch.weights[row * length + end]).toBe(1);
    expect(labels.subarray(end + 1).every((id) => id === tokenizer.padId)).toBe(true);
    expect(
      batch.weights.subarray(row * length + end + 1, (row + 1) * length).every((w) => w === 0),
    ).toBe(true);
  }
});

test('in parallel a caption goes in as mask tokens; the targets of boxes never', () => {
  const batch = captionTargets(tokenizer, [example], draw, { length, parallel: 1 });
  expect([...batch.causal]).toEqual([0, 1, 1]);
  expect(batch.ids.subarray(0, length).every((id) => id === tokenizer.vocabulary)).toBe(true);
  expect(batch.ids[length]).toBe(0);
  const same = captionTargets(tokenizer, [example], draw, { length, parallel: 0 });
  expect(batch.labels).toEqual(same.labels);
  expect(batch.weights).toEqual(same.weights);
});

test('about half of the captions are drawn, the same for the same position in the run', () => {
  const many = Array.from({ length: 400 }, () => ({ caption: 'a' }));
  const causal = captionTargets(tokenizer, many, draw, { length: 8 }).causal.filter(
    (_, row) => row % 3 === 0,
  );
  const count = causal.reduce((sum, one) => sum + one, 0);
  expect(count).toBeGreaterThan(160);
  expect(count).toBeLessThan(240);
  const later = captionTargets(
    tokenizer,
    many.slice(0, 100),
    { seed: 3, position: 300 },
    { length: 8 },
  );
  expect([...later.causal.filter((_, row) => row % 3 === 0)]).toEqual([...causal.slice(300)]);
});

test('an image without a region has nothing to learn about one', () => {
  const { weights } = captionTargets(tokenizer, [{ caption: 'a' }], draw, { length });
  expect(weights.subarray(length).every((weight) => weight === 0)).toBe(true);
  expect(weights.subarray(0, length).some((weight) => weight === 1)).toBe(true);
});

test('a long text is cut and ends in <eos>', () => {
  const caption = Array<string>(100).fill('cat').join(' ');
  const { labels, weights } = captionTargets(tokenizer, [{ caption }], draw, { length });
  expect(labels[length - 1]).toBe(tokenizer.eosId);
  expect(weights[length - 1]).toBe(1);
});

describe('boxes', () => {
  test.each([defaultCaptionFormat, loc])('come back as they were written: %j', (format) => {
    const ids = boxIds(tokenizer, box, format);
    const parsed = parseBox(tokenizer, ids, format) ?? [];
    const step = format.boxes === 'loc' ? 1 / 1023 : 1 / 499;
    expect(parsed).toHaveLength(4);
    parsed.forEach((value, i) => {
      expect(Math.abs(value - box[i])).toBeLessThanOrEqual(step / 2 + 1e-9);
    });
  });

  test('as ids of their own are behind those of the tokenizer', () => {
    expect([...boxIds(tokenizer, [0, 0.5, 1, 1], loc)]).toEqual([
      256000,
      256000 + 512,
      256000 + 1023,
      256000 + 1023,
    ]);
    expect(captionVocabulary(tokenizer.vocabulary, loc)).toBe(257024);
    const batch = captionTargets(tokenizer, [example], draw, { length, parallel: 1, format: loc });
    expect(batch.ids[0]).toBe(257024);
  });

  test.each(['1 2 3', '1 2 3 500', '9 0 3 4', '0 9 3 4', 'no box'])('%s is none', (text) => {
    expect(parseBox(tokenizer, tokenizer.ids(text), defaultCaptionFormat)).toBeUndefined();
  });

  test('that are none are refused', () => {
    const wrong = { caption: 'a', region: { box: [0.5, 0, 0.1, 1] as const, caption: 'b' } };
    expect(() => captionTargets(tokenizer, [wrong], draw)).toThrow(
      /box must be \[ymin, xmin, ymax, xmax\]/,
    );
  });
});

test('prompts are the beginnings of targets', () => {
  const { labels } = captionTargets(tokenizer, [example], draw, { length });
  const aref = groundingPrompt(tokenizer, 'the cat');
  expect([...labels.subarray(length, length + aref.length)]).toEqual([...aref]);
  const cap = captionPrompt(tokenizer, 'cap');
  expect([...labels.subarray(0, cap.length)]).toEqual([...cap]);
});

test('queries are autoregressive captions', () => {
  const { causal, labels } = captionQueries(tokenizer, ['a cat', 'a dog'], { length: 16 });
  expect([...causal]).toEqual([1, 1]);
  expect(captionText(tokenizer, labels.subarray(16, 32))).toBe('cap: a dog');
});

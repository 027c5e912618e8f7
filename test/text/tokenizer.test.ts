import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import type { BytePairTokenizer } from '../../lib/text';
import { gemma, readJsonLines, SHARED_DATA } from './gemma';

interface Row {
  readonly text: string;
  readonly ids: readonly number[];
  readonly ids_hf?: readonly number[];
}

let asWritten: BytePairTokenizer;
let tokenizer: BytePairTokenizer;

beforeAll(() => {
  asWritten = gemma({ lowercase: false });
  tokenizer = gemma();
});

function mismatches(rows: readonly Row[], encode: (text: string) => Int32Array): unknown[] {
  return rows.flatMap(({ text, ids, ids_hf }) => {
    const actual = [...encode(text)];
    const expected = ids_hf ?? ids;
    return String(actual) === String(expected) ? [] : [{ text, expected, actual }];
  });
}

describe('ids of the reference', () => {
  test('names in many languages and edge cases', () => {
    const rows = readJsonLines<Row>(join(__dirname, '..', 'golden', 'tokenizer', 'golden.jsonl'));
    expect(rows.length).toBeGreaterThan(60);
    expect(mismatches(rows, (text) => asWritten.ids(text))).toEqual([]);
  });

  const file = join(SHARED_DATA, 'tokenizer', 'golden.jsonl');
  (existsSync(file) ? test : test.skip)('100 languages and captions', () => {
    const rows = readJsonLines<Row>(file);
    expect(rows.length).toBe(643);
    expect(mismatches(rows, (text) => asWritten.ids(text))).toEqual([]);
  });

  const corpus = join(SHARED_DATA, 'golden', 'naflex-512', 'corpus.json');
  (existsSync(corpus) ? test : test.skip)('texts of the published naflex checkpoint', () => {
    const { texts } = JSON.parse(readFileSync(corpus, 'utf8')) as {
      texts: { text: string; token_ids_padded: number[] }[];
    };
    expect(texts).toHaveLength(8);
    for (const { text, token_ids_padded: ids } of texts)
      expect([...tokenizer.encode(text)]).toEqual(ids);
  });

  // Ids of the published processor of google/siglip2-base-patch16-naflex.
  const LONG =
    'a very long and extremely detailed descriptive sentence about an ordinary domestic cat sitting quietly on a warm windowsill in the late afternoon sunlight, watching the small birds and the slowly falling autumn leaves outside the window while the busy city street far below fills up with hurrying people, passing cars, red buses, bicycles, and the faint distant sound of somebody playing music somewhere nearby';
  test.each([
    ['a photo of a cat', '235250 2686 576 476 4401 1'],
    ['A Photo Of A Cat', '235250 2686 576 476 4401 1'],
    ['a photo of a corgi puppy', '235250 2686 576 476 1406 2844 33551 1'],
    [
      'a red double-decker bus on a city street',
      '235250 3118 4199 235290 172530 1986 611 476 3413 7432 1',
    ],
    ['a field of sunflowers at sunset', '235250 2725 576 177842 696 22097 1'],
    ['a snow-capped mountain range', '235250 8529 235290 146406 8180 3001 1'],
    ['a sailboat on the water', '235250 185022 611 573 2003 1'],
    [
      LONG,
      '235250 1508 1497 578 10238 11352 49898 13060 1105 671 14814 12604 4401 10191 32831 611 476 8056 5912 81036 575 573 5245 13674 33365 235269 11041 573 2301 13141 578 573 13708 16118 22119 7907 5162 573 5912 2183 573 13572 3413 7432 2166 3582 49992 908 675 183908 1461 235269 13230 9446 235269 3118 38916 235269 90602 235269 578 573 33464 1',
    ],
  ])('%s', (text, ids) => {
    const expected = ids.split(' ').map(Number);
    const padding = new Array<number>(64 - expected.length).fill(0);
    expect([...tokenizer.encode(text)]).toEqual([...expected, ...padding]);
  });
});

describe('encode', () => {
  test('the empty text is <eos> and padding', () => {
    expect([...tokenizer.encode('', 4)]).toEqual([1, 0, 0, 0]);
    expect([...tokenizer.encode('', 1)]).toEqual([1]);
  });

  test('many texts give one array, row by row', () => {
    const texts = ['a cat', 'twee honden', ''];
    const rows = texts.map((text) => [...tokenizer.encode(text, 8)]);
    expect([...tokenizer.encode(texts, 8)]).toEqual(rows.flat());
    expect(tokenizer.encode([])).toHaveLength(0);
  });

  test('<eos> stays when a text is cut', () => {
    const ids = tokenizer.ids('one two three four five six');
    expect([...tokenizer.encode('one two three four five six', 4)]).toEqual([
      ...ids.slice(0, 3),
      1,
    ]);
    expect([...tokenizer.ids('one two three four', 2)]).toEqual([...ids.slice(0, 2)]);
  });

  test('<eos> in a text counts, unless special tokens are ignored', () => {
    expect([...tokenizer.encode('<eos>', 4)]).toEqual([1, 1, 0, 0]);
    const ignoring = gemma({ specialTokens: 'ignore' });
    const ids = ignoring.encode('<eos>', 8);
    expect(ids[0]).not.toBe(1);
    expect(ids.filter((id) => id === 1)).toHaveLength(1);
    // Lower-casing comes after the search for added tokens.
    expect([...tokenizer.ids('<EOS>')]).toEqual([...ignoring.ids('<eos>')]);
  });

  test('lower case is taken code point by code point', () => {
    // A final Σ becomes σ, not ς; İ becomes i and a dot above.
    expect([...tokenizer.ids('ΟΔΟΣ ΑΣ')]).toEqual([...asWritten.ids('οδοσ ασ')]);
    expect([...tokenizer.ids('İI')]).toEqual([...asWritten.ids('i\u0307i')]);
    expect([...tokenizer.ids('STRASSE Ǆ')]).toEqual([...asWritten.ids('strasse ǆ')]);
  });

  test('halves of surrogate pairs become U+FFFD', () => {
    expect([...tokenizer.ids('a\ud800b\udc00')]).toEqual([...tokenizer.ids('a\ufffdb\ufffd')]);
    expect([...tokenizer.ids('\ud83e\udd8a')]).toEqual([244323]);
  });

  test.each(['', ' ', '\n', '<eos>'])('the first ids of texts joined by %j', (glue) => {
    const rows = readJsonLines<Row>(join(__dirname, '..', 'golden', 'tokenizer', 'golden.jsonl'));
    const random = new Philox4x32(4, `long texts ${glue}`);
    for (let round = 0; round < 20; round++) {
      let text = '';
      while (text.length < 6000) text += rows[random.integer(rows.length)].text + glue;
      expect(tokenizer.ids(text, 63)).toEqual(tokenizer.ids(text).subarray(0, 63));
    }
  });

  test.each<[string, string]>([
    ['one letter', 'x'.repeat(100_000)],
    ['spaces', ' '.repeat(50_000)],
    ['line ends', '\n'.repeat(50_000)],
    ['emoji', '🦊🫩'.repeat(20_000)],
    ['Thai, without spaces', 'แมวนอนบนขอบหน้าต่าง'.repeat(2000)],
    ['Chinese', '敏捷的棕色狐狸跳过了懒狗'.repeat(2000)],
    ['halves of pairs', '\ud83e'.repeat(30_000)],
    [
      'a word of random letters',
      Array.from({ length: 30_000 }, (_, i) => 'abc'[(i * i) % 3]).join(''),
    ],
  ])('the first ids of %s', (_, text) => {
    expect(tokenizer.ids(text, 63)).toEqual(tokenizer.ids(text).subarray(0, 63));
  });

  test('refuses a text that is far too long', () => {
    const text = 'a cat '.repeat(3_000_000);
    expect(() => tokenizer.encode(text)).toThrow('at most 16777216 UTF-16 units, got 18000000');
    expect(tokenizer.encode(text.slice(0, 1 << 24))).toHaveLength(64);
  });

  test('refuses what is no text and no length', () => {
    expect(() => tokenizer.encode(7 as never)).toThrow();
    expect(() => tokenizer.encode([undefined as never])).toThrow(
      'encode: text must be a string, got undefined',
    );
    expect(() => tokenizer.encode('a', 0)).toThrow('length must be a positive integer, got 0');
  });
});

describe('decode', () => {
  test.each([
    'a photo of a cat',
    '  two  spaces ',
    '日本語とEnglish混在',
    '🦊🫩👨‍👩‍👧',
    'tab\there\n\n',
  ])('gives back %j', (text) => {
    expect(asWritten.decode(asWritten.ids(text))).toBe(text);
    expect(asWritten.decode(asWritten.encode(text))).toBe(text);
  });

  test('bytes that are no UTF-8 become U+FFFD', () => {
    expect(tokenizer.decode([457, 376])).toBe('\ufffd\ufffd');
  });

  test('refuses ids that are none', () => {
    expect(() => tokenizer.decode([256000])).toThrow('ids must be from 0 to 255999, got 256000');
    expect(() => tokenizer.decode([-1])).toThrow('got -1');
  });
});

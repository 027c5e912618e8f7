import { BytePairTokenizer, formatTokenizer } from '../../lib/text';
import { SiglipError } from '../../lib/errors';
import { parsed, smallTokenizerJson } from './small_tokenizer';

const tokenizer = (change: Record<string, unknown> = {}): BytePairTokenizer =>
  new BytePairTokenizer(parsed({ ...smallTokenizerJson(), ...change }), { lowercase: false });

describe('parseTokenizer', () => {
  test('a small file; truncation, padding and post-processor are left aside', () => {
    expect([...tokenizer().encode('cat cat\n\nxyz', 8)]).toEqual([10, 11, 4, 3, 1, 0, 0, 0]);
  });

  test('both spellings of merges', () => {
    const { model } = smallTokenizerJson();
    const pairs = [
      ['a', 't'],
      ['c', 'at'],
      ['▁', 'cat'],
    ];
    const other = tokenizer({ model: { ...model, merges: pairs } });
    expect(other.encode(' cat act')).toEqual(tokenizer().encode(' cat act'));
  });

  test('a Lowercase of the file holds whatever the options say', () => {
    const { normalizer } = smallTokenizerJson();
    const lower = { type: 'Sequence', normalizers: [{ type: 'Lowercase' }, normalizer] };
    expect([...tokenizer({ normalizer: lower }).ids('CAT')]).toEqual([10]);
    expect([...tokenizer().ids('CAT')]).toEqual([3]);
  });

  test('the pre-tokenizer of published files changes nothing', () => {
    const split = {
      type: 'Split',
      pattern: { String: ' ' },
      behavior: 'MergedWithPrevious',
      invert: false,
    };
    expect(tokenizer({ pre_tokenizer: split }).ids('cat cat')).toEqual(tokenizer().ids('cat cat'));
  });

  const { model, added_tokens } = smallTokenizerJson();
  const token = (added_tokens as Record<string, unknown>[])[0];
  test.each<[string, Record<string, unknown>]>([
    ['model must be an object, got 7', { model: 7 }],
    ['model.type must be BPE, got "Unigram"', { model: { ...model, type: 'Unigram' } }],
    [
      'model.ignore_merges must be false or absent, got true',
      { model: { ...model, ignore_merges: true } },
    ],
    ['model.vocab must be an object', { model: { ...model, vocab: ['a'] } }],
    ['model.merges must be a list', { model: { ...model, merges: {} } }],
    ['id of a must be an integer', { model: { ...model, vocab: { a: '1' } } }],
    [
      'without gaps, got 99 for a',
      { model: { ...model, vocab: { a: 99 }, merges: [] }, added_tokens: [] },
    ],
    [
      'id 1 must be of one piece, got a and b',
      { model: { ...model, vocab: { a: 1, b: 1 }, merges: [] }, added_tokens: [] },
    ],
    [
      'merge 0 must be "a b" or ["a", "b"], got "a b c"',
      { model: { ...model, merges: ['a b c'] } },
    ],
    ['merge 0 must be "a b" or ["a", "b"], got 5', { model: { ...model, merges: [5] } }],
    ['merge 0 must be of pieces', { model: { ...model, merges: ['a a'] } }],
    ['unk_token must be a piece', { model: { ...model, unk_token: '?' } }],
    ['normalizer must be Replace', { normalizer: null }],
    ['normalizer must be Replace', { normalizer: { type: 'NFKC' } }],
    ['pre_tokenizer must be absent', { pre_tokenizer: { type: 'Whitespace' } }],
    ['added_tokens.0.lstrip must be false', { added_tokens: [{ ...token, lstrip: true }] }],
    ['id 9 must be of one piece, got at and <pad>', { added_tokens: [{ ...token, id: 9 }] }],
  ])('refuses: %s', (message, change) => {
    expect(() => tokenizer(change)).toThrow(message);
    expect(() => tokenizer(change)).toThrow(SiglipError);
  });

  test.each([null, 5, 'text', [], {}])('refuses %j', (content) => {
    expect(() => parsed(content)).toThrow(SiglipError);
  });

  test('a vocabulary without <eos> is refused', () => {
    const change = {
      model: { ...model, vocab: { '<pad>': 0, '<unk>': 1 }, merges: [] },
      added_tokens: [],
    };
    expect(() => tokenizer(change)).toThrow('vocabulary must have <eos>');
  });
});

describe('formatTokenizer', () => {
  test.each([true, false])('gives the same tokenizer again, lowercase %p', (lowercase) => {
    const original = new BytePairTokenizer(parsed(smallTokenizerJson()), { lowercase });
    const json: unknown = JSON.parse(JSON.stringify(formatTokenizer(original)));
    const copy = new BytePairTokenizer(parsed(json), { lowercase });
    for (const text of ['cat', 'A CAT\n\ntac', '', '<eos>cat', '字 at']) {
      expect(copy.encode(text)).toEqual(original.encode(text));
    }
    expect(copy.definition.pieces.bytes).toEqual(original.definition.pieces.bytes);
    expect(copy.definition.lowercase).toBe(lowercase);
  });
});

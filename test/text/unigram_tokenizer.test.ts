import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { SiglipError } from '../../lib/errors';
import { readSentencePiece, UnigramTokenizer } from '../../lib/text';
import { Philox4x32 } from '../../lib/array/random';
import { readJsonLines } from './gemma';
import { BYTE_PAIR_SPECS, field, integer, piece } from './sentencepiece_bytes';

const folder = join(__dirname, '..', 'golden', 'tokenizer');

function tokenizerOf(name: string, options = {}): UnigramTokenizer {
  const file = `unigram_${name}.model`;
  return new UnigramTokenizer(readSentencePiece(readFileSync(join(folder, file)), file), options);
}

interface Row {
  readonly model: 'rules' | 'fallback';
  readonly text: string;
  readonly ids: readonly number[];
  readonly padded: readonly number[];
}

const rows = readJsonLines<Row>(join(folder, 'unigram.jsonl'));
const tokenizers = { rules: tokenizerOf('rules'), fallback: tokenizerOf('fallback') };

test('ids of the reference', () => {
  expect(rows.length).toBeGreaterThan(300);
  const wrong = rows.filter(({ model, text, ids, padded }) => {
    const tokenizer = tokenizers[model];
    const same = String([...tokenizer.ids(text)]) === String(ids);
    return !same || String([...tokenizer.encode(text, 16)]) !== String(padded);
  });
  expect(wrong).toEqual([]);
});

test('the rows use replacements, unknown pieces, bytes and user-defined pieces', () => {
  const text = (model: Row['model'], input: string): string[] =>
    Array.from(tokenizers[model].ids(input), (id) => tokenizers[model].model.pieces.text(id));
  expect(tokenizers.rules.ids('ＦＡＣＥ')).toEqual(tokenizers.rules.ids('face'));
  expect(tokenizers.rules.ids('🫩🦊🫩').at(-1)).toBe(2);
  expect(text('fallback', '🫩').slice(-4)).toEqual(['<0xF0>', '<0x9F>', '<0xAB>', '<0xA9>']);
  expect(text('fallback', 'facfacface')).toEqual(['▁', 'fac', 'fac', 'face']);
});

describe.each(['rules', 'fallback'] as const)('a long text, vocabulary %s', (name) => {
  const tokenizer = tokenizers[name];
  const all = rows.map(({ text }) => text);

  test.each([' ', '', '\n', '!'])('joined by %j: the first ids are those of the whole', (glue) => {
    const random = new Philox4x32(3, `long texts ${glue}`);
    for (let round = 0; round < 30; round++) {
      let text = '';
      while (text.length < 6000) text += all[random.integer(all.length)] + glue;
      expect(tokenizer.ids(text, 63)).toEqual(tokenizer.ids(text).subarray(0, 63));
    }
  });

  test.each<[string, string]>([
    ['one letter', 'a'.repeat(40_000)],
    ['a letter of the vocabulary of no piece', '字'.repeat(40_000)],
    ['nothing but punctuation, then a word', `${'!'.repeat(40_000)}face`],
    ['nothing but spaces, then a word', `${' '.repeat(40_000)}face`],
    ['Σ everywhere', 'Σ'.repeat(40_000)],
    ['Σ, and then nothing that says which', `Σ${'\u0301'.repeat(20_000)}a`],
    ['ends of text', '</s>'.repeat(20_000)],
    ['halves of pairs', '\ud83e'.repeat(20_000)],
  ])('%s', (_, text) => {
    expect(tokenizer.ids(text, 63)).toEqual(tokenizer.ids(text).subarray(0, 63));
  });
});

describe('a text', () => {
  const tokenizer = tokenizers.rules;
  test('ends and is padded with </s>', () => {
    expect([...tokenizer.encode('', 4)]).toEqual([1, 1, 1, 1]);
    expect([tokenizer.padId, tokenizer.eosId, tokenizer.vocabulary]).toEqual([1, 1, 1600]);
  });

  test('may keep its capitals, and its special tokens as text', () => {
    const asWritten = tokenizerOf('rules', { lowercase: false });
    expect(asWritten.ids('Face')).not.toEqual(tokenizer.ids('Face'));
    expect(asWritten.ids('face')).toEqual(tokenizer.ids('face'));
    const ignoring = tokenizerOf('rules', { specialTokens: 'ignore' });
    expect(ignoring.ids('a</s>b')).toEqual(tokenizer.ids('a s b'.replace(/ /gu, '')));
  });

  test('comes back from its ids', () => {
    expect(tokenizer.decode(tokenizer.encode('grinning face with big eyes'))).toBe(
      'grinning face with big eyes',
    );
    const { fallback } = tokenizers;
    expect(fallback.decode(fallback.ids('a 🫩 face'))).toBe('a 🫩 face');
    expect(tokenizer.decode(tokenizer.ids('face 🫩'))).toBe('face  ⁇ ');
    expect(() => tokenizer.decode([1600])).toThrow('ids must be from 0 to 1599, got 1600');
  });
});

describe('refuses', () => {
  const made = (...parts: Buffer[]): (() => UnigramTokenizer) => {
    return () => new UnigramTokenizer(readSentencePiece(Buffer.concat(parts), 'spiece.model'));
  };
  const pieces = [piece('</s>', 0, 3), piece('<unk>', 0, 2), piece('a', -1)];

  test.each<[string, Buffer[]]>([
    ['model_type must be unigram, as in the vocabularies of SigLIP, got bpe', [BYTE_PAIR_SPECS]],
    ['its table of replacements is damaged', [field(3, field(2, Buffer.of(1, 2, 3)))]],
    ['its table of replacements is damaged', [field(3, field(2, Buffer.of(4, 0, 0, 0, 0)))]],
    [
      'its list of replacements does not end',
      [field(3, field(2, Buffer.of(4, 0, 0, 0, 0, 0, 0, 0, 97)))],
    ],
    ['a model of an unknown kind 5', [field(2, integer(3, 5))]],
  ])('%s', (message, more) => {
    expect(made(...pieces, ...more)).toThrow(message);
  });

  test('a vocabulary without </s>', () => {
    expect(made(piece('<unk>', 0, 2))).toThrow('spiece.model: vocabulary must have </s>, got none');
  });

  test('damaged files, or takes them for another vocabulary, but never fails otherwise', () => {
    const random = new Philox4x32(5, 'damaged');
    const whole = readFileSync(join(folder, 'unigram_rules.model'));
    for (let round = 0; round < 60; round++) {
      const bytes = Buffer.from(whole);
      for (let i = 0; i < 20; i++) {
        // The table of replacements lies at the end.
        const at = random.integer(2) === 0 ? 0 : bytes.length - 6000;
        bytes[at + random.integer(6000)] = random.integer(256);
      }
      try {
        const tokenizer = new UnigramTokenizer(readSentencePiece(bytes, 'damaged'));
        expect(tokenizer.encode('Ａ face ﬁ a\u0301 ABC 🫩')).toHaveLength(64);
      } catch (error) {
        expect(error).toBeInstanceOf(SiglipError);
      }
    }
  });
});

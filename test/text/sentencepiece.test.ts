import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import { SiglipError } from '../../lib/errors';
import { BytePairTokenizer, parseSentencePiece } from '../../lib/text';
import { readJsonLines, SHARED_DATA } from './gemma';
import { BYTE_PAIR_SPECS, field, integer, piece } from './sentencepiece_bytes';

const MODEL = Buffer.concat([
  piece('<pad>', 0, 3),
  piece('<eos>', 0, 3),
  piece('<bos>', 0, 3),
  piece('<unk>', 0, 2),
  piece('<b>', 0, 4),
  piece('<0x0A>', 0, 6),
  piece('at', -1),
  piece('cat', -2),
  piece('▁', -3),
  piece('a', -4),
  piece('c', -5),
  piece('t', -6, 1),
  BYTE_PAIR_SPECS,
]);

describe('parseSentencePiece', () => {
  test('pieces, scores and types', () => {
    const tokenizer = new BytePairTokenizer(parseSentencePiece(MODEL));
    expect([...tokenizer.encode('CAT <b>act\nx', 10)]).toEqual([7, 8, 4, 9, 10, 11, 5, 3, 1, 0]);
  });

  test('added tokens may be given', () => {
    const added = [{ id: 1, content: '<eos>', special: true }];
    const tokenizer = new BytePairTokenizer(parseSentencePiece(MODEL, 'm', added));
    expect([...tokenizer.ids('<eos>at')]).toEqual([1, 6]);
  });

  test.each([
    ['model_type must be bpe, got unigram', field(2, integer(3, 1))],
    ['normalizer_spec.addDummyPrefix must be false, got true', field(3, integer(3, 1))],
    ['normalizer_spec.precompiled_charsmap must be absent', field(3, field(2, Buffer.of(1)))],
    ['a model of an unknown kind 9', field(2, integer(3, 9))],
    ['spaces must be written before words', field(2, integer(24, 1))],
    ['pieces must be distinct, got cat as id 7 and as id 12', piece('cat', 0)],
  ])('refuses what would change ids: %s', (message, more) => {
    expect(() => parseSentencePiece(Buffer.concat([MODEL, more]))).toThrow(message);
  });

  test('damaged bytes are refused', () => {
    expect(() => parseSentencePiece(MODEL.subarray(0, 30))).toThrow('a field is cut short');
    expect(() => parseSentencePiece(Buffer.alloc(0))).toThrow(
      'one of the pieces must be the unknown one',
    );
    expect(() => parseSentencePiece(Buffer.from('{"json": 1}'))).toThrow(SiglipError);
    const random = new Philox4x32(8, 'sentencepiece');
    for (let round = 0; round < 300; round++) {
      const bytes = Buffer.from(MODEL);
      for (let i = 0; i < 3; i++) bytes[random.integer(bytes.length)] = random.integer(256);
      try {
        parseSentencePiece(bytes);
      } catch (error) {
        expect(error).toBeInstanceOf(SiglipError);
      }
    }
  });
});

const folder = join(SHARED_DATA, 'tokenizer');

// Ids of the SentencePiece library itself.
(existsSync(folder) ? test : test.skip)('the whole vocabulary as a SentencePiece model', () => {
  const definition = parseSentencePiece(readFileSync(join(folder, 'tokenizer.rebuilt.model')));
  const tokenizer = new BytePairTokenizer(definition, { lowercase: false });
  expect(tokenizer.vocabulary).toBe(256000);
  const rows = readJsonLines<{ text: string; ids: number[] }>(join(folder, 'golden.jsonl'));
  const wrong = rows.filter(({ text, ids }) => String([...tokenizer.ids(text)]) !== String(ids));
  expect(wrong.map(({ text }) => text)).toEqual([]);
});

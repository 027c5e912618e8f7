import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import { SiglipError } from '../../lib/errors';
import { parseSentencePiece, Tokenizer } from '../../lib/text';
import { readJsonLines } from './gemma';

/** A field of bytes. */
function field(number: number, content: Uint8Array): Buffer {
  return Buffer.concat([Buffer.of(number * 8 + 2, content.length), content]);
}

function piece(text: string, score: number, type?: number): Buffer {
  const value = Buffer.alloc(5);
  value[0] = 2 * 8 + 5;
  value.writeFloatLE(score, 1);
  const kind = type === undefined ? [] : [Buffer.of(3 * 8, type)];
  return field(1, Buffer.concat([field(1, Buffer.from(text)), value, ...kind]));
}

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
  // trainer_spec, which is skipped.
  field(2, Buffer.from('anything')),
]);

describe('parseSentencePiece', () => {
  test('pieces, scores and types', () => {
    const tokenizer = new Tokenizer(parseSentencePiece(MODEL));
    expect([...tokenizer.encode('CAT <b>act\nx', 10)]).toEqual([7, 8, 4, 9, 10, 11, 5, 3, 1, 0]);
  });

  test('added tokens may be given', () => {
    const added = [{ id: 1, content: '<eos>', special: true }];
    const tokenizer = new Tokenizer(parseSentencePiece(MODEL, 'm', added));
    expect([...tokenizer.ids('<eos>at')]).toEqual([1, 6]);
  });

  test('damaged bytes are refused', () => {
    expect(() => parseSentencePiece(MODEL.subarray(0, 30))).toThrow('a field is cut short');
    expect(() => parseSentencePiece(Buffer.alloc(0))).toThrow('one of them the unknown one');
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

const folder = join(
  process.env.SIGLIP2_SHARED ?? join(__dirname, '..', '..', '..', 'shared'),
  'data',
  'tokenizer',
);

// Ids of the SentencePiece library itself.
(existsSync(folder) ? test : test.skip)('the whole vocabulary as a SentencePiece model', () => {
  const definition = parseSentencePiece(readFileSync(join(folder, 'tokenizer.rebuilt.model')));
  const tokenizer = new Tokenizer(definition, { lowercase: false });
  expect(tokenizer.vocabulary).toBe(256000);
  const rows = readJsonLines<{ text: string; ids: number[] }>(join(folder, 'golden.jsonl'));
  const wrong = rows.filter(({ text, ids }) => String([...tokenizer.ids(text)]) !== String(ids));
  expect(wrong.map(({ text }) => text)).toEqual([]);
});

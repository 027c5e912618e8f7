// A tokenizer.json small enough to be written down.
import { BytePairTokenizer } from '../../lib/text';
import type { TokenizerDefinition } from '../../lib/text';
import { parseTokenizer } from '../../lib/text';

/** What a file with this content defines. */
export function parsed(content: unknown): TokenizerDefinition {
  return parseTokenizer(Buffer.from(JSON.stringify(content)));
}

export interface SmallTokenizerJson {
  readonly added_tokens: unknown;
  readonly normalizer: unknown;
  readonly pre_tokenizer: unknown;
  readonly model: Record<string, unknown>;
  readonly [key: string]: unknown;
}

const PIECES = [
  '<pad>',
  '<eos>',
  '<bos>',
  '<unk>',
  '\n\n',
  '▁',
  'a',
  'c',
  't',
  'at',
  'cat',
  '▁cat',
];

export function smallTokenizerJson(): SmallTokenizerJson {
  const token = (id: number, special: boolean): unknown => ({
    id,
    content: PIECES[id],
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special,
  });
  return {
    version: '1.0',
    // To be ignored: SigLIP 2 has its own.
    truncation: { max_length: 3 },
    padding: { length: 5 },
    added_tokens: [token(0, true), token(1, true), token(2, true), token(3, true), token(4, false)],
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
    pre_tokenizer: null,
    post_processor: null,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      fuse_unk: true,
      byte_fallback: true,
      vocab: Object.fromEntries(PIECES.map((piece, id) => [piece, id])),
      merges: ['a t', 'c at', '▁ cat'],
    },
  };
}

/** One token per character. */
export function characterTokenizer(): BytePairTokenizer {
  const json = smallTokenizerJson();
  const special = ['<pad>', '<eos>', '<bos>', '<unk>', '\n\n'];
  const pieces = [...special, '▁', ...Array.from('abcdefghijklmnopqrstuvwxyz:0123456789')];
  const vocab = Object.fromEntries(pieces.map((piece, id) => [piece, id]));
  return new BytePairTokenizer(parsed({ ...json, model: { ...json.model, vocab, merges: [] } }));
}

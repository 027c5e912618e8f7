// tokenizer.json, the format of Hugging Face tokenizers, as far as SigLIP 2's tokenizers use it. What
// would change ids and is not supported is refused, never skipped. Truncation, padding and the
// post-processor of the file are left aside on purpose: SigLIP 2 has its own, and files disagree.
import { z } from 'zod';
import { SiglipError } from '../errors';
import { checked } from '../weights/json_file';
import type { AddedToken } from './added_tokens';
import { MergeTable } from './merge_table';
import type { Tokenizer, TokenizerDefinition } from './tokenizer';
import { byteIds, characterIds } from './vocabulary';

const off = z.union([z.literal(false), z.null()], 'false or absent').optional();
const empty = z.union([z.literal(''), z.null()], 'empty or absent').optional();

const addedToken = z.looseObject({
  id: z.int('an integer').min(0, 'from 0'),
  content: z.string('a string'),
  single_word: off,
  lstrip: off,
  rstrip: off,
  normalized: off,
  special: z.boolean('true or false').nullish(),
});

const schema = z.looseObject(
  {
    added_tokens: z.array(addedToken, 'a list').nullish(),
    normalizer: z.unknown().optional(),
    pre_tokenizer: z.unknown().optional(),
    model: z.looseObject(
      {
        type: z.literal('BPE', 'BPE').nullish(),
        dropout: z.union([z.literal(0), z.null()], '0 or absent').optional(),
        unk_token: z.string('a string').nullish(),
        continuing_subword_prefix: empty,
        end_of_word_suffix: empty,
        ignore_merges: off,
        byte_fallback: z.boolean('true or false').nullish(),
        fuse_unk: z.boolean('true or false').nullish(),
        // Half a million entries are checked where they are used.
        vocab: z.custom<Readonly<Record<string, unknown>>>(isObject, 'an object'),
        merges: z.custom<readonly unknown[]>(Array.isArray, 'a list'),
      },
      'an object',
    ),
  },
  'an object',
);

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

// Ids are bounded by what a table of embeddings can have.
const MAX_ID = 1 << 22;

/**
 * The definition in a parsed `tokenizer.json`. Merges may be spelled `"a b"` or `["a", "b"]`.
 *
 * @throws SiglipError ERR_TOKENIZER naming what is not supported or does not fit
 */
export function parseTokenizer(content: unknown, file = 'tokenizer.json'): TokenizerDefinition {
  const json = checked(schema, content, file, 'ERR_TOKENIZER');
  const ids = vocabularyOf(json.model.vocab, file);
  const characters = characterIds(ids);
  const bytes = byteIds(ids);
  const merges = mergesOf(json.model.merges, ids, file);
  const added = (json.added_tokens ?? []).map(({ id, content: text, special }) => {
    const known = ids.get(text) ?? id;
    if (known !== id) {
      throw wrong(file, `id of added token ${text}`, `${String(known)} as in vocab`, String(id));
    }
    ids.set(text, id);
    return { id, content: text, special: special === true };
  });
  expectSpacesKept(json.pre_tokenizer, file);
  return {
    pieces: piecesOf(ids, file),
    added,
    merges,
    characters,
    bytes: json.model.byte_fallback === true ? bytes : bytes.fill(-1),
    unknown: unknownOf(json.model.unk_token ?? '<unk>', ids, file),
    fuseUnknown: json.model.fuse_unk === true,
    lowercase: lowercases(json.normalizer, file),
  };
}

function wrong(file: string, what: string, expected: string, actual: string): SiglipError {
  return new SiglipError('ERR_TOKENIZER', `${file}: ${what} must be ${expected}, got ${actual}`);
}

function unknownOf(piece: string, ids: ReadonlyMap<string, number>, file: string): number {
  const id = ids.get(piece);
  if (id !== undefined) return id;
  throw wrong(file, 'unk_token', 'a piece of the vocabulary', piece);
}

function vocabularyOf(vocab: Readonly<Record<string, unknown>>, file: string): Map<string, number> {
  const ids = new Map<string, number>();
  for (const [piece, id] of Object.entries(vocab)) {
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id > MAX_ID) {
      throw wrong(file, `id of ${piece}`, `an integer from 0 to ${String(MAX_ID)}`, String(id));
    }
    ids.set(piece, id);
  }
  return ids;
}

function piecesOf(ids: ReadonlyMap<string, number>, file: string): string[] {
  const pieces = new Array<string>(ids.size).fill('');
  for (const [piece, id] of ids) {
    if (id >= ids.size)
      throw wrong(
        file,
        `ids of ${String(ids.size)} pieces`,
        'without gaps',
        `${String(id)} for ${piece}`,
      );
    if (pieces[id] !== '')
      throw wrong(file, `id ${String(id)}`, 'of one piece', `${pieces[id]} and ${piece}`);
    pieces[id] = piece;
  }
  return pieces;
}

function mergesOf(
  merges: readonly unknown[],
  ids: ReadonlyMap<string, number>,
  file: string,
): MergeTable {
  const [left, right, result] = [0, 1, 2].map(() => new Int32Array(merges.length));
  const priority = Int32Array.from({ length: merges.length }, (_, i) => i);
  merges.forEach((merge, i) => {
    const pair = pairOf(merge);
    if (pair === undefined) {
      throw wrong(file, `merge ${String(i)}`, '"a b" or ["a", "b"]', JSON.stringify(merge));
    }
    const [a, b] = pair;
    const [l, r, both] = [ids.get(a), ids.get(b), ids.get(a + b)];
    if (l === undefined || r === undefined || both === undefined) {
      throw wrong(
        file,
        `merge ${String(i)}`,
        'of pieces into a piece of the vocabulary',
        JSON.stringify(merge),
      );
    }
    left[i] = l;
    right[i] = r;
    result[i] = both;
  });
  return new MergeTable(left, right, result, priority);
}

function pairOf(merge: unknown): [string, string] | undefined {
  if (typeof merge === 'string') {
    const space = merge.indexOf(' ');
    if (space < 1 || merge.includes(' ', space + 1)) return undefined;
    return [merge.slice(0, space), merge.slice(space + 1)];
  }
  const isPair = Array.isArray(merge) && merge.length === 2;
  if (!isPair) return undefined;
  const [a, b] = merge as unknown[];
  return typeof a === 'string' && typeof b === 'string' ? [a, b] : undefined;
}

const replaceSpace = z.looseObject({
  type: z.literal('Replace'),
  pattern: z.looseObject({ String: z.literal(' ') }),
  content: z.literal('▁'),
});
const lowercaseStep = z.looseObject({ type: z.literal('Lowercase') });
const sequence = z.looseObject({ type: z.literal('Sequence'), normalizers: z.array(z.unknown()) });
const keepSpaces = z.looseObject({
  type: z.literal('Split'),
  pattern: z.looseObject({ String: z.literal(' ') }),
  behavior: z.literal('MergedWithPrevious'),
  invert: z.literal(false).optional(),
});

// Replace " " by "▁", perhaps Lowercase too; nothing else.
function lowercases(normalizer: unknown, file: string): boolean {
  const nested = sequence.safeParse(normalizer);
  const steps = nested.success ? nested.data.normalizers : [normalizer];
  const spaces = steps.filter((step) => replaceSpace.safeParse(step).success).length;
  const lower = steps.filter((step) => lowercaseStep.safeParse(step).success).length;
  if (spaces === 1 && spaces + lower === steps.length) return lower > 0;
  throw wrong(
    file,
    'normalizer',
    'Replace " " by "▁", with or without Lowercase',
    shown(normalizer),
  );
}

// Spaces are gone when it is asked, so this one splits nothing.
function expectSpacesKept(preTokenizer: unknown, file: string): void {
  if (preTokenizer === null || preTokenizer === undefined) return;
  if (keepSpaces.safeParse(preTokenizer).success) return;
  throw wrong(file, 'pre_tokenizer', 'absent, or Split at " "', shown(preTokenizer));
}

function shown(value: unknown): string {
  return value === undefined ? 'nothing' : JSON.stringify(value).slice(0, 200);
}

/**
 * The content of a `tokenizer.json` that gives the ids of this tokenizer, `<eos>` included, here and
 * in the reference library. Lower-casing becomes part of the file.
 */
export function formatTokenizer(tokenizer: Tokenizer): Record<string, unknown> {
  const { definition, eosId } = tokenizer;
  const { pieces, merges, bytes, fuseUnknown, unknown } = definition;
  const spaces = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: definition.added.map(addedTokenJson),
    normalizer: tokenizer.lowercase
      ? { type: 'Sequence', normalizers: [{ type: 'Lowercase' }, spaces] }
      : spaces,
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [
        { Sequence: { id: 'A', type_id: 0 } },
        { SpecialToken: { id: '<eos>', type_id: 0 } },
      ],
      pair: [
        { Sequence: { id: 'A', type_id: 0 } },
        { SpecialToken: { id: '<eos>', type_id: 0 } },
        { Sequence: { id: 'B', type_id: 1 } },
        { SpecialToken: { id: '<eos>', type_id: 1 } },
      ],
      special_tokens: { '<eos>': { id: '<eos>', ids: [eosId], tokens: ['<eos>'] } },
    },
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
      ],
    },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: pieces[unknown],
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: fuseUnknown,
      byte_fallback: bytes.some((id) => id >= 0),
      ignore_merges: false,
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: inOrder(merges).map((k) => spelled(pieces[merges.left[k]], pieces[merges.right[k]])),
    },
  };
}

function addedTokenJson({ id, content, special }: AddedToken): Record<string, unknown> {
  return {
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special,
  };
}

// Older readers know the first form only, but it cannot hold a space.
function spelled(left: string, right: string): string | [string, string] {
  return `${left}${right}`.includes(' ') ? [left, right] : `${left} ${right}`;
}

/** Merges by priority. */
function inOrder({ size, priority }: MergeTable): number[] {
  return Array.from({ length: size }, (_, k) => k).sort(
    (a, b) => priority[a] - priority[b] || a - b,
  );
}

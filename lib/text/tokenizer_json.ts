// tokenizer.json, the format of Hugging Face tokenizers, as far as SigLIP 2's tokenizers use it. What
// would change ids and is not supported is refused, never skipped. Truncation, padding and the
// post-processor of the file are left aside on purpose: SigLIP 2 has its own, and files disagree.
import { z } from 'zod';
import { SiglipError } from '../errors';
import { checked } from '../weights/json_file';
import type { AddedToken } from './added_tokens';
import { MergeTable } from './merge_table';
import type { BytePairTokenizer, TokenizerDefinition } from './byte_pair_tokenizer';
import { JsonCursor } from './json_bytes';
import { PieceTable } from './pieces';

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
        // vocab and merges, half a million entries, are read apart.
      },
      'an object',
    ),
  },
  'an object',
);

// Ids are bounded by what a table of embeddings can have.
const MAX_ID = 1 << 22;

/**
 * The definition in the bytes of a `tokenizer.json`. Merges may be spelled `"a b"` or `["a", "b"]`.
 *
 * @throws SiglipError ERR_TOKENIZER naming what is not supported or does not fit
 */
export function parseTokenizer(bytes: Uint8Array, file = 'tokenizer.json'): TokenizerDefinition {
  const builder = new VocabularyBuilder(file);
  const found = readAround(bytes, file, builder);
  const json = checked(schema, found.rest, file, 'ERR_TOKENIZER');
  if (!found.vocab) throw wrong(file, 'model.vocab', 'an object', 'something else');
  const { merges } = found;
  if (merges === undefined) throw wrong(file, 'model.merges', 'a list', 'something else');
  const alone = new Set<number>();
  for (const { id, content } of json.added_tokens ?? []) {
    if (!builder.has(id)) alone.add(id);
    builder.add(id, Buffer.from(content));
  }
  const pieces = builder.table();
  const byteIds = pieces.byteIds();
  expectSpacesKept(json.pre_tokenizer, file);
  return {
    pieces,
    added: (json.added_tokens ?? []).map(({ id, content, special }) => ({
      id,
      content,
      special: special === true,
    })),
    merges:
      typeof merges === 'number' ? mergesOf(new JsonCursor(file, bytes, merges), pieces) : merges,
    characters: pieces.characters(alone),
    bytes: json.model.byte_fallback === true ? byteIds : byteIds.fill(-1),
    unknown: unknownOf(json.model.unk_token ?? '<unk>', pieces, file),
    fuseUnknown: json.model.fuse_unk === true,
    lowercase: lowercases(json.normalizer, file),
  };
}

interface Around {
  /** Everything but the two long values, parsed. */
  readonly rest: unknown;
  /** Whether `model.vocab` is an object; its pieces are in the builder then. */
  readonly vocab: boolean;
  /** `model.merges`, if it is a list; where it begins, if pieces may be missing that it needs. */
  readonly merges: MergeTable | number | undefined;
}

function readAround(bytes: Uint8Array, file: string, builder: VocabularyBuilder): Around {
  const cursor = new JsonCursor(file, bytes);
  if (!cursor.isObject()) throw wrong(file, 'content', 'an object', 'something else');
  let vocab = false;
  let merges: MergeTable | number | undefined;
  const shortValue = (): unknown => JSON.parse(Buffer.from(cursor.skip()).toString('utf8'));
  const members = (member: (key: string) => unknown): Record<string, unknown> => {
    const found = new Map<string, unknown>();
    cursor.object(() => {
      const key = cursor.lastString();
      found.set(key, member(key));
    });
    return Object.fromEntries(found);
  };
  const longValue = (key: string): unknown => {
    if (key === 'vocab' && cursor.isObject()) {
      vocab = true;
      builder.addAll(cursor);
    } else if (key === 'merges' && cursor.isList()) {
      if (vocab && builder.isComplete()) merges = mergesOf(cursor, builder.table());
      else {
        merges = cursor.at;
        cursor.leap();
      }
    } else return shortValue();
    return undefined;
  };
  const rest = members((key) =>
    key === 'model' && cursor.isObject() ? members(longValue) : shortValue(),
  );
  cursor.expectEnd();
  return { rest, vocab, merges };
}

function wrong(file: string, what: string, expected: string, actual: string): SiglipError {
  return new SiglipError('ERR_TOKENIZER', `${file}: ${what} must be ${expected}, got ${actual}`);
}

function unknownOf(piece: string, pieces: PieceTable, file: string): number {
  const id = pieces.find(piece);
  if (id >= 0) return id;
  throw wrong(file, 'unk_token', 'a piece of the vocabulary', piece);
}

const NONE = -1;
const COMMA = 0x2c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;

/** Collects pieces in any order. */
class VocabularyBuilder {
  private readonly sources: Uint8Array[] = [];
  // By id: which source, and where in it.
  private source: Int32Array = new Int32Array(1024).fill(NONE);
  private begin: Int32Array = new Int32Array(1024);
  private end: Int32Array = new Int32Array(1024);
  private count = 0;
  private bytes = 0;
  private last = -1;
  private built: PieceTable | undefined;

  constructor(private readonly file: string) {}

  /** Pieces and ids of an object `{ "piece": id, … }`. */
  addAll(cursor: JsonCursor): void {
    cursor.object(() => {
      const { text, begin, end } = cursor;
      const id = cursor.natural();
      if (id < 0 || id > MAX_ID) {
        const piece = Buffer.from(text.subarray(begin, end)).toString('utf8');
        const actual = Buffer.from(cursor.skip()).toString('utf8').slice(0, 40);
        const expected = `an integer from 0 to ${String(MAX_ID)}`;
        throw wrong(this.file, `id of ${piece}`, expected, actual);
      }
      this.add(id, text, begin, end);
    });
  }

  has(id: number): boolean {
    return id < this.source.length && this.source[id] !== NONE;
  }

  /** Adds a piece; the same one again changes nothing. */
  add(id: number, text: Uint8Array, begin = 0, end = text.length): void {
    if (this.has(id)) {
      const [old, now] = [this.piece(id), Buffer.from(text.subarray(begin, end)).toString('utf8')];
      if (old === now) return;
      throw wrong(this.file, `id ${String(id)}`, 'of one piece', `${old} and ${now}`);
    }
    while (id >= this.source.length) this.grow();
    if (this.sources.at(-1) !== text) this.sources.push(text);
    this.source[id] = this.sources.length - 1;
    this.begin[id] = begin;
    this.end[id] = end;
    this.bytes += end - begin;
    this.count++;
    if (id > this.last) this.last = id;
  }

  /** Whether there is a piece for every id up to the last. */
  isComplete(): boolean {
    return this.last === this.count - 1;
  }

  /** All pieces. */
  table(): PieceTable {
    if (this.built?.size === this.count) return this.built;
    const starts = new Int32Array(this.count + 1);
    const bytes = new Uint8Array(this.bytes);
    if (!this.isComplete()) {
      const actual = `${String(this.last)} for ${this.piece(this.last)}`;
      throw wrong(this.file, `ids of ${String(this.count)} pieces`, 'without gaps', actual);
    }
    for (let id = 0; id < this.count; id++) {
      const source = this.sources[this.source[id]];
      let to = starts[id];
      for (let from = this.begin[id]; from < this.end[id]; from++) bytes[to++] = source[from];
      starts[id + 1] = to;
    }
    this.built = new PieceTable(bytes, starts, this.file);
    return this.built;
  }

  private piece(id: number): string {
    const source = this.sources[this.source[id]];
    return Buffer.from(source.subarray(this.begin[id], this.end[id])).toString('utf8');
  }

  private grow(): void {
    const size = 4 * this.source.length;
    const enlarged = (old: Int32Array): Int32Array => {
      const array = new Int32Array(size).fill(NONE);
      array.set(old);
      return array;
    };
    [this.source, this.begin, this.end] = [this.source, this.begin, this.end].map(enlarged);
  }
}

function mergesOf(cursor: JsonCursor, pieces: PieceTable): MergeTable {
  let capacity = 1 << 16;
  let [left, right, result]: Int32Array[] = [0, 1, 2].map(() => new Int32Array(capacity));
  let size = 0;
  const enlarged = (old: Int32Array): Int32Array => {
    const array = new Int32Array(capacity);
    array.set(old);
    return array;
  };
  cursor.list(() => {
    if (size === capacity) {
      capacity *= 2;
      [left, right, result] = [left, right, result].map(enlarged);
    }
    const at = cursor.at;
    const pair = cursor.isString() ? spelledPair(cursor) : listedPair(cursor);
    if (pair === undefined) {
      cursor.at = at;
      throw wrong(cursor.file, `merge ${String(size)}`, '"a b" or ["a", "b"]', text(cursor));
    }
    const { first, second } = pair;
    left[size] = pieces.findBytes(first.bytes, first.begin, first.end);
    right[size] = pieces.findBytes(second.bytes, second.begin, second.end);
    // The ways to make one piece usually stand together.
    const last = size === 0 ? -1 : result[size - 1];
    if (first.bytes !== second.bytes) {
      result[size] = pieces.find(rangeText(first) + rangeText(second));
    } else if (isJoined(pieces, last, first, second)) result[size] = last;
    else {
      result[size] = pieces.findBytes(
        first.bytes,
        first.begin,
        first.end,
        second.begin,
        second.end,
      );
    }
    if (left[size] < 0 || right[size] < 0 || result[size] < 0) {
      cursor.at = at;
      const expected = 'of pieces into a piece of the vocabulary';
      throw wrong(cursor.file, `merge ${String(size)}`, expected, text(cursor));
    }
    size++;
  });
  const priority = Int32Array.from({ length: size }, (_, i) => i);
  return new MergeTable(left.slice(0, size), right.slice(0, size), result.slice(0, size), priority);
}

interface Range {
  bytes: Uint8Array;
  begin: number;
  end: number;
}

// Kept between merges: there are hundreds of thousands.
const PAIR: { readonly first: Range; readonly second: Range } = {
  first: { bytes: new Uint8Array(), begin: 0, end: 0 },
  second: { bytes: new Uint8Array(), begin: 0, end: 0 },
};

function set(range: Range, bytes: Uint8Array, begin: number, end: number): void {
  range.bytes = bytes;
  range.begin = begin;
  range.end = end;
}

function spelledPair(cursor: JsonCursor): typeof PAIR | undefined {
  cursor.string();
  const { text: bytes, begin, end } = cursor;
  const space = bytes.indexOf(0x20, begin);
  if (space <= begin || space >= end - 1) return undefined;
  for (let at = space + 1; at < end; at++) if (bytes[at] === 0x20) return undefined;
  set(PAIR.first, bytes, begin, space);
  set(PAIR.second, bytes, space + 1, end);
  return PAIR;
}

function listedPair(cursor: JsonCursor): typeof PAIR | undefined {
  if (!cursor.accept(OPEN_LIST) || !cursor.isString()) return undefined;
  cursor.string();
  set(PAIR.first, cursor.text, cursor.begin, cursor.end);
  if (!cursor.accept(COMMA) || !cursor.isString()) return undefined;
  cursor.string();
  set(PAIR.second, cursor.text, cursor.begin, cursor.end);
  return cursor.accept(CLOSE_LIST) ? PAIR : undefined;
}

function isJoined(pieces: PieceTable, id: number, first: Range, second: Range): boolean {
  return (
    id >= 0 && pieces.equals(id, first.bytes, first.begin, first.end, second.begin, second.end)
  );
}

function rangeText({ bytes, begin, end }: Range): string {
  return Buffer.from(bytes.subarray(begin, end)).toString('utf8');
}

function text(cursor: JsonCursor): string {
  return Buffer.from(cursor.skip()).toString('utf8').slice(0, 100);
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
export function formatTokenizer(tokenizer: BytePairTokenizer): Record<string, unknown> {
  const { definition, eosId } = tokenizer;
  const { merges, bytes, fuseUnknown, unknown } = definition;
  const pieces = Array.from({ length: definition.pieces.size }, (_, id) =>
    definition.pieces.text(id),
  );
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

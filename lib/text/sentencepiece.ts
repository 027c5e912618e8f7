// A SentencePiece model file (sentencepiece_model.proto): pieces with scores and types, how texts are
// normalised, and which of two ways of encoding the pieces are for.
import { SiglipError } from '../errors';
import type { AddedToken } from './added_tokens';
import type { TokenizerDefinition } from './byte_pair_tokenizer';
import { MergeTable } from './merge_table';
import { PieceTable, utf8Length } from './pieces';
import { MessageCursor, wrongModel } from './protobuf';

/** Types of pieces. */
export const PIECE = {
  normal: 1,
  unknown: 2,
  control: 3,
  userDefined: 4,
  unused: 5,
  byte: 6,
} as const;

/** How texts are normalised before they are encoded. */
export interface NormalizerSpec {
  /** Replacements of characters, precompiled; empty for none. */
  readonly charsmap: Uint8Array;
  /** Put a space before the text. */
  readonly addDummyPrefix: boolean;
  /** Drop spaces at both ends and all but one of a run. */
  readonly removeExtraWhitespaces: boolean;
  /** Spell spaces "▁". */
  readonly escapeWhitespaces: boolean;
}

/** The content of a model file. */
export interface SentencePieceModel {
  readonly file: string;
  readonly kind: 'unigram' | 'bpe' | 'word' | 'char';
  readonly pieces: PieceTable;
  /** By id; a piece is more probable the greater its score is. */
  readonly scores: Float32Array;
  /** By id, see {@link PIECE}. */
  readonly types: Uint8Array;
  /** Id of what is no piece. */
  readonly unknown: number;
  readonly byteFallback: boolean;
  readonly normalizer: NormalizerSpec;
}

const KINDS = { 1: 'unigram', 2: 'bpe', 3: 'word', 4: 'char' } as const;

/** Reads a model file. @throws SiglipError ERR_TOKENIZER */
export function readSentencePiece(bytes: Uint8Array, file: string): SentencePieceModel {
  const starts = [0];
  const texts: Uint8Array[] = [];
  const scores: number[] = [];
  const types: number[] = [];
  let kind = 1;
  let byteFallback = false;
  let whitespaceSuffix = false;
  let normalizer: NormalizerSpec = {
    charsmap: new Uint8Array(),
    addDummyPrefix: true,
    removeExtraWhitespaces: true,
    escapeWhitespaces: true,
  };
  const cursor = new MessageCursor(file, bytes);
  while (cursor.next()) {
    if (cursor.field === 1) {
      let text = new Uint8Array();
      let score = 0;
      let type: number = PIECE.normal;
      const fields = cursor.message();
      while (fields.next()) {
        if (fields.field === 1) text = new Uint8Array(fields.slice());
        else if (fields.field === 2) score = fields.float();
        else if (fields.field === 3) type = fields.integer;
      }
      if (text.length === 0) throw wrongModel(file, 'pieces must have text');
      starts.push(starts[starts.length - 1] + text.length);
      texts.push(text);
      scores.push(score);
      types.push(type);
    } else if (cursor.field === 2) {
      const fields = cursor.message();
      while (fields.next()) {
        if (fields.field === 3) kind = fields.integer;
        else if (fields.field === 24) whitespaceSuffix = fields.integer !== 0;
        else if (fields.field === 35) byteFallback = fields.integer !== 0;
      }
    } else if (cursor.field === 3) normalizer = normalizerOf(cursor.message(), normalizer);
  }
  if (whitespaceSuffix) throw wrongModel(file, 'spaces must be written before words, not after');
  const unknown = types.indexOf(PIECE.unknown);
  if (unknown < 0) throw wrongModel(file, 'one of the pieces must be the unknown one');
  return {
    file,
    kind: kindOf(kind, file),
    pieces: new PieceTable(joined(texts, starts), Int32Array.from(starts), file),
    scores: Float32Array.from(scores),
    types: Uint8Array.from(types),
    unknown,
    byteFallback,
    normalizer,
  };
}

function joined(texts: readonly Uint8Array[], starts: readonly number[]): Uint8Array {
  const all = new Uint8Array(starts[texts.length]);
  texts.forEach((text, id) => {
    all.set(text, starts[id]);
  });
  return all;
}

function kindOf(kind: number, file: string): SentencePieceModel['kind'] {
  if (kind === 1 || kind === 2 || kind === 3 || kind === 4) return KINDS[kind];
  throw wrongModel(file, `a model of an unknown kind ${String(kind)}`);
}

function normalizerOf(fields: MessageCursor, defaults: NormalizerSpec): NormalizerSpec {
  let { charsmap, addDummyPrefix, removeExtraWhitespaces, escapeWhitespaces } = defaults;
  while (fields.next()) {
    if (fields.field === 2) charsmap = new Uint8Array(fields.slice());
    else if (fields.field === 3) addDummyPrefix = fields.integer !== 0;
    else if (fields.field === 4) removeExtraWhitespaces = fields.integer !== 0;
    else if (fields.field === 5) escapeWhitespaces = fields.integer !== 0;
  }
  return { charsmap, addDummyPrefix, removeExtraWhitespaces, escapeWhitespaces };
}

/**
 * The definition in the bytes of a `tokenizer.model`, a byte-pair model: two pieces merge when
 * together they are a piece, the better score first.
 *
 * @param added - tokens matched as a whole, from `tokenizer_config.json`; default: the model's
 *   user-defined pieces
 * @throws SiglipError ERR_TOKENIZER
 */
export function parseSentencePiece(
  bytes: Uint8Array,
  file = 'tokenizer.model',
  added?: readonly AddedToken[],
): TokenizerDefinition {
  const model = readSentencePiece(bytes, file);
  const { kind, normalizer, pieces, types, unknown } = model;
  if (kind !== 'bpe') {
    throw wrong(file, 'model_type', 'bpe', kind);
  }
  // The vocabulary of SigLIP 2 takes texts as they are.
  const alters = (['addDummyPrefix', 'removeExtraWhitespaces'] as const).find(
    (key) => normalizer[key],
  );
  if (alters !== undefined) throw wrong(file, `normalizer_spec.${alters}`, 'false', 'true');
  if (normalizer.charsmap.length > 0) {
    throw wrong(file, 'normalizer_spec.precompiled_charsmap', 'absent', 'one');
  }
  const others = new Set<number>();
  types.forEach((_, id) => {
    if (!isOrdinary(model, id)) others.add(id);
  });
  return {
    pieces,
    added: added ?? userDefined(model),
    merges: mergesOf(model),
    characters: pieces.characters(others),
    bytes: pieces.byteIds(),
    unknown,
    fuseUnknown: true,
    lowercase: false,
  };
}

function wrong(file: string, what: string, expected: string, actual: string): SiglipError {
  return new SiglipError('ERR_TOKENIZER', `${file}: ${what} must be ${expected}, got ${actual}`);
}

function isOrdinary({ types }: SentencePieceModel, id: number): boolean {
  return types[id] === PIECE.normal || types[id] === PIECE.userDefined;
}

function userDefined({ types, pieces }: SentencePieceModel): AddedToken[] {
  return Array.from(types).flatMap((type, id) =>
    type === PIECE.userDefined ? { id, content: pieces.text(id), special: false } : [],
  );
}

function mergesOf(model: SentencePieceModel): MergeTable {
  const { pieces, scores } = model;
  const { bytes, starts } = pieces;
  const ordinary = Array.from(scores.keys()).filter((id) => isOrdinary(model, id));
  ordinary.sort((a, b) => scores[b] - scores[a] || a - b);
  const [left, right, result, priority]: number[][] = [[], [], [], []];
  let rank = 0;
  ordinary.forEach((id, i) => {
    // Of pieces with one score the leftmost in the text comes first.
    if (i > 0 && scores[id] !== scores[ordinary[i - 1]]) rank++;
    const [begin, end] = [starts[id], starts[id + 1]];
    for (let at = begin + utf8Length(bytes[begin]); at < end; at += utf8Length(bytes[at])) {
      const l = pieces.findBytes(bytes, begin, at);
      if (l < 0 || !isOrdinary(model, l)) continue;
      const r = pieces.findBytes(bytes, at, end);
      if (r < 0 || !isOrdinary(model, r)) continue;
      left.push(l);
      right.push(r);
      result.push(id);
      priority.push(rank);
    }
  });
  const [l, r, both, ranks] = [left, right, result, priority].map((list) => Int32Array.from(list));
  return new MergeTable(l, r, both, ranks);
}

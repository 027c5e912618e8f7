// SigLIP 2's tokenizer: Gemma's byte-pair vocabulary, lower-cased text, no <bos>, a <eos> that stays
// when the text is cut, padding on the right to one length. The text tower attends to padding, so
// length and padding are part of the model.
import { SiglipError } from '../errors';
import type { AddedToken } from './added_tokens';
import { AddedTokenMatcher } from './added_tokens';
import type { BytePairModel } from './byte_pair';
import { BytePairEncoder } from './byte_pair';

/** A vocabulary and how it is used; see `parseTokenizer`. */
export interface TokenizerDefinition extends BytePairModel {
  /** Piece of every id. */
  readonly pieces: readonly string[];
  readonly added: readonly AddedToken[];
  /** Whether the definition itself lower-cases, whatever the options say. */
  readonly lowercase: boolean;
}

/** How texts are prepared. */
export interface TokenizerOptions {
  /**
   * Lower-case texts, code point by code point, as in training. Default true. Published SigLIP 2
   * folders do not do so when loaded by `AutoTokenizer`; false gives those ids.
   */
  readonly lowercase?: boolean;
  /**
   * Whether `<eos>`, `<pad>` and the like in a text become those tokens. Default `'match'`, as in the
   * reference; `'ignore'` takes them as ordinary characters: for texts of strangers.
   */
  readonly specialTokens?: 'match' | 'ignore';
}

/** Tokens of every text in SigLIP 2. */
const LENGTH = 64;

const SPACE = '▁';
const CACHED_WORDS = 1 << 14;
const CACHED_LENGTH = 64;

/** Turns texts into ids. */
export class Tokenizer {
  readonly definition: TokenizerDefinition;
  /** Ids are below this. */
  readonly vocabulary: number;
  readonly padId: number;
  readonly eosId: number;
  /** Whether texts are lower-cased. */
  readonly lowercase: boolean;
  private readonly matcher: AddedTokenMatcher;
  private readonly encoder: BytePairEncoder;
  private readonly cache = new Map<string, Int32Array>();
  private readonly splitsAtSpaces: boolean;

  /** See `loadTokenizer` and `parseTokenizer`. @throws SiglipError ERR_TOKENIZER */
  constructor(definition: TokenizerDefinition, options: TokenizerOptions = {}) {
    this.definition = definition;
    this.vocabulary = definition.pieces.length;
    this.padId = idOf(definition, '<pad>');
    this.eosId = idOf(definition, '<eos>');
    this.lowercase = definition.lowercase || options.lowercase !== false;
    const matched = definition.added.filter(
      ({ special }) => !(special && options.specialTokens === 'ignore'),
    );
    this.matcher = new AddedTokenMatcher(matched);
    this.encoder = new BytePairEncoder(definition);
    this.splitsAtSpaces = splitsAtSpaces(definition);
  }

  /**
   * Ids for the text tower: at most `length − 1` ids of the text, then `<eos>`, then padding.
   *
   * @param texts - one text or B of them
   * @param length - ids per text T; default 64
   * @returns (B, T)
   * @throws SiglipError ERR_ARGUMENT for a text that is no string, or a length below 1
   * @example
   * tokenizer.encode('a photo of a cat'); // 235250 2686 576 476 4401 1 0 0 …
   */
  encode(texts: string | readonly string[], length = LENGTH): Int32Array {
    if (!Number.isSafeInteger(length) || length < 1) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `encode: length must be a positive integer, got ${String(length)}`,
      );
    }
    const list = typeof texts === 'string' ? [texts] : texts;
    const result = new Int32Array(list.length * length).fill(this.padId);
    list.forEach((text, i) => {
      const ids = this.ids(text, length - 1);
      result.set(ids, i * length);
      result[i * length + ids.length] = this.eosId;
    });
    return result;
  }

  /**
   * The ids of a text alone, without `<eos>` and padding.
   *
   * @param limit - most ids wanted; what lies beyond is not looked at
   */
  ids(text: string, limit = Infinity): Int32Array {
    const found: number[] = [];
    this.walk(text, limit, (ids) => {
      for (let i = 0; i < ids.length && found.length < limit; i++) found.push(ids[i]);
      return found.length;
    });
    return Int32Array.from(found);
  }

  /**
   * Every id that occurs while texts are encoded in full, those merged away included: the pieces a
   * smaller vocabulary needs to encode the same texts in the same way.
   */
  visit(texts: Iterable<string>): Set<number> {
    const visited = new Set<number>();
    const add = (id: number): void => void visited.add(id);
    for (const text of texts) {
      for (const segment of this.matcher.split(wellFormed('visit', text))) {
        if (typeof segment === 'number') add(segment);
        else for (const word of this.words(segment)) this.encoder.encode(word, add);
      }
    }
    return visited;
  }

  /** The text of ids. Special tokens are left out; bytes that are no UTF-8 become U+FFFD. */
  decode(ids: ArrayLike<number>): string {
    const special = new Set(this.definition.added.filter((t) => t.special).map(({ id }) => id));
    let text = '';
    let bytes: number[] = [];
    const flush = (): void => {
      text += decodeBytes(bytes);
      bytes = [];
    };
    for (let i = 0; i < ids.length; i++) {
      const piece = this.pieceOf(ids[i]);
      const byte = this.definition.bytes.indexOf(ids[i]);
      if (byte >= 0) {
        bytes.push(byte);
        continue;
      }
      flush();
      if (!special.has(ids[i])) text += piece.replaceAll(SPACE, ' ');
    }
    flush();
    return text;
  }

  private pieceOf(id: number): string {
    if (Number.isInteger(id) && id >= 0 && id < this.vocabulary) return this.definition.pieces[id];
    throw new SiglipError(
      'ERR_ARGUMENT',
      `decode: ids must be from 0 to ${String(this.vocabulary - 1)}, got ${String(id)}`,
    );
  }

  // Calls `take` with the ids of one piece of text after the other until it has `limit` of them.
  private walk(text: string, limit: number, take: (ids: ArrayLike<number>) => number): void {
    let count = 0;
    for (const segment of this.matcher.split(wellFormed('encode', text))) {
      if (count >= limit) return;
      if (typeof segment === 'number') {
        count = take([segment]);
        continue;
      }
      for (const word of this.words(segment)) {
        if (count >= limit) return;
        count = take(this.encodeWord(word));
      }
    }
  }

  private words(segment: string): readonly string[] {
    const lower = this.lowercase ? lowercase(segment) : segment;
    const text = lower.replaceAll(' ', SPACE);
    return this.splitsAtSpaces ? text.split(WORD_BORDER) : [text];
  }

  private encodeWord(word: string): Int32Array {
    const cached = this.cache.get(word);
    if (cached !== undefined) return cached;
    const ids = this.encoder.encode(word);
    if (word.length <= CACHED_LENGTH) {
      if (this.cache.size >= CACHED_WORDS) this.cache.clear();
      this.cache.set(word, ids);
    }
    return ids;
  }
}

// Before every "▁" that follows something else.
const WORD_BORDER = /(?<=[^▁])(?=▁)/u;

/**
 * Whether words can be encoded apart: no merge makes a piece in which "▁" follows something else, so
 * nothing ever merges across such a place.
 */
function splitsAtSpaces({ pieces, merges }: TokenizerDefinition): boolean {
  const crossing = new Set(pieces.flatMap((piece, id) => (/[^▁]▁/u.test(piece) ? id : [])));
  return crossing.size === 0 || !merges.result.some((id) => crossing.has(id));
}

/**
 * Lower case code point by code point, as the reference does. JavaScript looks at neighbours in one
 * case alone, the Σ at the end of a word.
 */
function lowercase(text: string): string {
  return text.replaceAll('Σ', 'σ').toLowerCase();
}

// Halves of surrogate pairs have no UTF-8 form; they become U+FFFD.
function wellFormed(who: string, text: unknown): string {
  if (typeof text !== 'string') {
    throw new SiglipError('ERR_ARGUMENT', `${who}: text must be a string, got ${typeof text}`);
  }
  return text.replace(LONE_SURROGATE, '\ufffd');
}

const LONE_SURROGATE = /\p{Surrogate}/gu;

function decodeBytes(bytes: readonly number[]): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(
      Uint8Array.from(bytes),
    );
  } catch {
    return '\ufffd'.repeat(bytes.length);
  }
}

function idOf({ pieces }: TokenizerDefinition, piece: string): number {
  const id = pieces.indexOf(piece);
  if (id >= 0) return id;
  throw new SiglipError('ERR_TOKENIZER', `tokenizer: vocabulary must have ${piece}, got none`);
}

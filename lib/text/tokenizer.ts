// What a tokenizer is, whatever vocabulary it has: a text becomes ids, <eos> after them even when the
// text is cut, and padding on the right to one length. The text tower attends to padding, so length
// and padding are part of the model.
import { SiglipError } from '../errors';

/** How texts are prepared. */
export interface TokenizerOptions {
  /**
   * Lower-case texts, as in training. Default true. Published SigLIP 2 folders do not do so when
   * loaded by `AutoTokenizer`; false gives those ids.
   */
  readonly lowercase?: boolean;
  /**
   * Whether `<eos>`, `<pad>` and the like in a text become those tokens. Default `'match'`, as in the
   * reference; `'ignore'` takes them as ordinary characters: for texts of strangers.
   */
  readonly specialTokens?: 'match' | 'ignore';
}

/** Turns texts into ids; see `loadTokenizer`. */
export interface Tokenizer {
  /** Ids are below this. */
  readonly vocabulary: number;
  readonly padId: number;
  readonly eosId: number;
  /** Whether texts are lower-cased. */
  readonly lowercase: boolean;

  /**
   * Ids for the text tower: at most `length − 1` ids of the text, then `<eos>`, then padding. Of a
   * long text only as much is looked at as decides them.
   *
   * @param texts - one text or B of them
   * @param length - ids per text T; default 64
   * @returns (B, T)
   * @throws SiglipError ERR_ARGUMENT for a text that is no string or has more than 2^24 UTF-16 units,
   * or a length below 1
   * @example
   * tokenizer.encode('a photo of a cat'); // 235250 2686 576 476 4401 1 0 0 …
   */
  encode(texts: string | readonly string[], length?: number): Int32Array;

  /**
   * The ids of a text alone, without `<eos>` and padding.
   *
   * @param limit - most ids wanted; only as much of the text is looked at as decides them
   */
  ids(text: string, limit?: number): Int32Array;

  /** The text of ids. Special tokens are left out; bytes that are no UTF-8 become U+FFFD. */
  decode(ids: ArrayLike<number>): string;
}

/** Tokens of every text in SigLIP 2. */
const LENGTH = 64;

/** What {@link Tokenizer.encode} does, given what {@link Tokenizer.ids} does. */
export function encodeTexts(
  tokenizer: Tokenizer,
  texts: string | readonly string[],
  length = LENGTH,
): Int32Array {
  if (!Number.isSafeInteger(length) || length < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `encode: length must be a positive integer, got ${String(length)}`,
    );
  }
  const list = typeof texts === 'string' ? [texts] : texts;
  const result = new Int32Array(list.length * length).fill(tokenizer.padId);
  list.forEach((text, i) => {
    expectText('encode', text);
    const ids = tokenizer.ids(text, length - 1);
    result.set(ids, i * length);
    result[i * length + ids.length] = tokenizer.eosId;
  });
  return result;
}

// A text that is wanted as 64 ids and has more is a mistake of the caller, or an attack.
const MAX_UNITS = 1 << 24;

/** @throws SiglipError ERR_ARGUMENT when it is no string, or longer than any text */
export function expectText(who: string, text: unknown): string {
  if (typeof text !== 'string') {
    throw new SiglipError('ERR_ARGUMENT', `${who}: text must be a string, got ${typeof text}`);
  }
  if (text.length <= MAX_UNITS) return text;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: text must have at most ${String(MAX_UNITS)} UTF-16 units, got ${String(text.length)}`,
  );
}

/** @throws SiglipError ERR_ARGUMENT when an id is not below the size of the vocabulary */
export function expectId(id: number, vocabulary: number): number {
  if (Number.isInteger(id) && id >= 0 && id < vocabulary) return id;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `decode: ids must be from 0 to ${String(vocabulary - 1)}, got ${String(id)}`,
  );
}

/** The text of bytes; U+FFFD for every one of them when they are no UTF-8. */
export function decodeBytes(bytes: readonly number[]): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(
      Uint8Array.from(bytes),
    );
  } catch {
    return '\ufffd'.repeat(bytes.length);
  }
}

/** Ids in the order in which they are found, up to a limit. */
export class IdList {
  private values = new Int32Array(64);
  private count = 0;

  constructor(
    readonly limit: number,
    /** An id of which a run counts once; −1 for none. */
    private readonly fused = -1,
  ) {}

  get length(): number {
    return this.count;
  }

  get full(): boolean {
    return this.count >= this.limit;
  }

  push(id: number): void {
    if (this.count >= this.limit) return;
    if (id === this.fused && this.count > 0 && this.values[this.count - 1] === id) return;
    if (this.count === this.values.length) {
      const grown = new Int32Array(2 * this.count);
      grown.set(this.values);
      this.values = grown;
    }
    this.values[this.count++] = id;
  }

  pushAll(ids: ArrayLike<number>): void {
    for (let i = 0; i < ids.length; i++) this.push(ids[i]);
  }

  /** A copy of them. */
  ids(): Int32Array {
    return this.values.slice(0, this.count);
  }
}

// Units of a text that are looked at first; far more than 64 ids take.
const FIRST_LOOK = 4096;

/**
 * The first ids of a text, from as little of it as decides them: a beginning, and a longer one when
 * that does not decide.
 *
 * @param list - an empty list with the limit
 * @param fill - adds the ids of a beginning that hold whatever follows it; all when it is the whole
 */
export function idsOfBeginning(
  text: string,
  list: () => IdList,
  fill: (list: IdList, beginning: string, whole: boolean) => void,
): Int32Array {
  for (let size = FIRST_LOOK; size < text.length && list().limit < Infinity; size *= 4) {
    const certain = list();
    fill(certain, text.slice(0, wholePairs(text, size)), false);
    if (certain.full) return certain.ids();
  }
  const all = list();
  fill(all, text, true);
  return all.ids();
}

/** The nearest place at or before `at` that does not cut a surrogate pair. */
export function wholePairs(text: string, at: number): number {
  return at > 0 && (text.charCodeAt(at - 1) & 0xfc00) === 0xd800 ? at - 1 : at;
}

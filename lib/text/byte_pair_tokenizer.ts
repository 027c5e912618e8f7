// SigLIP 2's tokenizer: Gemma's byte-pair vocabulary, lower-cased text, no <bos>.
import { SiglipError } from '../errors';
import type { AddedToken } from './added_tokens';
import { AddedTokenMatcher } from './added_tokens';
import type { BytePairModel } from './byte_pair';
import { BytePairEncoder, symbolAt } from './byte_pair';
import { Neighbours } from './neighbours';
import type { PieceTable } from './pieces';
import type { Tokenizer, TokenizerOptions } from './tokenizer';
import {
  decodeBytes,
  encodeTexts,
  expectId,
  expectText,
  IdList,
  idsOfBeginning,
  wholePairs,
} from './tokenizer';

/** A vocabulary and how it is used; see `parseTokenizer`. */
export interface TokenizerDefinition extends BytePairModel {
  readonly pieces: PieceTable;
  readonly added: readonly AddedToken[];
  /** Whether the definition itself lower-cases, whatever the options say. */
  readonly lowercase: boolean;
}

const CACHED_WORDS = 1 << 14;
const CACHED_LENGTH = 64;

// A word of more units for every id wanted is encoded from its beginning.
const WORD_UNITS = 64;

/** A byte-pair vocabulary at work. */
export class BytePairTokenizer implements Tokenizer {
  readonly definition: TokenizerDefinition;
  readonly vocabulary: number;
  readonly padId: number;
  readonly eosId: number;
  readonly lowercase: boolean;
  private readonly matcher: AddedTokenMatcher;
  private readonly encoder: BytePairEncoder;
  private readonly cache = new Map<string, Int32Array>();
  /** Absent where a text may not be cut at all. */
  private readonly neighbours: Neighbours | undefined;

  /** See `loadTokenizer` and `parseTokenizer`. @throws SiglipError ERR_TOKENIZER */
  constructor(definition: TokenizerDefinition, options: TokenizerOptions = {}) {
    this.definition = definition;
    this.vocabulary = definition.pieces.size;
    this.padId = idOf(definition, '<pad>');
    this.eosId = idOf(definition, '<eos>');
    this.lowercase = definition.lowercase || options.lowercase !== false;
    const matched = definition.added.filter(
      ({ special }) => !(special && options.specialTokens === 'ignore'),
    );
    this.matcher = new AddedTokenMatcher(matched);
    this.encoder = new BytePairEncoder(definition);
    this.neighbours = mergesSpellText(definition) ? new Neighbours(definition.pieces) : undefined;
  }

  encode(texts: string | readonly string[], length?: number): Int32Array {
    return encodeTexts(this, texts, length);
  }

  ids(text: string, limit = Infinity): Int32Array {
    const { fuseUnknown, unknown } = this.definition;
    return idsOfBeginning(
      expectText('ids', text),
      () => new IdList(limit, fuseUnknown ? unknown : -1),
      (list, beginning, whole) => {
        this.fill(list, beginning, whole);
      },
    );
  }

  /**
   * Every id that occurs while texts are encoded in full, those merged away included: the pieces a
   * smaller vocabulary needs to encode the same texts in the same way.
   */
  visit(texts: Iterable<string>): Set<number> {
    const visited = new Set<number>();
    const add = (id: number): void => void visited.add(id);
    for (const text of texts) {
      for (const segment of this.matcher.split(expectText('visit', text))) {
        if (typeof segment === 'number') add(segment);
        else {
          const prepared = this.prepare(segment);
          for (let from = 0; from < prepared.length;) {
            const end = this.wordEnd(prepared, from);
            this.encoder.encode(prepared.slice(from, end), add);
            from = end;
          }
        }
      }
    }
    return visited;
  }

  decode(ids: ArrayLike<number>): string {
    const { added, bytes: byteIds, pieces } = this.definition;
    const special = new Set(added.filter((t) => t.special).map(({ id }) => id));
    let text = '';
    let bytes: number[] = [];
    const flush = (): void => {
      text += decodeBytes(bytes);
      bytes = [];
    };
    for (let i = 0; i < ids.length; i++) {
      const id = expectId(ids[i], this.vocabulary);
      const byte = byteIds.indexOf(id);
      if (byte >= 0) {
        bytes.push(byte);
        continue;
      }
      flush();
      if (!special.has(id)) text += pieces.text(id).replaceAll('▁', ' ');
    }
    flush();
    return text;
  }

  // Adds the ids of a text, or, when more of it follows, those that hold whatever that is.
  private fill(list: IdList, text: string, whole: boolean): void {
    // An added token that begins near the end might be a longer one.
    const end = whole ? text.length : wholePairs(text, text.length - this.matcher.longest);
    let open = '';
    for (const segment of this.matcher.split(text, end)) {
      if (list.full) return;
      if (open !== '') this.encodeSegment(list, open, true);
      open = '';
      if (typeof segment === 'number') list.push(segment);
      else open = segment;
    }
    if (open !== '') this.encodeSegment(list, open, whole);
  }

  private prepare(segment: string): string {
    return this.lowercase ? lowercase(segment) : segment;
  }

  private encodeSegment(list: IdList, segment: string, whole: boolean): void {
    const text = this.prepare(segment);
    for (let from = 0; from < text.length && !list.full;) {
      const end = this.wordEnd(text, from);
      this.encodeWord(list, text.slice(from, end), whole || end < text.length);
      from = end;
    }
  }

  // Where the word that begins at `from` ends: before the next place that nothing merges across.
  private wordEnd(text: string, from: number): number {
    const { neighbours } = this;
    if (neighbours === undefined) return text.length;
    let left = symbolAt(text, from);
    let at = from + unitsOf(left);
    while (at < text.length) {
      const right = symbolAt(text, at);
      if (!neighbours.has(left, right)) break;
      left = right;
      at += unitsOf(right);
    }
    return at;
  }

  private encodeWord(list: IdList, word: string, whole: boolean): void {
    if (!whole || word.length > WORD_UNITS * list.limit) {
      if (this.encodeBeginning(list, word) || !whole) return;
    }
    const cached = this.cache.get(word);
    if (cached !== undefined) {
      list.pushAll(cached);
      return;
    }
    const ids = this.encoder.encode(word);
    list.pushAll(ids);
    if (word.length > CACHED_LENGTH) return;
    if (this.cache.size >= CACHED_WORDS) this.cache.clear();
    this.cache.set(copied(word), ids);
  }

  // All ids that are missing in the list, from a beginning of a long word or of one whose end is not
  // known; false when that does not decide them.
  //
  // No merge ever crosses a border of the final pieces, so the pieces before a border are what the
  // text before it gives alone. The longest piece has L code points, so of L places in a row one is a
  // border. Where the texts up to each of L places in a row begin with the same ids, the whole text
  // does too.
  private encodeBeginning(list: IdList, word: string): boolean {
    const { neighbours } = this;
    if (neighbours === undefined) return false;
    // One more than is missing: the first may be one with the last of the list.
    const count = list.limit - list.length + 1;
    for (let size = 4 * (count + neighbours.longestPiece); ; size *= 4) {
      const ids = this.commonBeginning(word, size, neighbours.longestPiece, count);
      if (ids !== undefined) list.pushAll(ids);
      if (ids !== undefined || size >= word.length) return ids !== undefined;
    }
  }

  private commonBeginning(
    word: string,
    size: number,
    places: number,
    count: number,
  ): Int32Array | undefined {
    let first: Int32Array | undefined;
    let at = Math.min(size, word.length);
    for (let i = 0; i < places; i++) {
      at = wholePairs(word, at);
      if (at <= 0) return undefined;
      const ids = this.encoder.encode(word.slice(0, at)).subarray(0, count);
      if (ids.length < count) return undefined;
      first ??= ids;
      for (let k = 0; k < count; k++) if (ids[k] !== first[k]) return undefined;
      at--;
    }
    return first;
  }
}

// A slice of a long text keeps all of it in memory.
function copied(slice: string): string {
  return Buffer.from(slice, 'utf16le').toString('utf16le');
}

function unitsOf(point: number): number {
  return point > 0xffff ? 2 : 1;
}

// Whether a piece that merges make is the text it stands for: no byte and no <unk> ever merges.
function mergesSpellText({ merges, bytes, unknown }: TokenizerDefinition): boolean {
  const others = new Set([...bytes, unknown]);
  others.delete(-1);
  for (let k = 0; k < merges.size; k++) {
    if (others.has(merges.left[k]) || others.has(merges.right[k])) return false;
  }
  return true;
}

/**
 * Lower case code point by code point, as the reference does. JavaScript looks at neighbours in one
 * case alone, the Σ at the end of a word.
 */
function lowercase(text: string): string {
  return text.replaceAll('Σ', 'σ').toLowerCase();
}

function idOf({ pieces }: TokenizerDefinition, piece: string): number {
  const id = pieces.find(piece);
  if (id >= 0) return id;
  throw new SiglipError('ERR_TOKENIZER', `tokenizer: vocabulary must have ${piece}, got none`);
}

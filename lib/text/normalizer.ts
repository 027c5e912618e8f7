// How a SentencePiece model prepares a text: characters replaced, spaces at the ends and all but one
// of a run dropped, spaces spelled "▁".
// Source: sentencepiece src/normalizer.cc.
import { Charsmap } from './charsmap';
import { PieceTrie } from './piece_trie';
import { utf8Length } from './pieces';
import type { SentencePieceModel } from './sentencepiece';
import { PIECE } from './sentencepiece';

const SPACE = 0x20;
const MARK = [0xe2, 0x96, 0x81];

/** The normaliser of a model, without the space that it may put before a text. */
export class Normalizer {
  private readonly charsmap: Charsmap | undefined;
  // Pieces that are left as they are.
  private readonly fixed: PieceTrie | undefined;
  private readonly removeExtra: boolean;
  private readonly space: readonly number[];
  private out = new Uint8Array(256);
  private length = 0;
  // Whether a longer text might have matched a longer fixed piece.
  private cutShort = false;

  /** @throws SiglipError ERR_TOKENIZER */
  constructor(model: SentencePieceModel) {
    const { charsmap, removeExtraWhitespaces, escapeWhitespaces } = model.normalizer;
    this.charsmap = charsmap.length === 0 ? undefined : new Charsmap(charsmap, model.file);
    const fixed = Array.from(model.types.keys()).filter(
      (id) => model.types[id] === PIECE.userDefined,
    );
    this.fixed = fixed.length === 0 ? undefined : new PieceTrie(model.pieces, fixed);
    this.removeExtra = removeExtraWhitespaces;
    this.space = escapeWhitespaces ? MARK : [SPACE];
  }

  /**
   * @param text - UTF-8
   * @param whole - false when more text follows: then only what holds whatever follows is given
   * @returns UTF-8, good until the next call
   */
  normalize(text: Uint8Array, whole: boolean): Uint8Array {
    this.length = 0;
    // A space is dropped at the beginning, and after another.
    let afterSpace = this.removeExtra;
    const { charsmap } = this;
    for (let at = 0; at < text.length;) {
      const fixed = this.matchFixed(text, at);
      if (this.cutShort && !whole) break;
      const replaced = fixed === 0 && charsmap?.match(text, at, text.length) === true;
      if (fixed === 0 && charsmap?.cutShort === true && !whole) break;
      if (replaced && charsmap !== undefined) {
        const { replacements, begin, end, length } = charsmap;
        afterSpace = this.append(replacements, begin, end, afterSpace);
        at += length;
      } else {
        const end = Math.min(text.length, at + (fixed > 0 ? fixed : utf8Length(text[at])));
        afterSpace = this.append(text, at, end, afterSpace);
        at = end;
      }
    }
    if (this.removeExtra) this.trim();
    return this.out.subarray(0, this.length);
  }

  // Bytes of the longest fixed piece at a place; 0 for none.
  private matchFixed(text: Uint8Array, at: number): number {
    const { fixed } = this;
    this.cutShort = false;
    if (fixed === undefined) return 0;
    let node = PieceTrie.root;
    let longest = 0;
    for (let i = at; i < text.length; i++) {
      node = fixed.child(node, text[i]);
      if (node < 0) return longest;
      if (fixed.pieceAt(node) >= 0) longest = i + 1 - at;
    }
    this.cutShort = true;
    return longest;
  }

  // @returns whether what comes next comes after a space that counts
  private append(bytes: Uint8Array, begin: number, end: number, afterSpace: boolean): boolean {
    let at = begin;
    while (afterSpace && at < end && bytes[at] === SPACE) at++;
    // What vanishes leaves everything as it was.
    if (at === end) return afterSpace;
    this.reserve(3 * (end - at));
    for (let i = at; i < end; i++) {
      if (bytes[i] === SPACE) for (const byte of this.space) this.out[this.length++] = byte;
      else this.out[this.length++] = bytes[i];
    }
    return this.removeExtra && bytes[end - 1] === SPACE;
  }

  private trim(): void {
    const { out, space } = this;
    const endsWithSpace = (): boolean =>
      this.length >= space.length &&
      space.every((byte, i) => out[this.length - space.length + i] === byte);
    while (endsWithSpace()) this.length -= space.length;
  }

  private reserve(more: number): void {
    if (this.length + more <= this.out.length) return;
    const grown = new Uint8Array(2 * (this.length + more));
    grown.set(this.out);
    this.out = grown;
  }
}

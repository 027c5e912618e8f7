// Unigram encoding: of all ways to cut a text into pieces the one with the greatest sum of scores,
// found by dynamic programming over the places where a piece can end.
// Source: sentencepiece src/unigram_model.cc (EncodeOptimized) and sentencepiece_processor.cc.
import { PieceTrie } from './piece_trie';
import { utf8Length } from './pieces';
import type { SentencePieceModel } from './sentencepiece';
import { PIECE } from './sentencepiece';

const { fround } = Math;

// How much less than the least probable piece an unknown character counts.
const UNKNOWN_PENALTY = 10;
// What a user-defined piece counts less than the most probable pieces of its bytes.
const USER_DEFINED_PENALTY = 0.1;
// The reference starts its maximum with this, FLT_MIN; scores of ordinary pieces are below 0.
const LEAST_POSITIVE = fround(1.1754943508222875e-38);
const NOT_REACHED = -1;

/** A vocabulary with scores. */
export class UnigramEncoder {
  private readonly trie: PieceTrie;
  /** What a piece adds, by id. */
  private readonly scores: Float64Array;
  private readonly unknownScore: number;
  private readonly byteIds: Int32Array | undefined;
  // By place: the best sum of a way that ends there, and its last piece and where that begins.
  private sum = new Float32Array(256);
  private piece = new Int32Array(256);
  private begin = new Int32Array(256);

  constructor(private readonly model: SentencePieceModel) {
    const { types, pieces, scores } = model;
    const all = Array.from(types.keys());
    const normal = all.filter((id) => types[id] === PIECE.normal);
    const least = normal.reduce((min, id) => Math.min(min, scores[id]), 3.4028234663852886e38);
    const most = normal.reduce((max, id) => Math.max(max, scores[id]), LEAST_POSITIVE);
    this.unknownScore = fround(least - UNKNOWN_PENALTY);
    this.trie = new PieceTrie(
      pieces,
      all.filter((id) => types[id] === PIECE.normal || types[id] === PIECE.userDefined),
    );
    this.scores = Float64Array.from(scores, (score, id) => {
      if (types[id] !== PIECE.userDefined) return score;
      const length = pieces.starts[id + 1] - pieces.starts[id];
      return fround(length * most) - USER_DEFINED_PENALTY;
    });
    this.byteIds = model.byteFallback ? pieces.byteIds() : undefined;
  }

  /** The ids of a normalised text, UTF-8. A run of unknown characters is one id. */
  encode(text: Uint8Array): number[] {
    this.fill(text);
    return this.trace(text, text.length);
  }

  /**
   * The first ids of a text that goes on after what is given, or undefined when that does not decide
   * them.
   *
   * A way of cutting the whole text has a place where a piece ends among any L in a row, L the bytes
   * of the longest piece, and up to there it is the best way for the text up to there. So where those
   * for each of the last L places begin with the same ids, the whole text does too.
   */
  encodeBeginning(text: Uint8Array, count: number): number[] | undefined {
    this.fill(text);
    let first: number[] | undefined;
    const places = Math.max(4, this.trie.longest);
    for (let end = text.length; end > text.length - places; end--) {
      if (end <= 0) return undefined;
      if (this.begin[end] === NOT_REACHED) continue;
      const ids = this.trace(text, end).slice(0, count);
      if (ids.length < count) return undefined;
      first ??= ids;
      const known = first;
      if (ids.some((id, i) => id !== known[i])) return undefined;
    }
    return first;
  }

  private fill(text: Uint8Array): void {
    this.reserve(text.length + 1);
    const { trie, sum, piece, begin, scores, unknownScore } = this;
    const { unknown } = this.model;
    begin.fill(NOT_REACHED, 0, text.length + 1);
    sum[0] = 0;
    for (let at = 0; at < text.length;) {
      const soFar = sum[at];
      const next = Math.min(text.length, at + utf8Length(text[at]));
      let characterIsPiece = false;
      let node: number = PieceTrie.root;
      for (let end = at + 1; end <= text.length; end++) {
        node = trie.child(node, text[end - 1]);
        if (node < 0) break;
        const id = trie.pieceAt(node);
        if (id < 0) continue;
        // As in the reference: a sum in double precision against one that was rounded to float32.
        const candidate = scores[id] + soFar;
        if (begin[end] === NOT_REACHED || candidate > sum[end]) {
          sum[end] = candidate;
          begin[end] = at;
          piece[end] = id;
        }
        if (end === next) characterIsPiece = true;
      }
      if (!characterIsPiece) {
        const candidate = fround(unknownScore + soFar);
        if (begin[next] === NOT_REACHED || candidate > sum[next]) {
          sum[next] = candidate;
          begin[next] = at;
          piece[next] = unknown;
        }
      }
      at = next;
    }
  }

  // The ids of the best way that ends at `end`.
  private trace(text: Uint8Array, end: number): number[] {
    const { unknown } = this.model;
    const ids: number[] = [];
    for (let at = end; at > 0; at = this.begin[at]) {
      const id = this.piece[at];
      if (id !== unknown) ids.push(id);
      else if (this.byteIds !== undefined) {
        for (let i = at - 1; i >= this.begin[at]; i--) ids.push(this.byteIds[text[i]]);
      } else if (ids[ids.length - 1] !== unknown) ids.push(unknown);
    }
    return ids.reverse();
  }

  private reserve(places: number): void {
    if (places <= this.sum.length) return;
    const size = 2 ** Math.ceil(Math.log2(places));
    this.sum = new Float32Array(size);
    this.piece = new Int32Array(size);
    this.begin = new Int32Array(size);
  }
}

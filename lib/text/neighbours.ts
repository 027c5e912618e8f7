// Which two code points can ever stand beside each other in one piece. A merge joins neighbours into
// a piece, so where no piece holds a pair of code points nothing ever merges across it: a text may be
// cut there and its parts encoded apart, with the same result. (Proof: of all merges in their order,
// those left of the cut are the ones that the left part alone goes through, in the same order, since
// none that crosses is ever possible; and likewise on the right.)
import type { PieceTable } from './pieces';
import { codePointAt, utf8Length } from './pieces';

const BITS = 22;
const { imul } = Math;

/**
 * The pairs in a vocabulary, each as one bit of four million chosen by its hash. Two pairs may share
 * a bit; then a text is cut at fewer places than it could be.
 */
export class Neighbours {
  /** Code points of the longest piece. */
  readonly longestPiece: number;
  private readonly bits = new Int32Array(2 ** (BITS - 5));

  constructor({ bytes, starts, size }: PieceTable) {
    let longest = 0;
    for (let id = 0; id < size; id++) {
      const end = starts[id + 1];
      let at = starts[id];
      if (at === end) continue;
      let left = codePointAt(bytes, at);
      let length = 1;
      for (at += utf8Length(bytes[at]); at < end; at += utf8Length(bytes[at])) {
        length++;
        const right = codePointAt(bytes, at);
        const bit = bitOf(left, right);
        this.bits[bit >>> 5] |= 1 << (bit & 31);
        left = right;
      }
      if (length > longest) longest = length;
    }
    this.longestPiece = longest;
  }

  /** Whether some piece may hold these two code points side by side. */
  has(left: number, right: number): boolean {
    const bit = bitOf(left, right);
    return (this.bits[bit >>> 5] & (1 << (bit & 31))) !== 0;
  }
}

function bitOf(left: number, right: number): number {
  return imul(imul(left, 0x9e3779b1) ^ right, 0x85ebca6b) >>> (32 - BITS);
}

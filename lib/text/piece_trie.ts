// All pieces that begin at a place of a text, shortest first: a tree of bytes, laid out level by
// level, the children of a node side by side and in order.
import type { PieceTable } from './pieces';

const NONE = -1;

/** Some pieces of a table as a tree. */
export class PieceTrie {
  /** The node of the empty text. */
  static readonly root = 0;
  /** Bytes of the longest piece. */
  readonly longest: number;
  private readonly label: Uint8Array;
  // Children of node k are the nodes from firstChild[k] to before firstChild[k + 1].
  private readonly firstChild: Int32Array;
  private readonly ids: Int32Array;

  constructor(table: PieceTable, chosen: readonly number[]) {
    const { bytes, starts } = table;
    const lengthOf = (id: number): number => starts[id + 1] - starts[id];
    const sorted = Int32Array.from(chosen).sort((a, b) => compare(table, a, b));
    const most = sorted.reduce((sum, id) => sum + lengthOf(id), 1);
    const label = new Uint8Array(most);
    const firstChild = new Int32Array(most + 1);
    const ids = new Int32Array(most).fill(NONE);
    // The pieces below a node are a range of the sorted ones.
    const from = new Int32Array(most);
    const to = new Int32Array(most);
    to[0] = sorted.length;
    let nodes = 1;
    let depth = 0;
    for (let level = 0, levelEnd = 1; level < levelEnd; depth++) {
      for (; level < levelEnd; level++) {
        firstChild[level] = nodes;
        let at = from[level];
        const end = to[level];
        if (at < end && lengthOf(sorted[at]) === depth) ids[level] = sorted[at++];
        while (at < end) {
          const byte = bytes[starts[sorted[at]] + depth];
          label[nodes] = byte;
          from[nodes] = at;
          while (at < end && bytes[starts[sorted[at]] + depth] === byte) at++;
          to[nodes++] = at;
        }
      }
      levelEnd = nodes;
    }
    firstChild[nodes] = nodes;
    this.longest = Math.max(0, depth - 1);
    this.label = label.slice(0, nodes);
    this.firstChild = firstChild.slice(0, nodes + 1);
    this.ids = ids.slice(0, nodes);
  }

  /** The node one byte further, or −1 where no piece goes on like that. */
  child(node: number, byte: number): number {
    let low = this.firstChild[node];
    let high = this.firstChild[node + 1];
    while (low < high) {
      const middle = (low + high) >>> 1;
      const found = this.label[middle];
      if (found === byte) return middle;
      if (found < byte) low = middle + 1;
      else high = middle;
    }
    return NONE;
  }

  /** The piece that ends at a node, or −1. */
  pieceAt(node: number): number {
    return this.ids[node];
  }
}

function compare({ bytes, starts }: PieceTable, a: number, b: number): number {
  const [endA, endB] = [starts[a + 1], starts[b + 1]];
  let i = starts[a];
  for (let j = starts[b]; i < endA && j < endB; i++, j++) {
    if (bytes[i] !== bytes[j]) return bytes[i] - bytes[j];
  }
  return endA - starts[a] - (endB - starts[b]);
}

// Byte-pair encoding: begin with one symbol per code point and merge, again and again, the adjacent
// pair whose merge comes first, the leftmost of equals, until no pair merges. A heap of candidates
// and a linked list of symbols make that O(n log n).
import type { MergeTable } from './merge_table';

/** What the encoder needs to know of a vocabulary. */
export interface BytePairModel {
  readonly merges: MergeTable;
  /** Ids of pieces of one code point. */
  readonly characters: ReadonlyMap<number, number>;
  /** Ids of the pieces `<0x00>`…`<0xFF>`, −1 where there is none. */
  readonly bytes: Int32Array;
  /** Id of a code point that neither is a piece nor can be spelled in bytes. */
  readonly unknown: number;
  /** Whether neighbouring unknown code points share one id. */
  readonly fuseUnknown: boolean;
}

const END = -1;
const GONE = -2;
// Candidates are ordered by priority, then position; both in one float64.
const POSITIONS = 2 ** 32;

// Characters of the first plane have their ids in a table.
const PLANE = 0x10000;

/** Encodes strings; keeps its working memory between calls. */
export class BytePairEncoder {
  private readonly plane = new Int32Array(PLANE).fill(-1);
  private ids = new Int32Array(64);
  private next = new Int32Array(64);
  private previous = new Int32Array(64);
  private heap = new Float64Array(192);
  private heapSize = 0;
  private readonly utf8 = new Uint8Array(4);
  private readonly toUtf8 = new TextEncoder();

  constructor(private readonly model: BytePairModel) {
    for (const [point, id] of model.characters) if (point < PLANE) this.plane[point] = id;
  }

  /** The id of a code point, or −1 when it is no piece. */
  characterId(point: number): number {
    return point < PLANE ? this.plane[point] : (this.model.characters.get(point) ?? -1);
  }

  /**
   * The ids of a text taken as one word. A space stands for "▁", half a surrogate pair for U+FFFD.
   *
   * @param visited - told every id that occurs on the way, those of the result included
   */
  encode(text: string, visited?: (id: number) => void): Int32Array {
    const count = this.symbols(text);
    if (visited !== undefined) for (let i = 0; i < count; i++) visited(this.ids[i]);
    this.link(count);
    this.heapSize = 0;
    for (let i = 0; i + 1 < count; i++) this.offer(i, i + 1);
    let left = count;
    while (this.heapSize > 0) {
      const id = this.mergeFirst();
      if (id === undefined) continue;
      left--;
      visited?.(id);
    }
    return this.collect(count, left);
  }

  private symbols(text: string): number {
    this.reserve(4 * text.length);
    const { unknown, fuseUnknown } = this.model;
    let count = 0;
    for (let at = 0; at < text.length;) {
      const point = symbolAt(text, at);
      at += point < PLANE ? 1 : 2;
      const id = this.characterId(point);
      if (id >= 0) {
        this.ids[count++] = id;
        continue;
      }
      const spelled = this.spell(point, count);
      if (spelled > 0) count += spelled;
      else if (!(fuseUnknown && count > 0 && this.ids[count - 1] === unknown)) {
        this.ids[count++] = unknown;
      }
    }
    return count;
  }

  // Writes the bytes of a code point as ids from `at`; 0 when one of them has none.
  private spell(point: number, at: number): number {
    const { written } = this.toUtf8.encodeInto(String.fromCodePoint(point), this.utf8);
    for (let i = 0; i < written; i++) {
      const id = this.model.bytes[this.utf8[i]];
      if (id < 0) return 0;
      this.ids[at + i] = id;
    }
    return written;
  }

  private link(count: number): void {
    for (let i = 0; i < count; i++) {
      this.previous[i] = i - 1;
      this.next[i] = i + 1 < count ? i + 1 : END;
    }
  }

  // Carries out the first candidate; undefined when its pair is not there any more.
  private mergeFirst(): number | undefined {
    const key = this.take();
    const position = key % POSITIONS;
    const following = this.next[position];
    if (following < 0) return undefined;
    const { merges } = this.model;
    const merge = merges.find(this.ids[position], this.ids[following]);
    if (merge < 0 || merges.priority[merge] !== (key - position) / POSITIONS) return undefined;
    const id = merges.result[merge];
    const after = this.next[following];
    this.ids[position] = id;
    this.next[position] = after;
    this.next[following] = GONE;
    if (after !== END) {
      this.previous[after] = position;
      this.offer(position, after);
    }
    const before = this.previous[position];
    if (before !== END) this.offer(before, position);
    return id;
  }

  private collect(count: number, left: number): Int32Array {
    const result = new Int32Array(left);
    let at = 0;
    for (let i = 0; i !== END && at < left && i < count; i = this.next[i])
      result[at++] = this.ids[i];
    return result;
  }

  private offer(position: number, following: number): void {
    const { merges } = this.model;
    const merge = merges.find(this.ids[position], this.ids[following]);
    if (merge < 0) return;
    const key = merges.priority[merge] * POSITIONS + position;
    const { heap } = this;
    let at = this.heapSize++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (heap[parent] <= key) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = key;
  }

  private take(): number {
    const { heap } = this;
    const first = heap[0];
    const key = heap[--this.heapSize];
    const size = this.heapSize;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= size) break;
      if (child + 1 < size && heap[child + 1] < heap[child]) child++;
      if (heap[child] >= key) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = key;
    return first;
  }

  private reserve(symbols: number): void {
    if (symbols <= this.ids.length) return;
    const size = 2 ** Math.ceil(Math.log2(symbols));
    this.ids = new Int32Array(size);
    this.next = new Int32Array(size);
    this.previous = new Int32Array(size);
    // One candidate per pair at first, then at most two for each merge.
    this.heap = new Float64Array(3 * size);
  }
}

const SPACE = 0x20;
const SPACE_MARK = 0x2581;

/** The code point at a place as the vocabulary spells it: "▁" for a space, U+FFFD for half a pair. */
export function symbolAt(text: string, at: number): number {
  const unit = text.charCodeAt(at);
  if (unit === SPACE) return SPACE_MARK;
  if (unit < 0xd800 || unit > 0xdfff) return unit;
  const point = text.codePointAt(at) ?? unit;
  return point < PLANE ? 0xfffd : point;
}

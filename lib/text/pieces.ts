// The pieces of a vocabulary as UTF-8 in one buffer, found by an open-addressing hash table: eight
// megabytes for 256,000 pieces where a map of strings takes forty, and nothing for the garbage
// collector to walk through.
import { SiglipError } from '../errors';

const EMPTY = -1;
const { imul } = Math;
// A byte order mark is a piece like any other.
const FROM_UTF8 = new TextDecoder('utf-8', { ignoreBOM: true });
const TO_UTF8 = new TextEncoder();

/** Pieces by id, ids by piece. */
export class PieceTable {
  /** Number of pieces; ids are below it. */
  readonly size: number;
  private readonly slots: Int32Array;
  // By slot, so that most pieces need not be compared.
  private readonly hashes: Int32Array;
  private readonly shift: number;

  /**
   * @param bytes - all pieces in UTF-8
   * @param starts - where each begins, and after them where the last ends
   * @param file - named in errors
   * @throws SiglipError ERR_TOKENIZER when two pieces are alike
   */
  constructor(
    readonly bytes: Uint8Array,
    readonly starts: Int32Array,
    file = 'tokenizer',
  ) {
    this.size = starts.length - 1;
    let bits = 4;
    while (2 ** bits < 1.5 * this.size) bits++;
    this.shift = 32 - bits;
    this.slots = new Int32Array(2 ** bits).fill(EMPTY);
    this.hashes = new Int32Array(2 ** bits);
    for (let id = 0; id < this.size; id++) {
      const hash = hashOf(bytes, starts[id], starts[id + 1], 0, 0);
      const slot = this.slotOf(hash, bytes, starts[id], starts[id + 1], 0, 0);
      const other = this.slots[slot];
      if (other !== EMPTY) {
        throw new SiglipError(
          'ERR_TOKENIZER',
          `${file}: pieces must be distinct, got ${this.text(id)} as id ${String(other)} and as id ${String(id)}`,
        );
      }
      this.slots[slot] = id;
      this.hashes[slot] = hash;
    }
  }

  /** @throws SiglipError ERR_TOKENIZER when two are alike */
  static from(pieces: readonly string[], file?: string): PieceTable {
    const encoded = pieces.map((piece) => TO_UTF8.encode(piece));
    const starts = new Int32Array(pieces.length + 1);
    encoded.forEach(({ length }, id) => {
      starts[id + 1] = starts[id] + length;
    });
    const bytes = new Uint8Array(starts[pieces.length]);
    encoded.forEach((piece, id) => {
      bytes.set(piece, starts[id]);
    });
    return new PieceTable(bytes, starts, file);
  }

  /** The piece of an id below {@link size}. */
  text(id: number): string {
    return FROM_UTF8.decode(this.bytes.subarray(this.starts[id], this.starts[id + 1]));
  }

  /** The id of a piece, or −1. */
  find(piece: string): number {
    const bytes = TO_UTF8.encode(piece);
    return this.findBytes(bytes, 0, bytes.length);
  }

  /** The id of the piece with these bytes and, after them, those of a second range; or −1. */
  findBytes(bytes: Uint8Array, begin: number, end: number, begin2 = 0, end2 = 0): number {
    const hash = hashOf(bytes, begin, end, begin2, end2);
    return this.slots[this.slotOf(hash, bytes, begin, end, begin2, end2)];
  }

  private slotOf(
    hash: number,
    bytes: Uint8Array,
    begin: number,
    end: number,
    begin2: number,
    end2: number,
  ): number {
    const mask = this.slots.length - 1;
    let slot = imul(hash ^ (hash >>> 15), 0x9e3779b1) >>> this.shift;
    for (;;) {
      const id = this.slots[slot];
      if (id === EMPTY) return slot;
      if (this.hashes[slot] === hash && this.equals(id, bytes, begin, end, begin2, end2)) {
        return slot;
      }
      slot = (slot + 1) & mask;
    }
  }

  /** Whether the piece of an id has these bytes and, after them, those of a second range. */
  equals(
    id: number,
    bytes: Uint8Array,
    begin: number,
    end: number,
    begin2: number,
    end2: number,
  ): boolean {
    let at = this.starts[id];
    if (this.starts[id + 1] - at !== end - begin + (end2 - begin2)) return false;
    const own = this.bytes;
    for (let i = begin; i < end; i++) if (own[at++] !== bytes[i]) return false;
    for (let i = begin2; i < end2; i++) if (own[at++] !== bytes[i]) return false;
    return true;
  }

  /** The id of every piece that is one code point, by code point; without the ids in `except`. */
  characters(except: ReadonlySet<number> = new Set()): Map<number, number> {
    const found = new Map<number, number>();
    for (let id = 0; id < this.size; id++) {
      const begin = this.starts[id];
      const length = this.starts[id + 1] - begin;
      if (length === 0 || length !== utf8Length(this.bytes[begin]) || except.has(id)) continue;
      found.set(codePointAt(this.bytes, begin), id);
    }
    return found;
  }

  /** Ids of `<0x00>`…`<0xFF>`, −1 where there is none. */
  byteIds(): Int32Array {
    return Int32Array.from({ length: 256 }, (_, byte) =>
      this.find(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`),
    );
  }
}

function hashOf(
  bytes: Uint8Array,
  begin: number,
  end: number,
  begin2: number,
  end2: number,
): number {
  let hash = 0x811c9dc5 | 0;
  for (let i = begin; i < end; i++) hash = imul(hash ^ bytes[i], 0x01000193);
  for (let i = begin2; i < end2; i++) hash = imul(hash ^ bytes[i], 0x01000193);
  return hash;
}

/** Bytes of the code point that begins with this byte. */
export function utf8Length(first: number): number {
  if (first < 0x80) return 1;
  if (first < 0xe0) return 2;
  return first < 0xf0 ? 3 : 4;
}

/** The code point that begins at `at`, in bytes that are UTF-8. */
export function codePointAt(bytes: Uint8Array, at: number): number {
  const first = bytes[at];
  if (first < 0x80) return first;
  const second = bytes[at + 1] & 63;
  if (first < 0xe0) return ((first & 31) << 6) | second;
  const third = bytes[at + 2] & 63;
  if (first < 0xf0) return ((first & 15) << 12) | (second << 6) | third;
  return ((first & 7) << 18) | (second << 12) | (third << 6) | (bytes[at + 3] & 63);
}

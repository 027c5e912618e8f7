// JSON read in place. A tokenizer.json has a million strings in two of its values; JSON.parse would
// make an object of each.
import { SiglipError } from '../errors';

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;
const SPACE = 0x20;

// Deeper nesting than any file has would only serve to exhaust the stack.
const MAX_DEPTH = 100;

/** A place in the bytes of a JSON file. */
export class JsonCursor {
  /** Where the last string that was read begins and ends, in {@link text}. */
  begin = 0;
  end = 0;
  /** What the last string that was read lies in: the file, or, where it was escaped, a copy. */
  text: Uint8Array;

  constructor(
    readonly file: string,
    readonly bytes: Uint8Array,
    public at = 0,
  ) {
    this.text = bytes;
  }

  /** The next byte that is no white space, which stays; −1 at the end. */
  peek(): number {
    const { bytes } = this;
    let at = this.at;
    while (at < bytes.length && bytes[at] <= SPACE) at++;
    this.at = at;
    return at < bytes.length ? bytes[at] : -1;
  }

  isObject(): boolean {
    return this.peek() === OPEN_OBJECT;
  }

  isList(): boolean {
    return this.peek() === OPEN_LIST;
  }

  isString(): boolean {
    return this.peek() === QUOTE;
  }

  /** Calls `member` at the value of every key, which it must read. The key is what {@link string} says. */
  object(member: () => void): void {
    this.expect(OPEN_OBJECT);
    if (this.accept(CLOSE_OBJECT)) return;
    do {
      this.string();
      this.expect(COLON);
      member();
    } while (this.accept(COMMA));
    this.expect(CLOSE_OBJECT);
  }

  /** Calls `item` at every item of a list, which it must read. */
  list(item: () => void): void {
    this.expect(OPEN_LIST);
    if (this.accept(CLOSE_LIST)) return;
    do item();
    while (this.accept(COMMA));
    this.expect(CLOSE_LIST);
  }

  /** Reads a string; {@link begin}, {@link end} and {@link text} say where it is. */
  string(): void {
    this.expect(QUOTE);
    const { bytes } = this;
    const begin = this.at;
    let at = begin;
    let escaped = false;
    while (at < bytes.length && bytes[at] !== QUOTE) {
      if (bytes[at] === BACKSLASH) {
        escaped = true;
        at++;
      }
      at++;
    }
    if (at >= bytes.length) throw this.wrong('the end of a string');
    this.at = at + 1;
    if (escaped) {
      this.text = Buffer.from(this.parse(begin - 1, this.at) as string);
      this.begin = 0;
      this.end = this.text.length;
    } else {
      this.text = bytes;
      this.begin = begin;
      this.end = at;
    }
  }

  /** The string that was read last. */
  lastString(): string {
    return Buffer.from(this.text.subarray(this.begin, this.end)).toString('utf8');
  }

  /** Reads a number of digits alone; −1, and nothing read, where there is something else. */
  natural(): number {
    this.peek();
    const { bytes } = this;
    let value = 0;
    let at = this.at;
    for (; bytes[at] >= 0x30 && bytes[at] <= 0x39; at++) value = 10 * value + bytes[at] - 0x30;
    const next = bytes[at] | 0x20;
    // What follows may make it another kind of number: 1.5, 1e3.
    if (at === this.at || bytes[at] === 0x2e || next === 0x65) return -1;
    this.at = at;
    return value;
  }

  /** Goes beyond a value. @returns its bytes */
  skip(depth = 0): Uint8Array {
    if (depth > MAX_DEPTH) throw this.wrong(`at most ${String(MAX_DEPTH)} levels`);
    const first = this.peek();
    const begin = this.at;
    const inner = (): void => void this.skip(depth + 1);
    if (first === OPEN_OBJECT) this.object(inner);
    else if (first === OPEN_LIST) this.list(inner);
    else if (first === QUOTE) this.string();
    else {
      const { bytes } = this;
      const ends = [COMMA, CLOSE_LIST, CLOSE_OBJECT];
      while (this.at < bytes.length && bytes[this.at] > SPACE && !ends.includes(bytes[this.at])) {
        this.at++;
      }
      this.parse(begin, this.at);
    }
    return this.bytes.subarray(begin, this.at);
  }

  /** Goes beyond an object or a list that will be read later, checking nothing but where it ends. */
  leap(): void {
    this.peek();
    const { bytes } = this;
    let at = this.at;
    for (let depth = 0; at < bytes.length; at++) {
      const byte = bytes[at];
      if (byte === QUOTE) {
        for (at++; at < bytes.length && bytes[at] !== QUOTE; at++) {
          if (bytes[at] === BACKSLASH) at++;
        }
      } else if (byte === OPEN_LIST || byte === OPEN_OBJECT) depth++;
      else if ((byte === CLOSE_LIST || byte === CLOSE_OBJECT) && --depth === 0) break;
    }
    this.at = Math.min(bytes.length, at + 1);
  }

  /** Goes beyond the next byte if it is this one and no white space. @returns whether it is */
  accept(byte: number): boolean {
    if (this.peek() !== byte) return false;
    this.at++;
    return true;
  }

  /** @throws SiglipError ERR_TOKENIZER unless nothing but white space follows */
  expectEnd(): void {
    if (this.peek() !== -1) throw this.wrong('the end of the file');
  }

  private expect(byte: number): void {
    if (!this.accept(byte)) throw this.wrong(String.fromCharCode(byte));
  }

  private parse(begin: number, end: number): unknown {
    try {
      return JSON.parse(Buffer.from(this.bytes.subarray(begin, end)).toString('utf8'));
    } catch {
      this.at = begin;
      throw this.wrong('a value');
    }
  }

  private wrong(expected: string): SiglipError {
    return new SiglipError(
      'ERR_TOKENIZER',
      `${this.file}: content must be JSON with ${expected} at byte ${String(this.at)}, got ` +
        (this.at < this.bytes.length ? JSON.stringify(this.excerpt()) : 'the end of the file'),
    );
  }

  private excerpt(): string {
    return Buffer.from(this.bytes.subarray(this.at, this.at + 16)).toString('utf8');
  }
}

// The header of a safetensors file: eight bytes N (little-endian), then N bytes of JSON,
//   { "__metadata__": { string: string }, name: { "dtype", "shape", "data_offsets": [begin, end] } }
// with offsets from the end of the header. The byte ranges tile the rest of the file: no hole, no
// overlap. Everything is checked here, on the header alone, before a byte of data is touched; the
// parser knows this one grammar and nothing else, so hostile JSON cannot make it allocate more than
// the header's own size.
import { SiglipError } from '../errors';

/** Element types of the format; which of them can be read as numbers is another matter. */
export type SafetensorsDtype = keyof typeof DTYPE_BITS;

const DTYPE_BITS = {
  F64: 64,
  F32: 32,
  F16: 16,
  BF16: 16,
  I64: 64,
  I32: 32,
  I16: 16,
  I8: 8,
  U64: 64,
  U32: 32,
  U16: 16,
  U8: 8,
  BOOL: 8,
  C64: 64,
  F8_E4M3: 8,
  F8_E5M2: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  F6_E2M3: 6,
  F6_E3M2: 6,
  F4: 4,
} as const;

/** Where a tensor lies in its file. */
export interface TensorInfo {
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** Product of the shape; 1 for a scalar. */
  readonly elements: number;
  /** Bytes from the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

/** A header that was found to be sound. */
export interface SafetensorsHeader {
  readonly metadata: ReadonlyMap<string, string>;
  /** In the order of the file's data. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

/** Bytes of the length that every file begins with. */
export const LENGTH_BYTES = 8;

// What the reference implementation refuses.
const MAX_HEADER_BYTES = 100_000_000;

/** Bytes of `elements` elements, or undefined when they do not fill whole bytes. */
export function dtypeBytes(dtype: SafetensorsDtype, elements: number): number | undefined {
  const bytes = (DTYPE_BITS[dtype] / 8) * elements;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/**
 * Length of the JSON, from the first eight bytes.
 *
 * @throws SiglipError ERR_WEIGHTS when it cannot be one
 */
export function headerLength(file: string, start: Uint8Array, fileBytes: number): number {
  if (fileBytes < LENGTH_BYTES) {
    throw damaged(file, 'file', 'at least 8 bytes', `${String(fileBytes)} bytes`, INCOMPLETE);
  }
  const view = new DataView(start.buffer, start.byteOffset, start.byteLength);
  const length = view.getBigUint64(0, true);
  const room = fileBytes - LENGTH_BYTES;
  if (length > BigInt(Math.min(room, MAX_HEADER_BYTES))) {
    const expected =
      room < MAX_HEADER_BYTES
        ? `at most ${String(room)} bytes, the rest of the file,`
        : `at most ${String(MAX_HEADER_BYTES)} bytes`;
    const what = 'header length';
    throw damaged(file, what, expected, String(length), guess(start) ?? INCOMPLETE);
  }
  return Number(length);
}

/**
 * Parses and checks a header against the size of its file.
 *
 * @param json - the bytes between the length and the data
 * @throws SiglipError ERR_WEIGHTS naming the first thing that is wrong
 */
export function parseHeader(file: string, json: Uint8Array, fileBytes: number): SafetensorsHeader {
  const header = new HeaderParser(file, decodeUtf8(file, json)).parse();
  const dataStart = LENGTH_BYTES + json.byteLength;
  const tensors = tile(file, header.tensors, dataStart, fileBytes);
  return { metadata: header.metadata, tensors };
}

interface Entry {
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly elements: number;
  readonly begin: number;
  readonly end: number;
}

const INCOMPLETE = 'the file is cut short or damaged: fetch it again and compare its size.';

function damaged(
  file: string,
  what: string,
  expected: string,
  actual: string,
  remedy = 'the file is damaged or not made by a correct writer: fetch it again.',
): SiglipError {
  return new SiglipError(
    'ERR_WEIGHTS',
    `${file}: ${what} must be ${expected}, got ${actual}\nto do: ${remedy}`,
  );
}

// What people mistake for weights, by its first bytes.
function guess(start: Uint8Array): string | undefined {
  const text = String.fromCharCode(...start.subarray(0, LENGTH_BYTES));
  if (text.startsWith('version ')) {
    return 'this is the pointer that Git LFS left in place of the file: run `git lfs pull`.';
  }
  if (text.startsWith('PK') || text.startsWith('\x80')) {
    return 'this is a pickled or zipped PyTorch file: convert it to safetensors.';
  }
  if (text.startsWith('<')) return 'this is a web page: fetch the file itself.';
  if (text.startsWith('{')) return 'this is JSON: the file that holds the weights is another one.';
  return undefined;
}

function decodeUtf8(file: string, json: Uint8Array): string {
  if (json[0] !== 0x7b) {
    const first = json.length === 0 ? 'an empty header' : `byte ${String(json[0])}`;
    throw damaged(file, 'header', 'JSON that begins with {', first);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json);
  } catch {
    throw damaged(file, 'header', 'valid UTF-8', 'other bytes');
  }
}

function tile(
  file: string,
  entries: ReadonlyMap<string, Entry>,
  dataStart: number,
  fileBytes: number,
): Map<string, TensorInfo> {
  const ordered = [...entries].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  const expectedBytes = dataStart + ordered.reduce((last, [, { end }]) => Math.max(last, end), 0);
  if (expectedBytes !== fileBytes) {
    throw damaged(
      file,
      'file',
      `${String(expectedBytes)} bytes by its header`,
      `${String(fileBytes)} bytes`,
      INCOMPLETE,
    );
  }
  const tensors = new Map<string, TensorInfo>();
  let reached = 0;
  for (const [name, { dtype, shape, elements, begin, end }] of ordered) {
    if (begin !== reached) {
      const fault = begin > reached ? 'a hole' : 'an overlap';
      throw damaged(
        file,
        `data of ${name}`,
        `from byte ${String(reached)}, where the data before ` + 'it ends,',
        `${fault}: from byte ${String(begin)}`,
      );
    }
    reached = end;
    tensors.set(name, { dtype, shape, elements, offset: dataStart + begin, bytes: end - begin });
  }
  return tensors;
}

class HeaderParser {
  private readonly file: string;
  private readonly text: string;
  private at = 0;

  constructor(file: string, text: string) {
    this.file = file;
    this.text = text;
  }

  parse(): { metadata: Map<string, string>; tensors: Map<string, Entry> } {
    let metadata: Map<string, string> | undefined;
    const tensors = new Map<string, Entry>();
    this.object((name) => {
      const repeated = name === '__metadata__' ? metadata !== undefined : tensors.has(name);
      if (repeated) throw this.wrong('every name once', `${quoted(name)} twice`);
      if (name === '__metadata__') metadata = this.metadata();
      else tensors.set(name, this.entry(name));
    });
    this.space();
    if (this.at !== this.text.length) throw this.unexpected('the end of the header');
    return { metadata: metadata ?? new Map<string, string>(), tensors };
  }

  private metadata(): Map<string, string> {
    const metadata = new Map<string, string>();
    this.object((key) => {
      if (metadata.has(key)) throw this.wrong('every metadata key once', `${quoted(key)} twice`);
      metadata.set(key, this.string());
    });
    return metadata;
  }

  private entry(name: string): Entry {
    let dtype: string | undefined;
    let shape: number[] | undefined;
    let offsets: number[] | undefined;
    this.object((key) => {
      if (key === 'dtype' && dtype === undefined) dtype = this.string();
      else if (key === 'shape' && shape === undefined) shape = this.integers();
      else if (key === 'data_offsets' && offsets === undefined) offsets = this.integers();
      else throw this.wrong(`${name} with dtype, shape and data_offsets once each`, quoted(key));
    });
    if (dtype === undefined || shape === undefined || offsets === undefined) {
      throw this.wrong(`${name} with dtype, shape and data_offsets`, 'fewer keys');
    }
    return this.checked(name, dtype, shape, offsets);
  }

  private checked(name: string, dtype: string, shape: number[], offsets: number[]): Entry {
    if (!isDtype(dtype)) {
      const known = Object.keys(DTYPE_BITS).join(', ');
      throw damaged(this.file, `dtype of ${name}`, `one of ${known}`, quoted(dtype));
    }
    const elements = product(shape);
    const bytes = elements === undefined ? undefined : dtypeBytes(dtype, elements);
    if (elements === undefined || bytes === undefined) {
      const expected = 'extents whose product is a safe number of whole bytes';
      throw damaged(this.file, `shape of ${name}`, expected, `[${shape.join(', ')}] of ${dtype}`);
    }
    const [begin, end] = offsets;
    if (offsets.length !== 2 || end < begin) {
      throw damaged(
        this.file,
        `data_offsets of ${name}`,
        '[begin, end] with begin <= end',
        `[${offsets.join(', ')}]`,
      );
    }
    if (end - begin !== bytes) {
      throw damaged(
        this.file,
        `data of ${name}`,
        `${String(bytes)} bytes for ${dtype} ` + `[${shape.join(', ')}]`,
        `${String(end - begin)} bytes`,
      );
    }
    return { dtype, shape, elements, begin, end };
  }

  /** Calls `value` behind every key of an object, to read the value. */
  private object(value: (key: string) => void): void {
    this.expect('{');
    if (this.accept('}')) return;
    do {
      const key = this.string();
      this.expect(':');
      value(key);
    } while (this.accept(','));
    this.expect('}');
  }

  private integers(): number[] {
    this.expect('[');
    const values: number[] = [];
    if (this.accept(']')) return values;
    do values.push(this.integer());
    while (this.accept(','));
    this.expect(']');
    return values;
  }

  private integer(): number {
    this.space();
    NUMBER.lastIndex = this.at;
    const literal = NUMBER.exec(this.text)?.[0];
    if (literal === undefined) throw this.unexpected('a number');
    const value = Number(literal);
    if (!PLAIN_INTEGER.test(literal) || !Number.isSafeInteger(value)) {
      throw this.wrong('integers from 0 to 2^53 - 1', literal.slice(0, 40));
    }
    this.at += literal.length;
    return value;
  }

  private string(): string {
    this.space();
    if (this.text[this.at] !== '"') throw this.unexpected('a string');
    let end = this.at + 1;
    while (end < this.text.length && this.text[end] !== '"') end += this.text[end] === '\\' ? 2 : 1;
    const literal = this.text.slice(this.at, end + 1);
    try {
      const value: unknown = JSON.parse(literal);
      if (typeof value !== 'string') throw this.unexpected('a string');
      this.at = end + 1;
      return value;
    } catch (error) {
      if (error instanceof SiglipError) throw error;
      throw this.unexpected('a string');
    }
  }

  private expect(symbol: string): void {
    if (!this.accept(symbol)) throw this.unexpected(symbol);
  }

  private accept(symbol: string): boolean {
    this.space();
    if (this.text[this.at] !== symbol) return false;
    this.at++;
    return true;
  }

  private space(): void {
    while (SPACE.has(this.text[this.at])) this.at++;
  }

  private wrong(expected: string, actual: string): SiglipError {
    return damaged(this.file, 'header', `JSON holding ${expected}`, actual);
  }

  private unexpected(expected: string): SiglipError {
    const found =
      this.at < this.text.length
        ? JSON.stringify(this.text.slice(this.at, this.at + 24))
        : 'its end';
    return damaged(
      this.file,
      'header',
      `JSON with ${expected} at character ${String(this.at)}`,
      found,
    );
  }
}

const SPACE: ReadonlySet<string> = new Set([' ', '\t', '\n', '\r']);
const NUMBER = /-?[0-9][0-9.eE+-]*/uy;
const PLAIN_INTEGER = /^(?:0|[1-9][0-9]*)$/u;

function quoted(text: string): string {
  return JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text);
}

function isDtype(name: string): name is SafetensorsDtype {
  return Object.hasOwn(DTYPE_BITS, name);
}

function product(shape: readonly number[]): number | undefined {
  // A zero extent makes the whole product zero, however large the others are.
  if (shape.includes(0)) return 0;
  let elements = 1;
  for (const extent of shape) {
    elements *= extent;
    if (!Number.isSafeInteger(elements)) return undefined;
  }
  return elements;
}

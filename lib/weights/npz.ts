// NumPy archives, as `numpy.savez` writes them: a zip of stored (uncompressed) `.npy` files, with
// zip64 fields when they are large. Each .npy is a magic, a version, the length of a header, the
// header (a Python dictionary of three keys) and the array. Nothing else is read, and everything is
// checked against the size of the file before it is used.
import { setImmediate } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import type { DeviceArray } from '../array';
import { expectNotAborted, SiglipError } from '../errors';
import type { NativeMappedFile } from '../native/addon';
import { loadAddon } from '../native/load';
import type { HostArray } from '../native/spec';
import type { SafetensorsDtype, TensorInfo } from './safetensors_header';
import { dtypeBytes } from './safetensors_header';
import type { LoadOptions, Weights } from './weights';
import { loadTensor, readTensor, tensorOf } from './weights';

const END = { signature: 0x06054b50, bytes: 22, comment: 0xffff } as const;
const LOCATOR_64 = { signature: 0x07064b50, bytes: 20 } as const;
const END_64 = { signature: 0x06064b50, bytes: 56 } as const;
const ENTRY = { signature: 0x02014b50, bytes: 46 } as const;
const LOCAL = { signature: 0x04034b50, bytes: 30 } as const;
const ELSEWHERE_64 = 0xffffffff;
const MAX_DIRECTORY_BYTES = 64 * 1024 * 1024;
const MAX_NPY_HEADER_BYTES = 64 * 1024;
const CHUNK_BYTES = 1 << 24;

// Descriptors of numpy. bfloat16 is no type of numpy: two opaque bytes stand for it.
const DTYPES: Readonly<Record<string, SafetensorsDtype>> = {
  '<f8': 'F64',
  '<f4': 'F32',
  '<f2': 'F16',
  '|V2': 'BF16',
  '<V2': 'BF16',
  '<i8': 'I64',
  '<i4': 'I32',
  '<i2': 'I16',
  '|i1': 'I8',
  '|u1': 'U8',
  '|b1': 'BOOL',
};

interface Member {
  readonly name: string;
  readonly header: number;
  readonly bytes: number;
  readonly crc: number;
}

/** An open archive; arrays are found by their name without `.npy`. */
export class NpzFile implements Weights {
  readonly source: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  private readonly file: NativeMappedFile;
  private readonly unverified = new Map<string, { offset: number; bytes: number; crc: number }>();

  /** See {@link openNpz}. */
  constructor(path: string) {
    this.source = path;
    this.file = new (loadAddon().MappedFile)(path);
    try {
      const tensors = new Map<string, TensorInfo>();
      for (const member of this.members()) {
        const name = member.name.replace(/\.npy$/u, '');
        if (tensors.has(name)) throw this.damaged('every array once', `${name} twice`);
        tensors.set(name, this.array(name, member));
      }
      this.tensors = tensors;
    } catch (error) {
      this.file.dispose();
      throw error;
    }
  }

  async load(name: string, options: LoadOptions = {}): Promise<DeviceArray> {
    const info = tensorOf(this, name);
    await this.verify(name, options.signal);
    return loadTensor(this.source, this.file, name, info, options);
  }

  async read(name: string, options?: LoadOptions): Promise<HostArray> {
    return readTensor(this, name, options);
  }

  dispose(): void {
    this.file.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  // Once for each array, when it is first read.
  private async verify(name: string, signal: AbortSignal | undefined): Promise<void> {
    const member = this.unverified.get(name);
    if (member === undefined) return;
    let sum = 0;
    for (let done = 0; done < member.bytes; done += CHUNK_BYTES) {
      expectNotAborted(this.source, signal);
      const piece = this.slice(member.offset + done, Math.min(CHUNK_BYTES, member.bytes - done));
      sum = crc32(piece, sum);
      await setImmediate();
    }
    if (sum !== member.crc) {
      throw this.damaged(`${name} with checksum ${member.crc.toString(16)}`, sum.toString(16));
    }
    this.unverified.delete(name);
  }

  private members(): Member[] {
    const { start, bytes, count } = this.directory();
    const directory = this.view(start, bytes);
    const members: Member[] = [];
    let at = 0;
    for (let i = 0; i < count; i++) {
      if (at + ENTRY.bytes > bytes || directory.getUint32(at, true) !== ENTRY.signature) {
        throw this.damaged(`a directory of ${String(count)} entries`, `${String(i)} of them`);
      }
      const nameBytes = directory.getUint16(at + 28, true);
      const extraBytes = directory.getUint16(at + 30, true);
      const end = at + ENTRY.bytes + nameBytes + extraBytes + directory.getUint16(at + 32, true);
      if (end > bytes)
        throw this.damaged('entries inside the directory', 'one that reaches beyond');
      members.push(this.member(directory, at, nameBytes, extraBytes));
      at = end;
    }
    return members;
  }

  private directory(): { start: number; bytes: number; count: number } {
    const size = this.file.bytes;
    const tailBytes = Math.min(size, END.bytes + END.comment);
    const tail = this.view(size - tailBytes, tailBytes);
    let end = tailBytes - END.bytes;
    while (end >= 0 && tail.getUint32(end, true) !== END.signature) end--;
    if (end < 0) throw this.damaged('a zip archive', 'a file without the end of one');
    const absolute = size - tailBytes + end;
    const plain = {
      start: tail.getUint32(end + 16, true),
      bytes: tail.getUint32(end + 12, true),
      count: tail.getUint16(end + 10, true),
    };
    const found = this.directory64(absolute) ?? plain;
    if (found.bytes > MAX_DIRECTORY_BYTES || found.start + found.bytes > absolute) {
      throw this.damaged(
        'a directory before its end',
        `${String(found.bytes)} bytes at ${String(found.start)}`,
      );
    }
    return found;
  }

  private directory64(end: number): { start: number; bytes: number; count: number } | undefined {
    if (end < LOCATOR_64.bytes) return undefined;
    const locator = this.view(end - LOCATOR_64.bytes, LOCATOR_64.bytes);
    if (locator.getUint32(0, true) !== LOCATOR_64.signature) return undefined;
    const at = this.safe(locator.getBigUint64(8, true));
    if (at + END_64.bytes > end)
      throw this.damaged('a zip64 record before its locator', String(at));
    const record = this.view(at, END_64.bytes);
    if (record.getUint32(0, true) !== END_64.signature) {
      throw this.damaged('a zip64 record where its locator says', 'something else');
    }
    return {
      start: this.safe(record.getBigUint64(48, true)),
      bytes: this.safe(record.getBigUint64(40, true)),
      count: this.safe(record.getBigUint64(32, true)),
    };
  }

  private member(directory: DataView, at: number, nameBytes: number, extraBytes: number): Member {
    const nameAt = directory.byteOffset + at + ENTRY.bytes;
    const name = new TextDecoder().decode(new Uint8Array(directory.buffer, nameAt, nameBytes));
    const extra = new DataView(directory.buffer, nameAt + nameBytes, extraBytes);
    const method = directory.getUint16(at + 10, true);
    if (method !== 0 || (directory.getUint16(at + 8, true) & 1) !== 0) {
      throw new SiglipError(
        'ERR_WEIGHTS',
        `${this.source}: ${name} must be stored uncompressed and unencrypted, got method ${String(method)}\n` +
          'to do: save the archive with numpy.savez, not numpy.savez_compressed.',
      );
    }
    const [bytes, stored, header] = this.sizes(directory, at, extra);
    if (bytes !== stored)
      throw this.damaged(`${name} of one size`, `${String(bytes)} and ${String(stored)}`);
    return { name, bytes, header, crc: directory.getUint32(at + 16, true) };
  }

  /** Size, stored size and offset; each moves into the extra field when it is too large. */
  private sizes(directory: DataView, at: number, extra: DataView): [number, number, number] {
    const plain = [24, 20, 42].map((offset) => directory.getUint32(at + offset, true));
    let field = 0;
    while (field + 4 <= extra.byteLength && extra.getUint16(field, true) !== 1) {
      field += 4 + extra.getUint16(field + 2, true);
    }
    let next = field + 4;
    const [bytes, stored, header] = plain.map((value) => {
      if (value !== ELSEWHERE_64) return value;
      if (next + 8 > extra.byteLength) throw this.damaged('zip64 sizes', 'an entry without them');
      next += 8;
      return this.safe(extra.getBigUint64(next - 8, true));
    });
    return [bytes, stored, header];
  }

  private array(name: string, member: Member): TensorInfo {
    const local = this.view(member.header, LOCAL.bytes);
    if (local.getUint32(0, true) !== LOCAL.signature) {
      throw this.damaged(`${name} where the directory says`, 'something else');
    }
    const offset =
      member.header + LOCAL.bytes + local.getUint16(26, true) + local.getUint16(28, true);
    if (offset + member.bytes > this.file.bytes) {
      throw this.damaged(`${name} inside the file`, 'one that reaches beyond');
    }
    const { text, bytes } = this.npyHeader(name, offset, member.bytes);
    const { dtype, shape } = this.description(name, text);
    const elements = shape.reduce((product, extent) => product * extent, 1);
    const dataBytes = Number.isSafeInteger(elements) ? dtypeBytes(dtype, elements) : undefined;
    if (dataBytes !== member.bytes - bytes) {
      throw this.damaged(
        `${String(dataBytes)} bytes for ${name}, ${dtype} [${shape.join(', ')}]`,
        String(member.bytes - bytes),
      );
    }
    this.unverified.set(name, { offset, bytes: member.bytes, crc: member.crc });
    return { dtype, shape, elements, offset: offset + bytes, bytes: dataBytes };
  }

  private npyHeader(name: string, offset: number, room: number): { text: string; bytes: number } {
    const start = this.view(offset, Math.min(12, room));
    const isNpy = room >= 12 && start.getUint32(0) === 0x934e554d && start.getUint16(4) === 0x5059;
    if (!isNpy) throw this.damaged(`${name} in npy format`, 'other bytes');
    const long = start.getUint8(6) > 1;
    const length = long ? start.getUint32(8, true) : start.getUint16(8, true);
    const begin = long ? 12 : 10;
    if (length > MAX_NPY_HEADER_BYTES || begin + length > room) {
      throw this.damaged(`a header of ${name} that fits`, `${String(length)} bytes`);
    }
    const text = new TextDecoder().decode(this.slice(offset + begin, length));
    return { text, bytes: begin + length };
  }

  private description(name: string, header: string): { dtype: SafetensorsDtype; shape: number[] } {
    const descriptor = /'descr': *'([^']*)'/u.exec(header)?.[1] ?? '';
    const fortran = /'fortran_order': *(True|False)/u.exec(header)?.[1];
    const extents = /'shape': *\(([0-9, ]*)\)/u.exec(header)?.[1];
    if (!Object.hasOwn(DTYPES, descriptor) || fortran !== 'False' || extents === undefined) {
      throw new SiglipError(
        'ERR_WEIGHTS',
        `${this.source}: ${name} must be a row-major array of ${Object.keys(DTYPES).join(' ')}, got ` +
          header.trim().slice(0, 200),
      );
    }
    const shape = extents
      .split(',')
      .filter((extent) => extent.trim() !== '')
      .map(Number);
    return { dtype: DTYPES[descriptor], shape };
  }

  private view(offset: number, bytes: number): DataView {
    const piece = this.slice(offset, bytes);
    return new DataView(piece.buffer, piece.byteOffset, piece.byteLength);
  }

  private slice(offset: number, bytes: number): Uint8Array {
    if (offset < 0 || offset + bytes > this.file.bytes) {
      throw this.damaged(
        `${String(bytes)} bytes at ${String(offset)}`,
        `a file of ${String(this.file.bytes)}`,
      );
    }
    return this.file.slice(offset, bytes);
  }

  private safe(value: bigint): number {
    if (value <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(value);
    throw this.damaged('sizes below 2^53', String(value));
  }

  private damaged(expected: string, actual: string): SiglipError {
    return new SiglipError(
      'ERR_WEIGHTS',
      `${this.source}: archive must have ${expected}, got ${actual}\n` +
        'to do: the file is cut short or damaged: fetch it again and compare its size.',
    );
  }
}

/**
 * Opens a NumPy archive whose arrays are stored uncompressed and in row-major order. Checksums are
 * compared when an array is first read.
 *
 * @throws SiglipError ERR_WEIGHTS naming what is wrong, ERR_FILE when it cannot be read
 */
export function openNpz(path: string): NpzFile {
  return new NpzFile(path);
}

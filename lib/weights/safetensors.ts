// One safetensors file, read and written.
import type { FileHandle } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import type { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { NativeMappedFile } from '../native/addon';
import { loadAddon } from '../native/load';
import type { HostArray } from '../native/spec';
import { elementsOf } from '../native/spec';
import { encode } from './number_formats';
import type { StoredDtype } from './number_formats';
import type { TensorInfo } from './safetensors_header';
import { dtypeBytes, headerLength, LENGTH_BYTES, parseHeader } from './safetensors_header';
import type { StagedFiles } from './staged_files';
import { publishTogether } from './staged_files';
import type { LoadOptions, Weights } from './weights';
import { expectNotAborted, loadTensor, readTensor, tensorOf } from './weights';

/** An open safetensors file whose header was found to be sound. */
export class SafetensorsFile implements Weights {
  readonly source: string;
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  private readonly file: NativeMappedFile;

  /** See {@link openSafetensors}. */
  constructor(path: string) {
    this.source = path;
    this.file = new (loadAddon().MappedFile)(path);
    try {
      const { bytes } = this.file;
      const start = this.file.slice(0, Math.min(LENGTH_BYTES, bytes));
      const length = headerLength(path, start, bytes);
      const header = parseHeader(path, this.file.slice(LENGTH_BYTES, length), bytes);
      this.metadata = header.metadata;
      this.tensors = header.tensors;
    } catch (error) {
      this.file.dispose();
      throw error;
    }
  }

  async load(name: string, options?: LoadOptions): Promise<DeviceArray> {
    return loadTensor(this.source, this.file, name, tensorOf(this, name), options);
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
}

/**
 * Opens a safetensors file and checks its whole header before anything is read: the length against
 * the size of the file and the format's limit of 100 MB, the JSON, every name once, known dtypes,
 * extents whose product fits, ranges that tile the file without hole or overlap.
 *
 * @throws SiglipError ERR_WEIGHTS naming what is wrong and what to do; ERR_FILE when it cannot be read
 * @example
 * using file = openSafetensors('model.safetensors');
 * const scale = await file.read('logit_scale');   // Float32Array
 */
export function openSafetensors(path: string): SafetensorsFile {
  return new SafetensorsFile(path);
}

/** Values of a tensor to be written; a function is called when its turn comes. */
export type TensorSource = HostArray | DeviceArray | (() => Promise<HostArray> | HostArray);

/** A tensor to be written. */
export interface StoredTensor {
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
  readonly data: TensorSource;
}

export interface WriteOptions {
  readonly signal?: AbortSignal | undefined;
}

/**
 * Writes a safetensors file: names in the order of their code points, data 8-byte aligned at its
 * start. One tensor at a time is in memory, and the file appears when it is complete.
 *
 * @param metadata - strings for `__metadata__`; readers of PyTorch ask for `{ format: 'pt' }`
 * @throws SiglipError ERR_WEIGHTS when a tensor's data do not fit its dtype and shape, ERR_FILE when
 * the disk refuses, ERR_ABORTED
 */
export async function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  metadata: Readonly<Record<string, string>> = {},
  options: WriteOptions = {},
): Promise<void> {
  await publishTogether(dirname(path), async (files) => {
    await stageSafetensors(files, basename(path), tensors, metadata, options);
    return [];
  });
}

/** {@link writeSafetensors} among other files that are to appear together. */
export async function stageSafetensors(
  files: StagedFiles,
  name: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  metadata: Readonly<Record<string, string>>,
  { signal }: WriteOptions = {},
): Promise<void> {
  const sorted = [...tensors].sort(([a], [b]) => compareCodePoints(a, b));
  await files.write(name, async (file) => {
    await file.write(formatHeader(name, sorted, metadata));
    for (const [tensor, stored] of sorted) {
      expectNotAborted(name, signal);
      await writeTensor(file, tensor, stored);
    }
  });
}

/** What stands before the data of a file whose tensors are these, in this order. */
export function formatHeader(
  file: string,
  sorted: readonly (readonly [string, Pick<StoredTensor, 'dtype' | 'shape'>])[],
  metadata: Readonly<Record<string, string>>,
): Buffer {
  const entries: [string, unknown][] = [];
  if (Object.keys(metadata).length > 0) entries.push(['__metadata__', metadata]);
  let begin = 0;
  for (const [name, { dtype, shape }] of sorted) {
    const end = begin + storedBytes(file, name, dtype, shape);
    entries.push([name, { dtype, shape, data_offsets: [begin, end] }]);
    begin = end;
  }
  const json = Buffer.from(
    `{${entries.map(([k, v]) => `${JSON.stringify(k)}:${JSON.stringify(v)}`).join(',')}}`,
  );
  const padded = Math.ceil(json.length / LENGTH_BYTES) * LENGTH_BYTES;
  const header = Buffer.alloc(LENGTH_BYTES + padded, ' ');
  header.writeBigUInt64LE(BigInt(padded), 0);
  json.copy(header, LENGTH_BYTES);
  return header;
}

/** Bytes a tensor takes in the file. @throws SiglipError ERR_WEIGHTS */
export function storedBytes(
  file: string,
  name: string,
  dtype: StoredDtype,
  shape: readonly number[],
): number {
  const sound = shape.every((extent) => Number.isSafeInteger(extent) && extent >= 0);
  const bytes = sound ? dtypeBytes(dtype, elementsOf(shape)) : undefined;
  if (bytes !== undefined && name !== '__metadata__') return bytes;
  throw new SiglipError(
    'ERR_WEIGHTS',
    `${file}: ${name} must have non-negative integer extents and not be named __metadata__, got [${shape.join(', ')}]`,
  );
}

// Bytes handed to the system at once.
const CHUNK_BYTES = 1 << 24;

async function writeTensor(file: FileHandle, name: string, stored: StoredTensor): Promise<void> {
  const data = await valuesOf(stored.data);
  const elements = elementsOf(stored.shape);
  if (data.length !== elements) {
    throw new SiglipError(
      'ERR_WEIGHTS',
      `writeSafetensors: ${name} must have ${String(elements)} elements for [${stored.shape.join(', ')}], ` +
        `got ${String(data.length)}`,
    );
  }
  const step = CHUNK_BYTES / 4;
  for (let from = 0; from < elements; from += step) {
    const bytes = encode(name, data.subarray(from, Math.min(from + step, elements)), stored.dtype);
    for (let done = 0; done < bytes.length;) {
      done += (await file.write(bytes, done)).bytesWritten;
    }
  }
}

/** The values of a source, in memory of the host. */
export async function valuesOf(source: TensorSource): Promise<HostArray> {
  if (typeof source === 'function') return source();
  return 'dtype' in source ? source.read() : source;
}

/** Order of code points, which that of UTF-16 units is not beyond the first plane. */
function compareCodePoints(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

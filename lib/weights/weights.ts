// What every container of weights offers, one file or many: names, shapes, and pieces of tensors
// brought to the device.
import { setImmediate } from 'node:timers/promises';
import { DeviceArray } from '../array';
import { expectNotAborted, SiglipError } from '../errors';
import type { FileFormat, NativeMappedFile } from '../native/addon';
import type { DType, HostArray } from '../native/spec';
import { ELEMENT_BYTES, elementsOf } from '../native/spec';
import type { SafetensorsDtype, TensorInfo } from './safetensors_header';

/** Which part of a tensor is wanted, and how. */
export interface LoadOptions {
  /** Shape of the result; default that of the tensor, and [1] for a scalar. */
  readonly shape?: readonly number[];
  /** First element taken, in row-major order; default 0. */
  readonly first?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Named tensors on disk. Reading takes pieces, so a large file costs no more than what is taken. */
export interface Weights {
  /** The file or folder, for messages. */
  readonly source: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /**
   * Brings a tensor to the device: floats of any width become float32, signed integers int32, bytes
   * and booleans uint8. Yields to the event loop every few megabytes.
   *
   * @throws SiglipError ERR_WEIGHTS when there is no such tensor or its dtype cannot be read
   */
  load(name: string, options?: LoadOptions): Promise<DeviceArray>;
  /** As {@link load}, into memory of the host. */
  read(name: string, options?: LoadOptions): Promise<HostArray>;
  /** Closes the files. Idempotent. */
  dispose(): void;
}

const FORMATS: Partial<Record<SafetensorsDtype, { format: FileFormat; dtype: DType }>> = {
  F64: { format: 'float64', dtype: 'float32' },
  F32: { format: 'float32', dtype: 'float32' },
  F16: { format: 'float16', dtype: 'float32' },
  BF16: { format: 'bfloat16', dtype: 'float32' },
  I64: { format: 'int64', dtype: 'int32' },
  I32: { format: 'int32', dtype: 'int32' },
  I16: { format: 'int16', dtype: 'int32' },
  I8: { format: 'int8', dtype: 'int32' },
  U8: { format: 'uint8', dtype: 'uint8' },
  BOOL: { format: 'bool', dtype: 'uint8' },
};

const HOST_ARRAYS = {
  float32: Float32Array,
  int32: Int32Array,
  uint8: Uint8Array,
  bfloat16: Uint16Array,
} as const;

// Elements converted before the event loop gets its turn.
const CHUNK_ELEMENTS = 1 << 22;

/** The parts one after the other as float32; a single one of that type as it is. */
export function concatenate(parts: readonly HostArray[]): Float32Array {
  const [first] = parts;
  if (parts.length === 1 && first instanceof Float32Array) return first;
  const all = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The tensor of a name. @throws SiglipError ERR_WEIGHTS */
export function tensorOf(weights: Pick<Weights, 'source' | 'tensors'>, name: string): TensorInfo {
  const info = weights.tensors.get(name);
  if (info !== undefined) return info;
  throw new SiglipError(
    'ERR_WEIGHTS',
    `${weights.source}: tensors must include ${name}, got ${String(weights.tensors.size)} others`,
  );
}

/** {@link Weights.load} for a tensor in one open file. */
export async function loadTensor(
  source: string,
  file: NativeMappedFile,
  name: string,
  info: TensorInfo,
  options: LoadOptions = {},
): Promise<DeviceArray> {
  const { format, dtype } = formatOf(source, name, info.dtype);
  const { first = 0, shape = info.shape.length === 0 ? [1] : info.shape, signal } = options;
  const elements = elementsOf(shape);
  if (!Number.isSafeInteger(first) || first < 0 || first + elements > info.elements) {
    throw new SiglipError(
      'ERR_SHAPE',
      `${source}: part of ${name} must lie within its ${String(info.elements)} elements, got ` +
        `${String(elements)} from ${String(first)}`,
    );
  }
  const fileBytes = info.bytes / info.elements;
  const array = DeviceArray.zeros({ dtype, shape });
  try {
    for (let done = 0; done < elements; done += CHUNK_ELEMENTS) {
      expectNotAborted(source, signal);
      const count = Math.min(CHUNK_ELEMENTS, elements - done);
      const from = info.offset + (first + done) * fileBytes;
      file.load(from, format, array.buffer, done * ELEMENT_BYTES[dtype], count);
      if (done + count < elements) await setImmediate();
    }
    return array;
  } catch (error) {
    array.dispose();
    throw error;
  }
}

/** {@link Weights.read} by way of {@link Weights.load}: one conversion for both. */
export async function readTensor(
  weights: Weights,
  name: string,
  options: LoadOptions = {},
): Promise<HostArray> {
  const info = tensorOf(weights, name);
  if (elementsOf(options.shape ?? info.shape) === 0) {
    return new HOST_ARRAYS[formatOf(weights.source, name, info.dtype).dtype](0);
  }
  const array = await weights.load(name, options);
  try {
    return await array.read();
  } finally {
    array.dispose();
  }
}

function formatOf(
  source: string,
  name: string,
  dtype: SafetensorsDtype,
): { format: FileFormat; dtype: DType } {
  const format = FORMATS[dtype];
  if (format !== undefined) return format;
  throw new SiglipError(
    'ERR_WEIGHTS',
    `${source}: dtype of ${name} must be one of ${Object.keys(FORMATS).join(', ')}, got ${dtype}`,
  );
}

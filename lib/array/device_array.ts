import { SiglipError } from '../errors';
import type { NativeBuffer } from '../native/addon';
import type { Device } from '../native/device';
import { loadAddon } from '../native/load';
import type { DType, HostArray, Spec } from '../native/spec';
import { bytesOf, elementsOf, MAX_RANK } from '../native/spec';
import { bytesIn, dtypeOf } from './host_array';
import { HostParts } from './host_parts';

/** What a program takes as an input: memory of the device, or arrays of the host to copy in. */
export type RunInput = DeviceArray | HostArray | HostParts;

/** A typed array of the host by the dtype it holds. */
export interface HostArrayOf {
  float32: Float32Array;
  int32: Int32Array;
  uint8: Uint8Array;
  /** The upper halves of float32 numbers. */
  bfloat16: Uint16Array;
}

/**
 * Memory of a device that outlives a program: weights, optimizer state, batches, results.
 *
 * Writes, reads and runs take effect in the order in which they were called, so no call needs to
 * wait for another but to see a result. Dispose an array when it is no longer needed; disposing one
 * that queued work still uses is safe. An array that is only forgotten is freed when the garbage
 * collector gets to it.
 *
 * @example
 * ```ts
 * using weights = DeviceArray.from(new Float32Array([1, 2, 3, 4]), [2, 2]);
 * await weights.read(); // Float32Array [1, 2, 3, 4]
 * ```
 */
export class DeviceArray<D extends DType = DType> implements Spec {
  readonly dtype: D;
  readonly shape: readonly number[];
  /** Bytes of its elements. */
  readonly bytes: number;
  /** The native memory; for programs, not for users. */
  readonly buffer: NativeBuffer;

  private constructor(
    dtype: D,
    shape: readonly number[],
    device: Device,
    contents: 'zeros' | 'unfilled',
  ) {
    checkShape(shape);
    this.dtype = dtype;
    this.shape = [...shape];
    this.bytes = bytesOf(this);
    this.buffer = new (loadAddon().Buffer)(this.bytes, device, contents === 'unfilled');
  }

  /**
   * A copy of a typed array, or of several one behind the other.
   *
   * @param data - its class gives the dtype.
   * @param shape - extents whose product is `data.length`; default `[data.length]`.
   * @param device - where; default `'cpu'`.
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OUT_OF_MEMORY, ERR_DEVICE
   */
  static from(
    data: Float32Array,
    shape?: readonly number[],
    device?: Device,
  ): DeviceArray<'float32'>;
  static from(data: Int32Array, shape?: readonly number[], device?: Device): DeviceArray<'int32'>;
  static from(data: Uint8Array, shape?: readonly number[], device?: Device): DeviceArray<'uint8'>;
  static from(
    data: Uint16Array,
    shape?: readonly number[],
    device?: Device,
  ): DeviceArray<'bfloat16'>;
  static from(data: HostArray | HostParts, shape?: readonly number[], device?: Device): DeviceArray;
  static from(
    data: HostArray | HostParts,
    shape: readonly number[] = [data.length],
    device: Device = 'cpu',
  ): DeviceArray {
    const dtype = hostDType('DeviceArray.from', data);
    checkShape(shape);
    checkLength('DeviceArray.from', data, shape);
    const array = new DeviceArray(dtype, shape, device, 'unfilled');
    array.buffer.write(0, hostBytes(data));
    return array;
  }

  /**
   * An array of zeros.
   *
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OUT_OF_MEMORY, ERR_DEVICE
   */
  static zeros(spec: Spec, device: Device = 'cpu'): DeviceArray {
    checkDType('DeviceArray.zeros', spec);
    return new DeviceArray(spec.dtype, spec.shape, device, 'zeros');
  }

  /**
   * An array whose contents nobody may rely on, for a program to fill.
   *
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OUT_OF_MEMORY, ERR_DEVICE
   */
  static empty(spec: Spec, device: Device = 'cpu'): DeviceArray {
    checkDType('DeviceArray.empty', spec);
    return new DeviceArray(spec.dtype, spec.shape, device, 'unfilled');
  }

  /** Where it is, by full name. */
  get device(): Exclude<Device, 'cuda'> {
    return this.buffer.device;
  }

  /** Whether {@link dispose} was called. */
  get disposed(): boolean {
    return this.buffer.disposed;
  }

  /**
   * The contents, as they are when everything queued so far is done.
   *
   * @throws ERR_DISPOSED
   */
  async read(): Promise<HostArrayOf[D]> {
    this.checkAlive('read');
    const array: HostArray = new HOST_ARRAYS[this.dtype](elementsOf(this.shape));
    await this.buffer.read(0, bytesIn(array));
    // The class was chosen by this.dtype one line above, which the type system cannot follow.
    return array as HostArrayOf[D];
  }

  /**
   * Replaces the contents; `data` may be reused as soon as this returns.
   *
   * @param data - as many elements of the same dtype.
   * @throws ERR_DISPOSED, ERR_DTYPE, ERR_SHAPE
   */
  write(data: HostArrayOf[D]): void {
    this.checkAlive('write');
    const dtype = dtypeOf('DeviceArray.write', [data]);
    if (dtype !== this.dtype) {
      throw new SiglipError(
        'ERR_DTYPE',
        `DeviceArray.write: data must be ${this.dtype}, got ${dtype}`,
      );
    }
    checkLength('DeviceArray.write', data, this.shape);
    this.buffer.write(0, bytesIn(data));
  }

  /**
   * As write(), if `data` is of this array's dtype and size. Tells whether it is.
   *
   * @internal
   */
  overwrite(data: HostArray | HostParts): boolean {
    const dtype = hostDType('DeviceArray.write', data);
    if (dtype !== this.dtype || data.length !== elementsOf(this.shape)) return false;
    this.buffer.write(0, hostBytes(data));
    return true;
  }

  /**
   * A copy on a device, also on this array's own, by way of the host.
   *
   * @throws ERR_DISPOSED, ERR_DEVICE, ERR_OUT_OF_MEMORY
   */
  async to(device: Device): Promise<DeviceArray<D>> {
    const { shape } = this;
    // The class of what is read gives the dtype again, which the type system cannot follow.
    return DeviceArray.from(await this.read(), shape, device) as DeviceArray<D>;
  }

  /** Gives the memory back once queued work is done with it. May be repeated. */
  dispose(): void {
    this.buffer.dispose();
  }

  /** {@link dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  private checkAlive(method: string): void {
    if (this.disposed) {
      throw new SiglipError(
        'ERR_DISPOSED',
        `DeviceArray.${method}: the array must be alive, got a disposed one`,
      );
    }
  }
}

const HOST_ARRAYS = {
  float32: Float32Array,
  int32: Int32Array,
  uint8: Uint8Array,
  bfloat16: Uint16Array,
} as const;

function hostDType(who: string, data: HostArray | HostParts): DType {
  return data instanceof HostParts ? data.dtype : dtypeOf(who, [data]);
}

function hostBytes(data: HostArray | HostParts): Uint8Array | Uint8Array[] {
  return data instanceof HostParts ? data.parts.map(bytesIn) : bytesIn(data);
}

function checkDType(who: string, { dtype }: Spec): void {
  if (Object.hasOwn(HOST_ARRAYS, dtype)) return;
  throw new SiglipError(
    'ERR_DTYPE',
    `${who}: dtype must be float32, int32, uint8 or bfloat16, got ${dtype}`,
  );
}

function checkShape(shape: readonly number[]): void {
  const possible =
    shape.length >= 1 &&
    shape.length <= MAX_RANK &&
    shape.every((extent) => Number.isSafeInteger(extent) && extent > 0) &&
    Number.isSafeInteger(elementsOf(shape));
  if (!possible) {
    throw new SiglipError(
      'ERR_SHAPE',
      `DeviceArray: shape must have 1 to ${String(MAX_RANK)} positive integers, got [${shape.join(', ')}]`,
    );
  }
}

function checkLength(who: string, data: HostArray | HostParts, shape: readonly number[]): void {
  if (data.length !== elementsOf(shape)) {
    throw new SiglipError(
      'ERR_SHAPE',
      `${who}: data must have ${String(elementsOf(shape))} elements for [${shape.join(', ')}], got ${String(data.length)}`,
    );
  }
}

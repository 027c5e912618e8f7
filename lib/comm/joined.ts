// Arrays of a device that count as one, so that what is spread over many arrays, such as gradients,
// travels without being copied together.
import type { Device, DType } from '../array';
import { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import { ELEMENT_BYTES, elementsOf } from '../native/spec';

/** Elements [from, from + length) of an array, which are those from `at` on of the whole. */
export interface Stretch {
  readonly array: DeviceArray;
  readonly from: number;
  readonly length: number;
  readonly at: number;
}

/** Elements of arrays of one device and dtype, one behind the other. */
export class Joined {
  readonly arrays: readonly DeviceArray[];
  /** Elements in all. */
  readonly length: number;
  /** Undefined without arrays. */
  readonly dtype: DType | undefined;
  readonly device: Device | undefined;
  private readonly starts: readonly number[];

  /** @throws ERR_DTYPE, ERR_DEVICE when the arrays differ in it; ERR_DISPOSED */
  constructor(what: string, given: DeviceArray | readonly DeviceArray[]) {
    this.arrays = given instanceof DeviceArray ? [given] : given;
    this.dtype = this.arrays.at(0)?.dtype;
    this.device = this.arrays.at(0)?.device;
    const starts: number[] = [];
    let length = 0;
    for (const array of this.arrays) {
      if (array.disposed) {
        throw new SiglipError('ERR_DISPOSED', `comm: ${what} must be alive, got a disposed array`);
      }
      if (array.dtype !== this.dtype) {
        throw new SiglipError(
          'ERR_DTYPE',
          `comm: ${what} must be of one dtype, got ${String(this.dtype)} and ${array.dtype}`,
        );
      }
      if (array.device !== this.device) {
        throw new SiglipError(
          'ERR_DEVICE',
          `comm: ${what} must be on one device, got ${String(this.device)} and ${array.device}`,
        );
      }
      starts.push(length);
      length += elementsOf(array.shape);
    }
    this.starts = starts;
    this.length = length;
  }

  /** Bytes of an element; 1 without arrays. */
  get elementBytes(): number {
    return this.dtype === undefined ? 1 : ELEMENT_BYTES[this.dtype];
  }

  /** What the range [begin, end) has of each array it meets, in their order. */
  stretches(begin = 0, end = this.length): Stretch[] {
    return this.arrays.flatMap((array, i) => {
      const from = Math.max(begin - this.starts[i], 0);
      const to = Math.min(end - this.starts[i], elementsOf(array.shape));
      return from < to ? [{ array, from, length: to - from, at: this.starts[i] + from }] : [];
    });
  }
}

// Typed arrays of the host as devices take them.
import { SiglipError } from '../errors';
import type { DType, HostArray } from '../native/spec';

/**
 * The dtype that arrays hold. By the internal name and not by instanceof: an array of another realm (a
 * vm context, as test runners use) is as good.
 *
 * @throws ERR_DTYPE unless they are of one class that has a dtype
 */
export function dtypeOf(who: string, parts: readonly [HostArray, ...HostArray[]]): DType {
  const [first, ...others] = parts.map((part) => dtypeOfOne(who, part));
  const odd = others.find((dtype) => dtype !== first);
  if (odd === undefined) return first;
  throw new SiglipError('ERR_DTYPE', `${who}: parts must be of one dtype, got ${first} and ${odd}`);
}

function dtypeOfOne(who: string, data: HostArray): DType {
  switch (Object.prototype.toString.call(data)) {
    case '[object Float32Array]':
      return 'float32';
    case '[object Int32Array]':
      return 'int32';
    case '[object Uint8Array]':
      return 'uint8';
    case '[object Uint16Array]':
      return 'bfloat16';
    default:
      throw new SiglipError(
        'ERR_DTYPE',
        `${who}: data must be a Float32Array, Int32Array, Uint8Array or Uint16Array, got ${Object.prototype.toString.call(data).slice(8, -1)}`,
      );
  }
}

/** The bytes of an array, sharing its memory. */
export function bytesIn(data: HostArray): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

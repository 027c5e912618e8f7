// Numbers as they are stored: float32 rounded to nearest even in 16 bits.
import { SiglipError } from '../errors';
import type { HostArray } from '../native/spec';

/** Dtypes that files are written in. */
export type StoredDtype = 'F32' | 'F16' | 'BF16' | 'I32' | 'U8';

const CLASSES = {
  F32: '[object Float32Array]',
  F16: '[object Float32Array]',
  BF16: '[object Float32Array]',
  I32: '[object Int32Array]',
  U8: '[object Uint8Array]',
} as const satisfies Record<StoredDtype, string>;

/**
 * The bytes of `data` in a dtype; shares memory with `data` where nothing is converted.
 *
 * @throws SiglipError ERR_WEIGHTS when the array is of another kind, or a finite value is beyond the
 * range of float16
 */
export function encode(name: string, data: HostArray, dtype: StoredDtype): Uint8Array {
  const actual = Object.prototype.toString.call(data);
  if (actual !== CLASSES[dtype]) {
    throw new SiglipError(
      'ERR_WEIGHTS',
      `writeSafetensors: ${name} in ${dtype} must come from a ${CLASSES[dtype].slice(8, -1)}, got ${actual.slice(8, -1)}`,
    );
  }
  switch (dtype) {
    case 'F32':
    case 'I32':
    case 'U8':
      return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    case 'BF16':
      return halves(data, bfloat16Bits);
    case 'F16':
      return halves(data, (bits) => float16Bits(name, bits));
  }
}

function halves(data: HostArray, round: (bits: number) => number): Uint8Array {
  const bits = new Uint32Array(data.buffer, data.byteOffset, data.length);
  const rounded = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) rounded[i] = round(bits[i]);
  return new Uint8Array(rounded.buffer);
}

const INFINITY_BITS = 0x7f800000;

/** Upper half of a float32, rounded to nearest even. */
function bfloat16Bits(bits: number): number {
  // A NaN stays one whatever its payload.
  if ((bits & 0x7fffffff) > INFINITY_BITS) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

// Exponent of float16 is that of float32 less 112; below 2^-14 the values are multiples of 2^-24.
const SMALLEST_NORMAL = 0x38800000;
const OVERFLOW = 0x477ff000;

function float16Bits(name: string, bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > INFINITY_BITS) return sign | 0x7e00;
  if (magnitude === INFINITY_BITS) return sign | 0x7c00;
  if (magnitude >= OVERFLOW) {
    throw new SiglipError(
      'ERR_WEIGHTS',
      `writeSafetensors: values of ${name} in F16 must be at most 65504, got one beyond`,
    );
  }
  if (magnitude >= SMALLEST_NORMAL) {
    const rebased = magnitude - 0x38000000;
    return sign | ((rebased + 0xfff + ((rebased >>> 13) & 1)) >>> 13);
  }
  const exponent = magnitude >>> 23;
  // Less than half of 2^-24.
  if (exponent < 102) return sign;
  const mantissa = (magnitude & 0x7fffff) | 0x800000;
  const shift = 126 - exponent;
  const kept = mantissa >>> shift;
  const rest = mantissa & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  const up = rest > half || (rest === half && (kept & 1) === 1);
  return sign | (kept + (up ? 1 : 0));
}

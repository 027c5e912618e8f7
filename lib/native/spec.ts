/**
 * What one element of an array is. Arithmetic is float32, or bfloat16 added up in float32; ids are
 * int32; pixels and masks uint8.
 */
export type DType = 'float32' | 'int32' | 'uint8' | 'bfloat16';

/** Dtype and extents of an array (row-major, contiguous), without its contents. */
export interface Spec {
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/** The typed array of the host that holds elements of a dtype; of a bfloat16, its 16 bits. */
export type HostArray = Float32Array | Int32Array | Uint8Array | Uint16Array;

/** Bytes of one element. */
export const ELEMENT_BYTES = {
  float32: 4,
  int32: 4,
  uint8: 1,
  bfloat16: 2,
} as const satisfies Record<DType, number>;

/** An array may have from one to this many axes. */
export const MAX_RANK = 6;

/** Number of elements in an array of this shape. */
export function elementsOf(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

/** Bytes of an array of this dtype and shape. */
export function bytesOf(spec: Spec): number {
  return elementsOf(spec.shape) * ELEMENT_BYTES[spec.dtype];
}

/** The number by which the native side knows a dtype. */
export function dtypeCode(dtype: DType): 0 | 1 | 2 | 3 {
  return DTYPE_CODES[dtype];
}

const DTYPE_CODES = {
  float32: 0,
  int32: 1,
  uint8: 2,
  bfloat16: 3,
} as const satisfies Record<DType, number>;

/** Spec of a float32 array. */
export function float32(...shape: number[]): Spec {
  return { dtype: 'float32', shape };
}

/** Spec of an int32 array. */
export function int32(...shape: number[]): Spec {
  return { dtype: 'int32', shape };
}

/** Spec of a uint8 array. */
export function uint8(...shape: number[]): Spec {
  return { dtype: 'uint8', shape };
}

/** Spec of a bfloat16 array. */
export function bfloat16(...shape: number[]): Spec {
  return { dtype: 'bfloat16', shape };
}

// What the reference computes on: a row-major array of float64 and its shape. Nothing here is fast;
// everything is meant to be read against the formula.

/** A row-major array of float64 with its extents. */
export interface NdArray {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

/** Number of elements of a shape. */
export function elements(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

/** An array of the given shape, from values in row-major order. */
export function ndArray(shape: readonly number[], values: ArrayLike<number>): NdArray {
  if (values.length !== elements(shape)) {
    throw new RangeError(
      `ndArray: values must have ${String(elements(shape))} elements for shape [${shape.join(', ')}], got ${String(values.length)}`,
    );
  }
  return { shape: [...shape], data: Float64Array.from(values) };
}

/** An array of zeros. */
export function zeros(shape: readonly number[]): NdArray {
  return { shape: [...shape], data: new Float64Array(elements(shape)) };
}

/** A one-element array, the shape of every scalar here. */
export function scalar(value: number): NdArray {
  return ndArray([1], [value]);
}

/** The single element of a one-element array. */
export function item(x: NdArray): number {
  if (x.data.length !== 1)
    throw new RangeError(`item: x must have 1 element, got ${String(x.data.length)}`);
  return x.data[0];
}

/** The same values under another shape. */
export function reshape(x: NdArray, shape: readonly number[]): NdArray {
  return ndArray(shape, x.data);
}

/** Length of the last axis. */
export function width(x: NdArray): number {
  return x.shape[x.shape.length - 1];
}

/** Number of rows when everything but the last axis is flattened. */
export function rows(x: NdArray): number {
  return elements(x.shape.slice(0, -1));
}

/** f of every element. */
export function map(x: NdArray, f: (value: number) => number): NdArray {
  return { shape: [...x.shape], data: x.data.map((value) => f(value)) };
}

/** f of every pair of elements of two arrays of one shape. */
export function zip(a: NdArray, b: NdArray, f: (a: number, b: number) => number): NdArray {
  if (a.data.length !== b.data.length) {
    throw new RangeError(
      `zip: b must have shape [${a.shape.join(', ')}], got [${b.shape.join(', ')}]`,
    );
  }
  return { shape: [...a.shape], data: a.data.map((value, i) => f(value, b.data[i])) };
}

/** Σ a ∘ b. */
export function inner(a: NdArray, b: NdArray): number {
  return zip(a, b, (x, y) => x * y).data.reduce((sum, value) => sum + value, 0);
}

/** Largest absolute value. */
export function maxAbs(x: NdArray): number {
  return x.data.reduce((best, value) => Math.max(best, Math.abs(value)), 0);
}

/** Every element rounded to the nearest float32. */
export function toFloat32(x: NdArray): NdArray {
  return map(x, Math.fround);
}

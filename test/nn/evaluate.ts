// Runs a traced function on host values and reads its results back.
import { Philox4x32 } from '../../lib/array/random';
import type { MapTree, Spec, Tensor } from '../../lib/graph';
import { compile, elements, flatten, mapTree } from '../../lib/graph';
import type { NdArray } from '../reference/nd_array';
import { ndArray } from '../reference/nd_array';

/** A host array with its shape: usable as the spec of a program's input and as its value. */
export interface Value extends Spec {
  readonly data: Float32Array | Int32Array | Uint8Array;
}

export function values(shape: readonly number[], data: ArrayLike<number>): Value {
  return { dtype: 'float32', shape, data: Float32Array.from(data) };
}

export function integers(shape: readonly number[], data: ArrayLike<number>): Value {
  return { dtype: 'int32', shape, data: Int32Array.from(data) };
}

export function bytes(shape: readonly number[], data: ArrayLike<number>): Value {
  return { dtype: 'uint8', shape, data: Uint8Array.from(data) };
}

/** Normal numbers, the same for the same name. */
export function random(name: string, shape: readonly number[], deviation = 1): Value {
  const data = new Float32Array(elements({ dtype: 'float32', shape }));
  new Philox4x32(1, name).fillNormal(data, deviation);
  return { dtype: 'float32', shape, data };
}

/** A parameter away from every trivial value: no bias is zero, no norm's weight is one. */
export function randomParameter({
  path,
  shape,
}: {
  path: string;
  shape: readonly number[];
}): Value {
  const around = path.includes('norm') && path.endsWith('weight') ? 1 : 0;
  const deviation = shape.length === 2 ? 1 / Math.sqrt(shape[1]) : 0.2;
  const { data } = random(path, shape, deviation);
  return values(
    shape,
    data.map((value) => around + value),
  );
}

/** What the float64 reference computes on. */
export function nd({ shape, data }: Value): NdArray {
  return ndArray(shape, data);
}

/** Every leaf of a tree of values for the reference. */
export function ndTree<T>(tree: T): MapTree<T, Value, NdArray> {
  return mapTree<T, Value, NdArray>(tree, nd);
}

/** Compiles `fn`, runs it once and gives its outputs, and the taps it names, by path. */
export async function evaluate<I extends object>(
  inputs: I,
  fn: (inputs: MapTree<I, Spec, Tensor>) => object,
): Promise<Record<string, Float32Array>> {
  const program = compile('test', fn, inputs, { taps: true });
  try {
    const given = mapTree<I, Value, Value['data']>(inputs, ({ data }) => data);
    const { outputs, taps } = await program.runWithTaps(given as never);
    const results: Record<string, Float32Array> = {};
    // A result that is also tapped is one array under two names.
    const arrays = new Map([
      ...flatten(outputs).map(({ path, leaf }) => [path, leaf] as const),
      ...taps,
    ]);
    for (const [path, leaf] of arrays) {
      results[path] = await (leaf as { read(): Promise<Float32Array> }).read();
    }
    for (const leaf of arrays.values()) (leaf as { dispose(): void }).dispose();
    return results;
  } finally {
    program.dispose();
  }
}

/** Largest absolute difference; NaN counts as infinite. */
export function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Infinity;
  let max = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i] - b[i]);
    max = difference <= max ? max : Number.isNaN(difference) ? Infinity : difference;
  }
  return max;
}

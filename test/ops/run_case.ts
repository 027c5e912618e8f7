// Runs a case of the table of operations, forward and backward, and says how far its numbers may be
// from the reference. Jest is not known here: the tests on a GPU run without it.
import type { Device, DeviceArray } from '../../lib/array';
import type { ComputeDType, Spec } from '../../lib/graph';
import { disposeArrays } from '../../lib/graph';
import type { HostArray } from '../../lib/native/spec';
import type { Arrays, OpCase } from '../op_cases';
import { forwardProgram, gradientProgram, hostOperands, operandArrays } from '../op_cases';
import type { NdArray } from '../reference/nd_array';
import { map, maxAbs } from '../reference/nd_array';
import { Random } from '../reference/random';

// f32: a few dozen roundings of the tensor's largest value, or of one where a sum cancels.
const F32_RELATIVE = 4e-6;
const F32_ABSOLUTE = 2e-7;

/** What a run of a case gives, by name. */
export type Results = Readonly<Record<string, HostArray>>;

/** Where and in what a case runs. */
export interface Place {
  readonly device?: Device;
  readonly precision?: ComputeDType;
}

/** The random numbers of a case, the same in every test of it. */
export function randomOf(c: OpCase): Random {
  return new Random(c.name.length * 7919 + Object.keys(c.operands).length);
}

/** A direction per result: what the gradient is taken of. */
export function directionsOf(results: Arrays, random: Random): Arrays {
  const draw = (x: NdArray): NdArray => random.array(x.shape, (r) => r.normal());
  return Object.fromEntries(Object.entries(results).map(([name, y]) => [name, draw(y)]));
}

async function read(arrays: Readonly<Record<string, DeviceArray>>): Promise<Results> {
  const results: Record<string, HostArray> = {};
  for (const [name, array] of Object.entries(arrays)) results[name] = await array.read();
  return results;
}

/** Runs from fresh copies of the values; nothing stays alive. */
export async function runForward(
  c: OpCase,
  values: Arrays,
  place: Place = {},
  count = 2,
): Promise<Results[]> {
  const program = forwardProgram(c, undefined, place);
  const runs: Results[] = [];
  try {
    for (let i = 0; i < count; i++) {
      const inputs = operandArrays(c, values, place.device);
      try {
        const outputs = await program.run(inputs);
        runs.push(await read(outputs));
        disposeArrays(outputs);
      } finally {
        disposeArrays(inputs);
      }
    }
  } finally {
    program.dispose();
  }
  return runs;
}

/** The gradients of Σ ⟨direction, result⟩. */
export async function runGradient(
  c: OpCase,
  values: Arrays,
  directions: Arrays,
  place: Place = {},
  count = 2,
): Promise<Results[]> {
  const results = Object.fromEntries(
    Object.entries(directions).map(([name, { shape }]): [string, Spec] => [
      name,
      { dtype: 'float32', shape },
    ]),
  );
  const program = gradientProgram(c, results, place);
  const inputs = {
    operands: hostOperands(c, values),
    directions: Object.fromEntries(
      Object.entries(directions).map(([name, u]) => [name, Float32Array.from(u.data)]),
    ),
  };
  const runs: Results[] = [];
  try {
    for (let i = 0; i < count; i++) {
      const outputs = await program.run(inputs);
      runs.push(await read(outputs));
      disposeArrays(outputs);
    }
  } finally {
    program.dispose();
  }
  return runs;
}

/** The largest difference from the reference that a case allows to a tensor in float32. */
export function barOf({ tolerance, condition }: OpCase, expected: NdArray): number {
  if (tolerance === 'exact') return 0;
  return condition * (F32_RELATIVE * maxAbs(expected) + F32_ABSOLUTE);
}

/** What a float32 result is compared with: the reference, rounded where the bits must be equal. */
export function wantedOf({ tolerance }: OpCase, expected: NdArray): NdArray {
  return tolerance === 'exact' ? map(expected, Math.fround) : expected;
}

/** Throws unless a float32 result is the reference's, within the case's bar. */
export function expectWithin(
  name: string,
  c: OpCase,
  actual: HostArray,
  expected: NdArray,
  bar = barOf(c, expected),
): void {
  if (actual.length !== expected.data.length) {
    throw new Error(
      `${name}: must have ${String(expected.data.length)} elements, got ${String(actual.length)}`,
    );
  }
  wantedOf(c, expected).data.forEach((wanted, i) => {
    if (!(Math.abs(actual[i] - wanted) <= bar)) {
      throw new Error(
        `${name}[${String(i)}]: must be ${String(wanted)} within ${bar.toExponential(1)}, got ${String(actual[i])}`,
      );
    }
  });
}

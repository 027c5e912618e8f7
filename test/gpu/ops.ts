// Every operation on a GPU: float32 at the tolerances of the CPU, against the reference and against the
// CPU's kernel; bfloat16 at the bar of bar.ts; and everything again for the same bits. Output and
// intermediate memory is poisoned by SIGLIP2_POISON, so what a kernel leaves unwritten is a NaN.
import type { Device } from '../../lib/array';
import type { Spec } from '../../lib/graph';
import type { Arrays, OpCase } from '../op_cases';
import { deviceCases, opCases, resultSpecs, specsOf, splitCases } from '../op_cases';
import type { NdArray } from '../reference/nd_array';
import { elements, map, ndArray } from '../reference/nd_array';
import type { Random } from '../reference/random';
import { expectBfloat16, rounded, roundedOperands } from './bar';
import type { Results } from '../ops/run_case';
import {
  barOf,
  directionsOf,
  expectWithin,
  randomOf,
  runForward,
  runGradient,
  wantedOf,
} from '../ops/run_case';
import { isPacked } from './programs';
import type { Figures, Runner } from './runner';
import { mustEqualBits } from './runner';

// The first run calls kernels one by one, the second records a graph, the third replays it.
const RUNS = 3;

// Values of a large operand are drawn up to here and then repeat. A prime, so that no row, head or tile
// begins where another did.
const DRAWN = 65521;

function valuesOf(c: OpCase, random: Random): Arrays {
  return Object.fromEntries(
    Object.entries(c.operands).map(([name, { spec, draw, values }]) => {
      const count = elements(spec.shape);
      if (values !== undefined) return [name, map(values, Math.fround)];
      const drawn = random.array([Math.min(count, DRAWN)], draw).data;
      const data = new Float64Array(count);
      for (let i = 0; i < count; i += DRAWN) data.set(drawn.subarray(0, count - i), i);
      return [name, ndArray(spec.shape, data)];
    }),
  );
}

/** What is computed once for all tests of a case. */
interface Expected {
  readonly values: Arrays;
  readonly directions: Arrays;
  readonly forward: Arrays;
  readonly gradient: Arrays | undefined;
}

interface Oracle {
  forward(values: Arrays): Promise<Arrays>;
  gradient(values: Arrays, directions: Arrays): Promise<Arrays | undefined>;
}

/** The float64 reference. */
function referenceOf(c: OpCase): Oracle {
  return {
    forward: (values) => Promise.resolve(c.reference(values)),
    gradient: (values, directions) => Promise.resolve(c.backward?.(directions, values)),
  };
}

/** The CPU's kernels, for cases too large for plain loops. */
function cpuOf(c: OpCase): Oracle {
  const arrays = (results: Results, like: Readonly<Record<string, Spec>>): Arrays =>
    Object.fromEntries(
      Object.entries(results).map(([name, data]) => [name, ndArray(like[name].shape, data)]),
    );
  return {
    forward: async (values) => arrays((await runForward(c, values, {}, 1))[0], resultSpecs(c)),
    gradient: async (values, directions) =>
      c.backward === undefined
        ? undefined
        : arrays((await runGradient(c, values, directions, {}, 1))[0], specsOf(c)),
  };
}

/** Largest |a − b| over the bar of the tensor. */
function shareOfBar(c: OpCase, actual: ArrayLike<number>, expected: NdArray): number {
  const bar = barOf(c, expected);
  if (bar === 0) return 0;
  let worst = 0;
  wantedOf(c, expected).data.forEach((value, i) => {
    worst = Math.max(worst, Math.abs(actual[i] - value));
  });
  return worst / bar;
}

function expectAll(
  c: OpCase,
  what: string,
  actual: Results,
  expected: Arrays,
  factor: number,
): number {
  let share = 0;
  for (const [name, y] of Object.entries(expected)) {
    expectWithin(`${what}${name}`, c, actual[name], y, factor * barOf(c, y));
    share = Math.max(share, shareOfBar(c, actual[name], y) / factor);
  }
  return share;
}

function declareCase(
  runner: Runner,
  c: OpCase,
  device: Device,
  oracle: Oracle,
  exact: boolean,
): void {
  const group = runner.group(c.op);
  if (isPacked(c.op)) {
    group.skip(c.name, 'a layer packed for the CPU');
    return;
  }
  let expected: Promise<Expected> | undefined;
  const prepare = async (): Promise<Expected> => {
    const random = randomOf(c);
    const values = valuesOf(c, random);
    const forward = await oracle.forward(values);
    const directions = directionsOf(forward, random);
    return { values, directions, forward, gradient: await oracle.gradient(values, directions) };
  };
  const ready = (): Promise<Expected> => (expected ??= prepare());
  let results: Results[] = [];
  let gradients: Results[] = [];
  // Against the reference the bar is the CPU's; two kernels may be off in opposite directions.
  const factor = exact ? 1 : 2;

  group.test(`${c.name}, float32`, async (): Promise<Figures> => {
    const { values, directions, forward, gradient } = await ready();
    results = await runForward(c, values, { device }, RUNS);
    let share = expectAll(c, '', results[0], forward, factor);
    if (gradient !== undefined) {
      gradients = await runGradient(c, values, directions, { device }, RUNS);
      share = Math.max(share, expectAll(c, 'gradient of ', gradients[0], gradient, factor));
    }
    return { share };
  });
  group.test(`${c.name}, float32 repeats bit for bit`, () => {
    if (results.length === 0) throw new Error('must have run');
    for (const again of results.slice(1)) mustEqualBits('again', again, results[0]);
    for (const again of gradients.slice(1)) mustEqualBits('gradient again', again, gradients[0]);
    return undefined;
  });
  if (exact) {
    group.test(`${c.name}, float32 against the CPU`, async (): Promise<Figures> => {
      const { values, directions, gradient } = await ready();
      const cpu = cpuOf(c);
      if (results.length === 0) throw new Error('must have run');
      let share = expectAll(c, '', results[0], await cpu.forward(values), 2);
      if (gradient !== undefined) {
        const theirs = (await cpu.gradient(values, directions)) ?? {};
        share = Math.max(share, expectAll(c, 'gradient of ', gradients[0], theirs, 2));
      }
      return { share };
    });
  }
  if (device === 'cpu') {
    group.skip(`${c.name}, bfloat16`, 'the CPU computes in float32');
    return;
  }
  if (c.steep) {
    group.skip(`${c.name}, bfloat16`, 'a rounding of its operands gives another result');
    return;
  }
  group.test(`${c.name}, bfloat16`, async (): Promise<Figures> => {
    const { values, directions, forward, gradient } = await ready();
    const place = { device, precision: 'bfloat16' } as const;
    const narrow = roundedOperands(c, values);
    const narrowDirections = Object.fromEntries(
      Object.entries(directions).map(([name, u]) => [name, rounded(u)]),
    );
    const plain = await oracle.forward(narrow);
    const ours = await runForward(c, values, place, RUNS);
    let share = 0;
    for (const [name, y] of Object.entries(forward)) {
      share = Math.max(share, expectBfloat16(name, ours[0][name], y, plain[name]));
    }
    for (const again of ours.slice(1)) mustEqualBits('again', again, ours[0]);
    if (gradient !== undefined) {
      const plainGradient = (await oracle.gradient(narrow, narrowDirections)) ?? {};
      const own = await runGradient(c, values, directions, place, RUNS);
      for (const [name, dx] of Object.entries(gradient)) {
        const what = `gradient of ${name}`;
        share = Math.max(share, expectBfloat16(what, own[0][name], dx, plainGradient[name]));
      }
      for (const again of own.slice(1)) mustEqualBits('gradient again', again, own[0]);
    }
    // The next case needs the memory.
    expected = undefined;
    return { share };
  });
}

/** The tables of cases, by operation. */
export function declareOps(runner: Runner, device: Device): void {
  const words = [...new Set([...opCases, ...deviceCases].map(({ op }) => op))];
  for (const op of words) {
    const of = (cases: readonly OpCase[]): OpCase[] => cases.filter((c) => c.op === op);
    for (const c of of(opCases)) declareCase(runner, c, device, referenceOf(c), true);
    for (const c of of(splitCases)) declareCase(runner, c, device, referenceOf(c), true);
    for (const c of of(deviceCases)) declareCase(runner, c, device, cpuOf(c), false);
  }
}

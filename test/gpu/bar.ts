// The one bar of bfloat16: at most twice the error of a plain implementation, which computes in float64
// on operands rounded to bfloat16 and rounds its results to bfloat16. Both errors are against float64
// on the operands as they were. A result of few elements may have a plain error of zero by luck, so one
// rounding of the tensor's size is always allowed for.
import { toBfloat16 } from '../reference/cast';
import type { NdArray } from '../reference/nd_array';
import { map } from '../reference/nd_array';
import type { Arrays, OpCase } from '../op_cases';

const FACTOR = 2;
/** The largest error of few elements is a matter of luck. */
const FACTOR_OF_FEW = 3;
const FEW = 1000;
/** Half a unit in the last place of a bfloat16, relative: it has eight bits. */
const ROUNDING = 2 ** -8;
/** Of what cancels altogether the roundings of its terms are left, which are of order one. */
const CANCELLED = 5e-5;

/** The operands of a case as a bfloat16 implementation gets them. */
export function roundedOperands(c: OpCase, values: Arrays): Arrays {
  return Object.fromEntries(
    Object.entries(values).map(([name, x]) => [
      name,
      c.operands[name]?.spec.dtype === 'float32' ? rounded(x) : x,
    ]),
  );
}

/** To bfloat16. */
export function rounded(x: NdArray): NdArray {
  return map(x, toBfloat16);
}

interface Error2 {
  readonly max: number;
  readonly rms: number;
}

function errorOf(actual: ArrayLike<number>, exact: NdArray): Error2 {
  let [max, sum] = [0, 0];
  exact.data.forEach((value, i) => {
    const difference = Math.abs(actual[i] - value);
    // NaN is infinitely far, but equal infinities are equal.
    const error = Object.is(actual[i], value)
      ? 0
      : Number.isNaN(difference)
        ? Infinity
        : difference;
    max = Math.max(max, error);
    sum += error * error;
  });
  return { max, rms: Math.sqrt(sum / exact.data.length) };
}

/**
 * Throws unless a result is within the bar.
 *
 * @param plain - of the plain implementation, before its results are rounded
 * @returns the error over the bar, at most 1
 */
export function expectBfloat16(
  name: string,
  actual: ArrayLike<number>,
  exact: NdArray,
  plain: NdArray,
): number {
  if (actual.length !== exact.data.length) {
    throw new Error(
      `${name}: must have ${String(exact.data.length)} elements, got ${String(actual.length)}`,
    );
  }
  const ours = errorOf(actual, exact);
  const theirs = errorOf(rounded(plain).data, exact);
  const size = errorOf(new Float64Array(exact.data.length), exact);
  let worst = 0;
  for (const kind of ['rms', 'max'] as const) {
    const allowed = Math.max(theirs[kind], ROUNDING * size[kind], CANCELLED);
    if (ours[kind] === 0) continue;
    const ratio = ours[kind] / allowed;
    const factor = kind === 'max' && exact.data.length < FEW ? FACTOR_OF_FEW : FACTOR;
    if (!(ratio <= factor)) {
      throw new Error(
        `${name}: ${kind} error must be at most ${String(factor)} times the plain ${allowed.toExponential(2)}, ` +
          `got ${ours[kind].toExponential(2)} (${ratio.toFixed(2)} times; values to ${size.max.toExponential(1)})`,
      );
    }
    worst = Math.max(worst, ratio / factor);
  }
  return worst;
}

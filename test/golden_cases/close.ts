// One comparison for every golden number: the message names the stage, the place and both values.
import type { NdArray } from '../reference/nd_array';
import { maxAbs } from '../reference/nd_array';

/** How far an element may be from the reference, given the tensor and the bar its case suggests. */
export type Bar = (expected: NdArray, suggested?: number) => number;

/** An absolute bar. */
export function within(atol: number): Bar {
  return () => atol;
}

/** A bar relative to the largest value of the tensor, but not below `floor`. */
export function withinScale(relative: number, floor = 0): Bar {
  return (expected) => Math.max(relative * maxAbs(expected), floor);
}

/** Throws unless every |actual − expected| is within the bar. NaN is infinitely far. */
export function expectClose(
  name: string,
  actual: ArrayLike<number>,
  expected: NdArray,
  bar: Bar,
  suggested?: number,
): void {
  if (actual.length !== expected.data.length) {
    throw new Error(
      `${name}: must have ${String(expected.data.length)} elements, got ${String(actual.length)}`,
    );
  }
  let worst = 0;
  let place = -1;
  expected.data.forEach((value, i) => {
    const difference = Math.abs(actual[i] - value);
    if (!(difference <= worst)) {
      worst = Number.isNaN(difference) ? Infinity : difference;
      place = i;
    }
  });
  const allowed = bar(expected, suggested);
  if (worst > allowed) {
    throw new Error(
      `${name}: must be within ${allowed.toExponential(2)} of the reference, got ${worst.toExponential(2)} ` +
        `at element ${String(place)} (${String(actual[place])} against ${String(expected.data[place])})`,
    );
  }
}

/** How far states and gradients may be off. */
export interface Bars {
  readonly state: Bar;
  readonly gradient: Bar;
}

// Linear maps of one axis, such as a resize. A resize of two axes applies one after the other.
import { choleskySolver } from '../array/symmetric';

const { abs, floor, max, min } = Math;

/** From `from` samples to `to`. */
export interface AxisMap {
  readonly from: number;
  readonly to: number;
  /** (to, from), row by row. */
  readonly weights: Float64Array;
}

type Row = (i: number, add: (sample: number, weight: number) => void) => void;

// Samples beyond the ends are those at the ends.
function axisMap(from: number, to: number, row: Row): AxisMap {
  const weights = new Float64Array(to * from);
  for (let i = 0; i < to; i++) {
    row(i, (sample, weight) => {
      weights[i * from + min(from - 1, max(0, sample))] += weight;
    });
  }
  return { from, to, weights };
}

/**
 * Linear with half-pixel centres: w_ij ∝ max(0, 1 − |x_i − j| / f) at x_i = (i + ½) · from/to − ½,
 * rows summing to 1. Antialiased f = max(from/to, 1), otherwise 1.
 */
export function linearAxis(from: number, to: number, antialias: boolean): AxisMap {
  const scale = from / to;
  const reach = antialias ? max(scale, 1) : 1;
  return axisMap(from, to, (i, add) => {
    const centre = (i + 0.5) * scale - 0.5;
    const first = max(0, floor(centre - reach));
    const end = min(from, floor(centre + reach) + 2);
    const weight = (j: number): number => max(0, 1 - abs(centre - j) / reach);
    let sum = 0;
    for (let j = first; j < end; j++) sum += weight(j);
    for (let j = first; j < end; j++) add(j, weight(j) / sum);
  });
}

/** Linear between samples whose ends are aligned: x_i = i · (from − 1)/(to − 1). */
export function cornerAxis(from: number, to: number): AxisMap {
  return axisMap(from, to, (i, add) => {
    const x = (i * (from - 1)) / max(1, to - 1);
    const below = floor(x);
    add(below, 1 - (x - below));
    add(below + 1, x - below);
  });
}

const A = -0.75;

function cubic(distance: number): number {
  const x = abs(distance);
  if (x <= 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  if (x < 2) return ((A * x - 5 * A) * x + 8 * A) * x - 4 * A;
  return 0;
}

/**
 * Cubic (a = −0.75) with half-pixel centres, ends repeated, no antialiasing: torch's `interpolate`
 * with `bicubic` and `align_corners=False`.
 */
export function cubicAxis(from: number, to: number): AxisMap {
  return axisMap(from, to, (i, add) => {
    const centre = ((i + 0.5) * from) / to - 0.5;
    const first = floor(centre) - 1;
    for (let j = first; j < first + 4; j++) add(j, cubic(centre - j));
  });
}

/**
 * Of a map R of full rank, the pseudo-inverse of Rᵀ, which maps weights as R maps what they weigh:
 * R (RᵀR)⁻¹ where R lengthens, (RRᵀ)⁻¹ R where it shortens. From `from` to `to` samples, as R.
 */
export function pseudoInverseOfTranspose({ from, to, weights }: AxisMap): AxisMap {
  const lengthens = to >= from;
  const rank = min(from, to);
  const sum = max(from, to);
  const at = (i: number, k: number): number =>
    lengthens ? weights[k * from + i] : weights[i * from + k];
  const gram = new Float64Array(rank * rank);
  for (let i = 0; i < rank; i++) {
    for (let j = 0; j < rank; j++) {
      for (let k = 0; k < sum; k++) gram[i * rank + j] += at(i, k) * at(j, k);
    }
  }
  const solve = choleskySolver(gram, rank);
  const inverse = new Float64Array(to * from);
  for (let k = 0; k < sum; k++) {
    const column = Float64Array.from({ length: rank }, (_, i) => at(i, k));
    solve(column);
    for (let i = 0; i < rank; i++) inverse[lengthens ? k * from + i : i * from + k] = column[i];
  }
  return { from, to, weights: inverse };
}

/** Every weight squared: how variances of independent values go through a map. */
export function squared({ from, to, weights }: AxisMap): AxisMap {
  return { from, to, weights: weights.map((weight) => weight * weight) };
}

/** The map of gradients, from `to` samples to `from`. */
export function transposed({ from, to, weights }: AxisMap): AxisMap {
  return {
    from: to,
    to: from,
    weights: weights.map((_, at) => weights[(at % to) * from + Math.floor(at / to)]),
  };
}

/** values (outer, from, inner) → (outer, to, inner). */
export function alongAxis(
  { from, to, weights }: AxisMap,
  values: Float32Array | Float64Array,
  outer: number,
  inner: number,
): Float64Array {
  const result = new Float64Array(outer * to * inner);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < to; i++) {
      const at = (o * to + i) * inner;
      for (let j = 0; j < from; j++) {
        const weight = weights[i * from + j];
        if (weight === 0) continue;
        const source = (o * from + j) * inner;
        for (let k = 0; k < inner; k++) result[at + k] += weight * values[source + k];
      }
    }
  }
  return result;
}

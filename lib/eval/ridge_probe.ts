// The few-shot linear probe of big_vision (evaluators/fewshot_lsr.py): ridge regression of ±1 targets
// on standardised features, W = (XᵀX + λI)⁻¹ XᵀY, whose class is the largest score.
import { Philox4x32 } from '../array/random';
import { choleskySolver, symmetricEigen } from '../array/symmetric';
import { SiglipError } from '../errors';
import type { Proportion } from './proportion';
import { wilson } from './proportion';
import type { Rows } from './scores';
import { rowCount } from './scores';

/** Added to every standard deviation. */
const DEVIATION_EPS = 1e-5;
/** The constant feature, so large that its weight is hardly regularised. */
const BIAS_FEATURE = 100;

/** Published: 2^10. */
export const RIDGE = 1024;

/** A trained probe. */
export class RidgeProbe {
  constructor(
    /** (D), of the training features. */
    readonly mean: Float64Array,
    /** (D), with 1e-5 added. */
    readonly deviation: Float64Array,
    /** (D + 1, C); the last row is of the constant feature. */
    readonly weights: Float64Array,
    readonly classes: number,
  ) {}

  /** Scores (N, C) of features (N, D). @throws ERR_SHAPE */
  scores(features: Rows): Float64Array {
    const count = rowCount(features);
    const { mean, deviation, classes } = this;
    if (features.width !== mean.length) {
      throw new SiglipError(
        'ERR_SHAPE',
        `RidgeProbe: features must have the width ${String(mean.length)}, got ${String(features.width)}`,
      );
    }
    const x = standardized(features, mean, deviation);
    const d = mean.length + 1;
    const scores = new Float64Array(count * classes);
    for (let i = 0; i < count; i++) {
      for (let k = 0; k < d; k++) {
        addScaled(scores, i * classes, this.weights, k * classes, x[i * d + k], classes);
      }
    }
    return scores;
  }

  /** The class of each row, (N). */
  predict(features: Rows): Int32Array {
    const scores = this.scores(features);
    const { classes } = this;
    return Int32Array.from({ length: scores.length / classes }, (_, i) => {
      let best = 0;
      for (let c = 1; c < classes; c++) {
        if (scores[i * classes + c] > scores[i * classes + best]) best = c;
      }
      return best;
    });
  }
}

/**
 * Trains one probe, by Cholesky's decomposition of the smaller of XᵀX + λI and XXᵀ + λI.
 *
 * @param features - (N, D), as the vision tower pools them, before they are brought to unit length
 * @param labels - (N), classes from 0
 * @param ridge - λ
 * @throws ERR_SHAPE, ERR_ARGUMENT when the parts do not fit
 */
export function ridgeProbe(
  features: Rows,
  labels: Int32Array,
  classes: number,
  ridge = RIDGE,
): RidgeProbe {
  const problem = ridgeProblem(features, labels, classes);
  const { gram, size } = problem;
  for (let i = 0; i < size; i++) gram[i * size + i] += ridge;
  const solve = choleskySolver(gram, size);
  return solution(problem, solve);
}

/**
 * As {@link ridgeProbe} for several λ, by one eigendecomposition.
 *
 * @returns one probe for each λ
 */
export function ridgeProbes(
  features: Rows,
  labels: Int32Array,
  classes: number,
  ridges: readonly number[],
): RidgeProbe[] {
  const problem = ridgeProblem(features, labels, classes);
  const { gram, size } = problem;
  const { values, vectors } = symmetricEigen(gram, size);
  return ridges.map((ridge) =>
    solution(problem, (b) => {
      const x = new Float64Array(size);
      for (let i = 0; i < size; i++) {
        let along = 0;
        for (let k = 0; k < size; k++) along += vectors[i * size + k] * b[k];
        addScaled(x, 0, vectors, i * size, along / (values[i] + ridge), size);
      }
      b.set(x);
    }),
  );
}

/** One training of a probe on a few examples of each class. */
export interface FewShotOptions {
  /** Examples of each class. Default 10. */
  readonly shots?: number;
  /** Choices of examples; the accuracy is given for each. Default 0, 1, 2. */
  readonly seeds?: readonly number[];
  /** λ; default {@link RIDGE}. */
  readonly ridge?: number;
}

/** Outcome of {@link fewShot}. */
export interface FewShotResult {
  /** Share of the test images that are classified right, one for each seed. */
  readonly bySeed: readonly Proportion[];
  /** Their mean. */
  readonly accuracy: number;
}

/** Images as features with their classes. */
export interface LabelledRows extends Rows {
  /** (N), classes from 0. */
  readonly labels: Int32Array;
}

/**
 * Accuracy of probes trained on a few examples of each class.
 *
 * @throws ERR_ARGUMENT when a class has fewer examples
 * @example
 * fewShot(pool, test, 1000).accuracy; // 0.681
 */
export function fewShot(
  pool: LabelledRows,
  test: LabelledRows,
  classes: number,
  { shots = 10, seeds = [0, 1, 2], ridge = RIDGE }: FewShotOptions = {},
): FewShotResult {
  const { width } = pool;
  const bySeed = seeds.map((seed) => {
    const chosen = chooseShots(pool.labels, classes, shots, seed);
    const data = new Float32Array(chosen.length * width);
    chosen.forEach((row, i) => {
      data.set(pool.data.subarray(row * width, (row + 1) * width), i * width);
    });
    const labels = Int32Array.from(chosen, (row) => pool.labels[row]);
    const predicted = ridgeProbe({ data, width }, labels, classes, ridge).predict(test);
    const right = predicted.reduce((sum, c, i) => sum + (c === test.labels[i] ? 1 : 0), 0);
    return wilson(right, predicted.length);
  });
  const accuracy = bySeed.reduce((sum, { value }) => sum + value, 0) / seeds.length;
  return { bySeed, accuracy };
}

// The first of a random order of each class.
function chooseShots(labels: Int32Array, classes: number, shots: number, seed: number): number[] {
  const rows = Array.from({ length: classes }, (): number[] => []);
  labels.forEach((label, row) => rows.at(label)?.push(row));
  return rows.flatMap((own, label) => {
    if (own.length < shots) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `fewShot: class ${String(label)} must have ${String(shots)} examples, got ${String(own.length)}`,
      );
    }
    const random = new Philox4x32(seed, `few-shot class ${String(label)}`);
    for (let i = 0; i < shots; i++) {
      const j = i + random.integer(own.length - i);
      [own[i], own[j]] = [own[j], own[i]];
    }
    return own.slice(0, shots);
  });
}

interface RidgeProblem {
  readonly mean: Float64Array;
  readonly deviation: Float64Array;
  /** (N, D + 1) */
  readonly x: Float64Array;
  readonly labels: Int32Array;
  readonly classes: number;
  /** Whether the matrix is XᵀX; else it is XXᵀ. */
  readonly primal: boolean;
  readonly gram: Float64Array;
  /** Its side: the smaller of N and D + 1. */
  readonly size: number;
}

function ridgeProblem(features: Rows, labels: Int32Array, classes: number): RidgeProblem {
  const n = rowCount(features);
  if (labels.length !== n || n === 0) {
    throw new SiglipError(
      'ERR_SHAPE',
      `ridgeProbe: labels must be one for each of ${String(n)} rows, at least one, got ${String(labels.length)}`,
    );
  }
  const wrong = labels.find((label) => label < 0 || label >= classes);
  if (wrong !== undefined) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `ridgeProbe: labels must be from 0 to ${String(classes - 1)}, got ${String(wrong)}`,
    );
  }
  const { data, width } = features;
  const mean = new Float64Array(width);
  const deviation = new Float64Array(width);
  for (let k = 0; k < width; k++) {
    for (let i = 0; i < n; i++) mean[k] += data[i * width + k] / n;
    let square = 0;
    for (let i = 0; i < n; i++) square += (data[i * width + k] - mean[k]) ** 2 / n;
    deviation[k] = Math.sqrt(square) + DEVIATION_EPS;
  }
  const x = standardized(features, mean, deviation);
  const d = width + 1;
  const primal = n >= d;
  const size = primal ? d : n;
  const gram = new Float64Array(size * size);
  if (primal) {
    for (let i = 0; i < n; i++) {
      for (let a = 0; a < d; a++) addScaled(gram, a * d, x, i * d, x[i * d + a], d);
    }
  } else {
    for (let i = 0; i < n; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = 0;
        for (let k = 0; k < d; k++) sum += x[i * d + k] * x[j * d + k];
        gram[i * n + j] = sum;
        gram[j * n + i] = sum;
      }
    }
  }
  return { mean, deviation, x, labels, classes, primal, gram, size };
}

// (XᵀX + λI)⁻¹ XᵀY, or Xᵀ (XXᵀ + λI)⁻¹ Y, class by class.
function solution(problem: RidgeProblem, solve: (b: Float64Array) => void): RidgeProbe {
  const { mean, deviation, x, labels, classes, primal, size } = problem;
  const [n, d] = [labels.length, mean.length + 1];
  const weights = new Float64Array(d * classes);
  for (let c = 0; c < classes; c++) {
    const b = new Float64Array(size);
    const y = (i: number): number => (labels[i] === c ? 1 : -1);
    if (primal) for (let i = 0; i < n; i++) addScaled(b, 0, x, i * d, y(i), d);
    else for (let i = 0; i < n; i++) b[i] = y(i);
    solve(b);
    const column = primal ? b : new Float64Array(d);
    if (!primal) for (let i = 0; i < n; i++) addScaled(column, 0, x, i * d, b[i], d);
    for (let k = 0; k < d; k++) weights[k * classes + c] = column[k];
  }
  return new RidgeProbe(mean, deviation, weights, classes);
}

// (N, D + 1): standardised features and the constant one.
function standardized(
  { data, width }: Rows,
  mean: Float64Array,
  deviation: Float64Array,
): Float64Array {
  const n = data.length / width;
  const x = new Float64Array(n * (width + 1));
  for (let i = 0; i < n; i++) {
    const row = i * (width + 1);
    for (let k = 0; k < width; k++) x[row + k] = (data[i * width + k] - mean[k]) / deviation[k];
    x[row + width] = BIAS_FEATURE;
  }
  return x;
}

function addScaled(
  to: Float64Array,
  first: number,
  from: Float64Array,
  source: number,
  factor: number,
  count: number,
): void {
  for (let k = 0; k < count; k++) to[first + k] += factor * from[source + k];
}

// l_ij = softplus(−z_ij S_ij) with S = exp(t) X Yᵀ + b and z = +1 on the diagonal, −1 elsewhere, or those
// of softmax; s_ij = learner weight · l_ij(learner) + reference weight · l_ij(reference). With the whole matrix
// written out.
import { philoxBlock } from '../../lib/array/random';
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';
import { logits } from './sigmoid_loss';

/** Embeddings (N, E) and scalars (1) of a model. */
export interface Model {
  readonly images: NdArray;
  readonly texts: NdArray;
  readonly logitScale: NdArray;
  readonly logitBias: NdArray;
}

/** Weights of the learner's and of the reference's losses. */
export interface Weights {
  readonly learnerWeight: number;
  readonly referenceWeight: number;
}

function softplus(u: number): number {
  return Math.max(u, 0) + Math.log1p(Math.exp(-Math.abs(u)));
}

/** r (N) and c (N): log Σ_k exp(S_ik) and log Σ_k exp(S_kj). */
export function logSums(model: Model): { rows: Float64Array; columns: Float64Array } {
  const S = logits(model.images, model.texts, model.logitScale, model.logitBias);
  const [N] = S.shape;
  const logSum = (at: (k: number) => number): number => {
    let most = -Infinity;
    for (let k = 0; k < N; k++) most = Math.max(most, at(k));
    let sum = 0;
    for (let k = 0; k < N; k++) sum += Math.exp(at(k) - most);
    return most + Math.log(sum);
  };
  return {
    rows: Float64Array.from({ length: N }, (_, i) => logSum((k) => S.data[i * N + k])),
    columns: Float64Array.from({ length: N }, (_, j) => logSum((k) => S.data[k * N + j])),
  };
}

/**
 * l (N, N) of InfoNCE both ways: of positives ½ (r_i + c_i) − S_ii, of negatives −½ (log(1 − exp(S_ij − r_i))
 * + log(1 − exp(S_ij − c_j))) with shares of at most 1 − 2^−12.
 */
export function softmaxPairLosses(model: Model, positives = true): NdArray {
  const S = logits(model.images, model.texts, model.logitScale, model.logitBias);
  const [N] = S.shape;
  const { rows, columns } = logSums(model);
  const without = (x: number): number => -Math.log1p(-Math.min(Math.exp(x), 1 - 2 ** -12));
  const losses = zeros([N, N]);
  for (let i = 0; i < N; i++) {
    for (let j = 0; j < N; j++) {
      const s = S.data[i * N + j];
      losses.data[i * N + j] =
        positives && i === j
          ? (rows[i] + columns[i]) / 2 - s
          : (without(s - rows[i]) + without(s - columns[j])) / 2;
    }
  }
  return losses;
}

/** l (N, N) of the sigmoid loss. `positives`: pairs i = j are positives; else every pair is a negative. */
export function pairLosses(model: Model, positives = true): NdArray {
  const S = logits(model.images, model.texts, model.logitScale, model.logitBias);
  const [N] = S.shape;
  const losses = zeros([N, N]);
  for (let i = 0; i < N; i++) {
    for (let j = 0; j < N; j++) {
      const z = positives && i === j ? 1 : -1;
      losses.data[i * N + j] = softplus(-z * S.data[i * N + j]);
    }
  }
  return losses;
}

/** s (N, N). */
export function pairScores(
  learner: Model,
  reference: Model,
  { learnerWeight, referenceWeight }: Weights,
  losses: typeof pairLosses = pairLosses,
  positives = true,
): NdArray {
  const scores = losses(learner, positives);
  const others = losses(reference, positives);
  scores.data.forEach((loss, i) => {
    scores.data[i] = learnerWeight * loss + referenceWeight * others.data[i];
  });
  return scores;
}

/** s_ii, Σ_j s_ij and Σ_j s_ji. */
export function learnability(
  learner: Model,
  reference: Model,
  weights: Weights,
  losses = pairLosses,
): { diagonal: NdArray; rows: NdArray; columns: NdArray } {
  const s = pairScores(learner, reference, weights, losses);
  const [N] = s.shape;
  const sums = { diagonal: zeros([N]), rows: zeros([N]), columns: zeros([N]) };
  for (let i = 0; i < N; i++) {
    sums.diagonal.data[i] = s.data[i * N + i];
    for (let j = 0; j < N; j++) {
      sums.rows.data[i] += s.data[i * N + j];
      sums.columns.data[j] += s.data[i * N + j];
    }
  }
  return sums;
}

/** scores_i + Σ_{j chosen} (s_ij + s_ji), the pair of an example with itself as a negative. */
export function conditionScores(
  learner: Model,
  reference: Model,
  scores: NdArray,
  chosen: NdArray,
  weights: Weights,
  losses = pairLosses,
): NdArray {
  const s = pairScores(learner, reference, weights, losses, false);
  const [N] = s.shape;
  const y = zeros([N]);
  for (let i = 0; i < N; i++) {
    y.data[i] = scores.data[i];
    for (const j of chosen.data) y.data[i] += s.data[i * N + j] + s.data[j * N + i];
  }
  return y;
}

/** Gumbel noise of N examples; `draw` is a seed and a step, each as its low and high 32 bits. */
export function gumbelNoise(N: number, draw: ArrayLike<number>, chunk: number): Float64Array {
  const words = new Uint32Array(4);
  return Float64Array.from({ length: N }, (_, i) => {
    philoxBlock(i, chunk, draw[2], draw[3], draw[0], draw[1], words);
    return -Math.log(-Math.log((words[0] + 0.5) / 2 ** 32));
  });
}

/** The `count` largest gain · scores + noise of those not taken, in falling order. */
export function drawExamples(
  scores: ArrayLike<number>,
  taken: ArrayLike<number>,
  noise: ArrayLike<number>,
  count: number,
  gain: number,
): number[] {
  const key = (i: number): number => Math.fround(gain * scores[i] + noise[i]);
  return Array.from(scores, (_, i) => i)
    .filter((i) => taken[i] === 0)
    .sort((i, j) => key(j) - key(i) || i - j)
    .slice(0, count);
}

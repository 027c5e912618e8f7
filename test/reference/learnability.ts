// l_ij = softplus(−z_ij S_ij) with S = exp(t) X Yᵀ + b and z = +1 on the diagonal, −1 elsewhere;
// s_ij = learner weight · l_ij(learner) + reference weight · l_ij(reference). With the whole matrix
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

/** l (N, N). `positives`: pairs i = j are positives; else every pair is a negative. */
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
  positives = true,
): NdArray {
  const scores = pairLosses(learner, positives);
  const others = pairLosses(reference, positives);
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
): { diagonal: NdArray; rows: NdArray; columns: NdArray } {
  const s = pairScores(learner, reference, weights);
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
): NdArray {
  const s = pairScores(learner, reference, weights, false);
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

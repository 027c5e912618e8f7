// Joint example selection (JEST, arXiv 2406.17711): a batch is drawn out of a super-batch chunk by chunk,
// each chunk by what its examples score together with those drawn before.
//
//   chunk 1: g_i = s_ii        later: g_i = s_ii + Σ_{j drawn} (s_ij + s_ji)
//
// with examples drawn without replacement in proportion to exp(gain · g_i).
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { scope } from '../graph';
import type { ScoredModel, ScoreLoss, ScoreWeights } from '../ops';
import * as ops from '../ops';

export interface JointSelectionOptions {
  /** Examples to select, a multiple of `chunks`. */
  readonly batch: number;
  /** Default 16, as published. */
  readonly chunks?: number;
  /** Sharpness of the choice, default 1. */
  readonly gain?: number;
  /** Default: learnability, the learner's loss less the reference's. */
  readonly weights?: ScoreWeights;
  /** Of pairs, default `'sigmoid'`. */
  readonly scoreLoss?: ScoreLoss | undefined;
  /** Gumbel noise (N) of every chunk instead of that drawn. */
  readonly noise?: readonly Tensor[];
}

export interface JointSelection {
  /** (batch / chunks) int32 for every chunk: indices of examples, in the order drawn. */
  readonly chunks: readonly Tensor[];
  /** (N) for every chunk: g before it is drawn; of examples drawn before without meaning. */
  readonly scores: readonly Tensor[];
  /** (N) uint8: 1 where an example was selected. */
  readonly taken: Tensor;
  /** (N): the losses of every example's own pair. */
  readonly losses: { readonly learner: Tensor; readonly reference: Tensor };
}

/**
 * Selects `batch` of N examples.
 *
 * @param taken - (N) uint8, not 0 where an example may not be selected.
 * @param draw - (4) int32: a seed and a step, each as its low and high 32 bits.
 * @throws ERR_SHAPE, ERR_DTYPE; ERR_ARGUMENT where chunks do not divide the batch.
 */
export function jointSelection(
  learner: ScoredModel,
  reference: ScoredModel,
  taken: Tensor,
  draw: Tensor,
  options: JointSelectionOptions,
): JointSelection {
  const { batch, chunks = 16, gain = 1, noise, scoreLoss = 'sigmoid' } = options;
  const { learnability, hardLearner } = ops.scoreWeights;
  const weights = options.weights ?? learnability;
  const count = batch / chunks;
  if (!Number.isSafeInteger(chunks) || chunks < 1 || !Number.isSafeInteger(count) || count < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `jointSelection: batch must be a positive multiple of chunks, got ${String(batch)} and ${String(chunks)}`,
    );
  }
  return scope('selection', () => {
    const drawn: Tensor[] = [];
    const logSums = scoreLoss === 'softmax' ? ops.pairLogSums(learner, reference) : null;
    const own = (by: ScoreWeights): Tensor =>
      ops.learnability(learner, reference, by, logSums).diagonal;
    const scores = [own(weights)];
    let now = taken;
    for (let chunk = 0; chunk < chunks; chunk++) {
      const { indices, nowTaken } = ops.drawExamples(scores[chunk], now, draw, {
        count,
        gain,
        chunk,
        noise: noise?.[chunk] ?? null,
      });
      drawn.push(indices);
      now = nowTaken;
      if (chunk + 1 < chunks) {
        scores.push(
          ops.conditionScores(learner, reference, scores[chunk], indices, weights, logSums),
        );
      }
    }
    const losses = {
      learner: own(hardLearner),
      reference: own({ learnerWeight: 0, referenceWeight: 1 }),
    };
    return { chunks: drawn, scores, taken: now, losses };
  });
}

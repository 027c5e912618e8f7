// What is left to learn from the pairs of a super-batch, and drawing a batch by it (JEST, arXiv
// 2406.17711; ACID, arXiv 2411.18674). The formulas stand in native/ops/learnability/learnability.h.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

/** A model's view of N examples. */
export interface ScoredModel {
  /** (N, E), unit rows. */
  readonly images: Tensor;
  /** (N, E), unit rows. */
  readonly texts: Tensor;
  /** (1), the logarithm of the scale. */
  readonly logitScale: Tensor;
  /** (1). */
  readonly logitBias: Tensor;
}

/** How a pair's score is made of its two losses: learnerWeight · learner + referenceWeight · reference. */
export interface ScoreWeights {
  readonly learnerWeight: number;
  readonly referenceWeight: number;
}

/** The published scores: what is learnable, what the reference finds easy, what the learner finds hard. */
export const scoreWeights = {
  learnability: { learnerWeight: 1, referenceWeight: -1 },
  easyReference: { learnerWeight: 0, referenceWeight: -1 },
  hardLearner: { learnerWeight: 1, referenceWeight: 0 },
} as const satisfies Record<string, ScoreWeights>;

/**
 * The losses of pairs that scores are made of: those of the sigmoid loss, or InfoNCE's, image to text and
 * text to image, over all examples at hand.
 */
export const scoreLosses = ['sigmoid', 'softmax'] as const;
/** One of {@link scoreLosses}. */
export type ScoreLoss = (typeof scoreLosses)[number];

interface Models {
  readonly learnerImages: Tensor;
  readonly learnerTexts: Tensor;
  readonly learnerScale: Tensor;
  readonly learnerBias: Tensor;
  readonly referenceImages: Tensor;
  readonly referenceTexts: Tensor;
  readonly referenceScale: Tensor;
  readonly referenceBias: Tensor;
}

const scalar = { dtype: 'float32', shape: [1] } as const;

function modelsOf(learner: ScoredModel, reference: ScoredModel): Models {
  return {
    learnerImages: learner.images,
    learnerTexts: learner.texts,
    learnerScale: learner.logitScale,
    learnerBias: learner.logitBias,
    referenceImages: reference.images,
    referenceTexts: reference.texts,
    referenceScale: reference.logitScale,
    referenceBias: reference.logitBias,
  };
}

function weightsOf({ learnerWeight, referenceWeight }: ScoreWeights): ScoreWeights {
  return { learnerWeight, referenceWeight };
}

// The number of examples, once both models were checked.
function expectModels(who: string, models: Models): number {
  const [examples = 0, width = 0] = expectRank(who, 'learner.images', models.learnerImages, [
    'N',
    'E',
  ]);
  const [, referenceWidth = 0] = expectRank(who, 'reference.images', models.referenceImages, [
    'N',
    'E',
  ]);
  const float32 = (...shape: number[]) => ({ dtype: 'float32', shape }) as const;
  expectSpec(who, 'learner.texts', models.learnerTexts, float32(examples, width));
  expectSpec(who, 'reference.images', models.referenceImages, float32(examples, referenceWidth));
  expectSpec(who, 'reference.texts', models.referenceTexts, float32(examples, referenceWidth));
  expectSpec(who, 'learner.logitScale', models.learnerScale, scalar);
  expectSpec(who, 'learner.logitBias', models.learnerBias, scalar);
  expectSpec(who, 'reference.logitScale', models.referenceScale, scalar);
  expectSpec(who, 'reference.logitBias', models.referenceBias, scalar);
  return examples;
}

type Scoring = Models & { readonly logSums: Tensor | null };

// The number of examples, once models and sums were checked.
function expectScoring(who: string, { logSums, ...models }: Scoring): number {
  const examples = expectModels(who, models);
  if (logSums !== null) {
    expectSpec(who, 'logSums', logSums, { dtype: 'float32', shape: [4, examples] });
  }
  return examples;
}

const learnabilityLogSums = op<Models, 'logSums', ScoreWeights>({
  name: 'learnability_log_sums',
  infer: (models) => ({
    logSums: { dtype: 'float32', shape: [4, expectModels('pairLogSums', models)] },
  }),
  kernel: kernels.learnabilityLogSums,
  precision: { narrow: ['learnerImages', 'learnerTexts', 'referenceImages', 'referenceTexts'] },
  gradient: 'notDifferentiable',
});

const learnabilityForward = op<Scoring, 'diagonal' | 'rows' | 'columns', ScoreWeights>({
  name: 'learnability',
  infer: (scoring) => {
    const sums = { dtype: 'float32', shape: [expectScoring('learnability', scoring)] } as const;
    return { diagonal: sums, rows: sums, columns: sums };
  },
  kernel: kernels.learnabilityForward,
  precision: { narrow: ['learnerImages', 'learnerTexts', 'referenceImages', 'referenceTexts'] },
  optionalOutputs: ['diagonal', 'rows', 'columns'],
  gradient: 'notDifferentiable',
});

const learnabilityCondition = op<Scoring & { scores: Tensor; chosen: Tensor }, 'y', ScoreWeights>({
  name: 'learnability_condition',
  infer: ({ scores, chosen, ...scoring }) => {
    const y = {
      dtype: 'float32',
      shape: [expectScoring('conditionScores', scoring)],
    } as const;
    expectSpec('conditionScores', 'scores', scores, y);
    expectRank('conditionScores', 'chosen', chosen, ['K'], 'int32');
    return { y };
  },
  kernel: kernels.learnabilityCondition,
  precision: { narrow: ['learnerImages', 'learnerTexts', 'referenceImages', 'referenceTexts'] },
  gradient: 'notDifferentiable',
});

const learnabilitySelect = op<
  { scores: Tensor; taken: Tensor; draw: Tensor; noise: Tensor | null },
  'indices' | 'nowTaken',
  { count: number; chunk: number; gain: number }
>({
  name: 'learnability_select',
  infer: ({ scores, taken, draw, noise }, { count }) => {
    const [examples = 0] = expectRank('drawExamples', 'scores', scores, ['N']);
    const nowTaken = { dtype: 'uint8', shape: [examples] } as const;
    expectSpec('drawExamples', 'taken', taken, nowTaken);
    expectSpec('drawExamples', 'draw', draw, { dtype: 'int32', shape: [4] });
    if (noise !== null) expectSpec('drawExamples', 'noise', noise, scores);
    if (!Number.isSafeInteger(count) || count < 1 || count > examples) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `drawExamples: count must be an integer from 1 to ${String(examples)}, got ${String(count)}`,
      );
    }
    return { indices: { dtype: 'int32', shape: [count] }, nowTaken };
  },
  kernel: ({ scores, taken, draw, noise, chunk, gain, indices, nowTaken }) =>
    kernels.learnabilitySelect({ scores, taken, draw, noise, chunk, gain, indices, nowTaken }),
  precision: 'float32',
  gradient: 'notDifferentiable',
});

/**
 * What softmax losses of N examples need to know of all of them: for each model log Σ_k exp(S_ik) of every
 * image and log Σ_k exp(S_kj) of every text.
 *
 * @returns (4, N): of the learner, then of the reference.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function pairLogSums(
  learner: ScoredModel,
  reference: ScoredModel,
  weights: ScoreWeights = scoreWeights.learnability,
): Tensor {
  return learnabilityLogSums(modelsOf(learner, reference), weightsOf(weights)).logSums;
}

/**
 * Scores of N examples: of every pair of an image and a text how much its loss weighs, summed. No
 * (N, N) matrix is stored.
 *
 * @param logSums - what {@link pairLogSums} gives, for softmax losses; null for sigmoid losses.
 * @returns `diagonal` (N): of the example's own pair; `rows` (N): of its image with all texts; `columns`
 * (N): of its text with all images.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function learnability(
  learner: ScoredModel,
  reference: ScoredModel,
  weights: ScoreWeights = scoreWeights.learnability,
  logSums: Tensor | null = null,
): { readonly diagonal: Tensor; readonly rows: Tensor; readonly columns: Tensor } {
  return learnabilityForward({ ...modelsOf(learner, reference), logSums }, weightsOf(weights));
}

/**
 * Adds to every example's score those of its pairs with the chosen ones, both of its image with their
 * texts and of its text with their images. The scores of chosen examples themselves lose their meaning.
 *
 * @param scores - (N).
 * @param chosen - (K) int32, indices of examples.
 * @param logSums - as in {@link learnability}.
 * @returns (N).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function conditionScores(
  learner: ScoredModel,
  reference: ScoredModel,
  scores: Tensor,
  chosen: Tensor,
  weights: ScoreWeights = scoreWeights.learnability,
  logSums: Tensor | null = null,
): Tensor {
  return learnabilityCondition(
    { ...modelsOf(learner, reference), logSums, scores, chosen },
    weightsOf(weights),
  ).y;
}

/** A seed and a step, integers from 0 to 2^53 − 1, as draws take them: (4), low and high 32 bits of each. */
export function drawInput(seed: number, step: number): Int32Array {
  for (const value of [seed, step]) {
    if (Number.isSafeInteger(value) && value >= 0) continue;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `drawInput: seed and step must be integers from 0 to 2^53 − 1, got ${String(value)}`,
    );
  }
  return Int32Array.of(seed, seed / 2 ** 32, step, step / 2 ** 32);
}

/** How `drawExamples` draws. */
export interface DrawOptions {
  /** How many. */
  readonly count: number;
  /** Chances are in proportion to exp(gain · score). Default 1. */
  readonly gain?: number;
  /** Draws with the same seed and step differ by it. Default 0. */
  readonly chunk?: number;
  /** (N) Gumbel noise instead of that drawn from `draw`. */
  readonly noise?: Tensor | null;
}

/**
 * Draws examples without replacement from those not taken yet. The same on every device and in every
 * run.
 *
 * @param scores - (N).
 * @param taken - (N) uint8, 0 where an example may be drawn.
 * @param draw - (4) int32: a seed and a step, each as its low and high 32 bits.
 * @returns `indices` (count) int32, best first; `nowTaken` (N) uint8.
 * @throws ERR_SHAPE, ERR_DTYPE; ERR_ARGUMENT for more than there are examples.
 */
export function drawExamples(
  scores: Tensor,
  taken: Tensor,
  draw: Tensor,
  options: DrawOptions,
): { readonly indices: Tensor; readonly nowTaken: Tensor } {
  const { count, gain = 1, chunk = 0, noise = null } = options;
  return learnabilitySelect({ scores, taken, draw, noise }, { count, chunk, gain });
}

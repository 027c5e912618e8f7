// Self-distillation (SigLIP 2, arXiv 2502.14786 §2.3): the pooled output of local views is to match that
// of the teacher's global view (SILC, arXiv 2310.13355), masked patches those of the teacher, which sees
// the whole view (iBOT, arXiv 2111.07832; TIPS, arXiv 2410.16512). Both compare softmaxes of prototypes:
//
//   q = softmax((h_T − c) / τ_T)      p = softmax(h_S / τ_S)      H(q, p) = −Σ_k q_k log p_k
//   L_local = mean over images of the mean over views of H
//   L_masked = mean over images of the mean over their masked patches of H
//   L = L_sigmoid + … + size factor · (1.0 · L_local + 0.25 · L_masked)
//
// The teacher gets no gradient. The centre c follows the mean of its logits after it was used.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { extent, fill, scope, stopGradient } from '../graph';
import type { DistillationHeads } from '../model';
import { patchHeadOf } from '../model';
import type { ProjectionHeadOptions, ProjectionHeadParameters } from '../nn';
import { projectionFeatures, unitPrototypes } from '../nn';
import * as ops from '../ops';

/** Weights of the two terms (SigLIP 2 §2.3). */
export const distillationWeights = { local: 1.0, masked: 0.25 } as const;

/** Factor of both terms by the size of the model (SigLIP 2 §2.3). */
export const distillationSizeFactors = { B: 0.25, L: 0.5, So400m: 1.0, g: 0.5 } as const;

/** τ_S (DINO). */
export const STUDENT_TEMPERATURE = 0.1;
/** τ_T (DINO, SILC). */
export const TEACHER_TEMPERATURE = 0.04;
/** Momentum of the centres (DINO). */
export const CENTRE_MOMENTUM = 0.9;

/** What the teacher's logits are compared with, apart from the batch. */
export interface TeacherTargets {
  /** (K), zeros in the beginning. With Sinkhorn-Knopp it is not read. */
  readonly centre: Tensor;
  /** (1), τ_T: {@link TEACHER_TEMPERATURE}, or what {@link teacherTemperature} gives. */
  readonly temperature: Tensor;
}

export interface DistillationOptions extends ProjectionHeadOptions {
  /**
   * How the teacher is kept from collapsing: the moving `'centre'` (DINO, SILC; default), the
   * `'sinkhorn'` normalisation of the batch (DINOv2, three iterations), or a centre from elsewhere: where
   * these examples are a part of a batch, that of all of it.
   */
  readonly balance?: 'centre' | 'sinkhorn' | ((teacher: TeacherLogits) => Tensor);
  /** Default {@link STUDENT_TEMPERATURE}. */
  readonly studentTemperature?: number;
}

/** Of what the teacher's logits are the products, and by what they are divided. */
export interface TeacherLogits {
  /** (m, F), unit rows. */
  readonly features: Tensor;
  /** (K, F), unit rows. */
  readonly prototypes: Tensor;
  /** (1) */
  readonly temperature: Tensor;
}

export interface DistillationLoss {
  /** (1) */
  readonly loss: Tensor;
  /** (K): the mean of the teacher's logits over this batch, for {@link updateCentre}. */
  readonly meanLogits: Tensor;
}

/** Local views and the images they are of. */
export interface LocalViews {
  /** (V, D): the student's pooled outputs before they are brought to unit length. */
  readonly student: Tensor;
  /** (B, D): the teacher's of the global views. */
  readonly teacher: Tensor;
  /** (V) int32, in [0, B): the image of each view. */
  readonly images: Tensor;
}

/** Tokens after the final norm, and which of them were masked. */
export interface MaskedTokens {
  /** (B, N, D), of the student, which did not see the masked patches. */
  readonly student: Tensor;
  /** (B, N, D), of the teacher, which did. */
  readonly teacher: Tensor;
  /** (M) int32: rows b·N + n of the masked tokens. */
  readonly rows: Tensor;
  /** (M): what each counts, 1 / (B · masked patches of its image); 0 for a row that fills up. */
  readonly weights: Tensor;
}

/**
 * L_local, every view counting the same: the mean over views and images where all have as many.
 *
 * @throws ERR_SHAPE, ERR_DTYPE
 */
export function localLoss(
  { student, teacher, images }: LocalViews,
  studentHeads: DistillationHeads<Tensor>,
  teacherHeads: DistillationHeads<Tensor>,
  targets: TeacherTargets,
  options: DistillationOptions = {},
): DistillationLoss {
  return scope('localLoss', () => {
    const views = extent(student, 0);
    const target = teacherFeatures(teacher, teacherHeads.pooledHead, options);
    const loss = crossEntropy(
      projectionFeatures(student, studentHeads.pooledHead, options),
      unitPrototypes(studentHeads.pooledHead),
      target,
      { ...targets, weights: fill(1 / views, [views]), rows: images },
      options,
    );
    return { loss, meanLogits: meanLogits(target) };
  });
}

/**
 * L_masked. The centre is that of all patches, masked or not (iBOT).
 *
 * @throws ERR_SHAPE, ERR_DTYPE
 */
export function maskedLoss(
  { student, teacher, rows, weights }: MaskedTokens,
  studentHeads: DistillationHeads<Tensor>,
  teacherHeads: DistillationHeads<Tensor>,
  targets: TeacherTargets,
  options: DistillationOptions = {},
): DistillationLoss {
  return scope('maskedLoss', () => {
    const head = patchHeadOf(studentHeads);
    const all = teacherFeatures(tokenRows(teacher), patchHeadOf(teacherHeads), options);
    const loss = crossEntropy(
      projectionFeatures(ops.embedding(tokenRows(student), rows), head, options),
      unitPrototypes(head),
      { ...all, features: ops.embedding(all.features, rows) },
      { ...targets, weights, rows: null },
      options,
    );
    return { loss, meanLogits: meanLogits(all) };
  });
}

/**
 * Records centre ← momentum · centre + (1 − momentum) · meanLogits in the centre's memory, which is
 * donated to the program. What read the centre before reads the former one.
 *
 * @param momentum - default {@link CENTRE_MOMENTUM}
 */
export function updateCentre(
  centre: Tensor,
  meanLogits: Tensor,
  momentum = CENTRE_MOMENTUM,
): Tensor {
  return ops.movingAverage(centre, meanLogits, momentum);
}

/** How τ_T rises: linearly over some steps, then it stays (DINO; iBOT 0.04 to 0.07 for patches). */
export interface TemperatureWarmup {
  readonly from: number;
  readonly to: number;
  /** Steps of the rise: the first has `from`, the last of them `to`. */
  readonly steps: number;
}

/** τ_T of a step, counted from 0. @throws ERR_ARGUMENT */
export function teacherTemperature({ from, to, steps }: TemperatureWarmup, step: number): number {
  if (!(from > 0 && to > 0 && Number.isSafeInteger(steps) && steps >= 0)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `teacherTemperature: from, to and steps must be positive, got ${String(from)}, ${String(to)} and ${String(steps)}`,
    );
  }
  return step >= steps ? to : from + ((to - from) * step) / Math.max(steps - 1, 1);
}

interface Target {
  readonly features: Tensor;
  readonly prototypes: Tensor;
}

function teacherFeatures(
  x: Tensor,
  head: ProjectionHeadParameters<Tensor>,
  options: ProjectionHeadOptions,
): Target {
  return scope('teacher', () => ({
    features: stopGradient(projectionFeatures(x, head, options)),
    prototypes: stopGradient(unitPrototypes(head)),
  }));
}

interface Comparison extends TeacherTargets {
  readonly weights: Tensor;
  readonly rows: Tensor | null;
}

function crossEntropy(
  student: Tensor,
  studentPrototypes: Tensor,
  { features, prototypes }: Target,
  { centre, temperature, weights, rows }: Comparison,
  { balance = 'centre', studentTemperature = STUDENT_TEMPERATURE }: DistillationOptions,
): Tensor {
  const balanced = (): Tensor => {
    if (balance === 'centre') return centre;
    const given = { features, prototypes, temperature };
    return balance === 'sinkhorn' ? sinkhornOf(given) : balance(given);
  };
  return ops.prototypeLoss(
    {
      student,
      studentPrototypes,
      teacher: features,
      teacherPrototypes: prototypes,
      centre: balanced(),
      weights,
      teacherRows: rows,
      teacherTemperature: temperature,
    },
    { studentTemperature },
  );
}

/** The centre of Sinkhorn-Knopp over these examples, (K). */
export function sinkhornOf({ features, prototypes, temperature }: TeacherLogits): Tensor {
  return ops.sinkhornCentre(features, prototypes, temperature);
}

// The mean of products is the product of the mean.
function meanLogits({ features, prototypes }: Target): Tensor {
  const [n = 0, width = 0] = features.shape;
  const mean = ops.tokenMean(ops.reshape(features, [1, n, width]));
  const logits = ops.matmul(mean, prototypes, { transposeB: true });
  return ops.reshape(logits, [extent(prototypes, 0)]);
}

function tokenRows(tokens: Tensor): Tensor {
  const [batch = 0, length = 0, width = 0] = tokens.shape;
  return ops.reshape(tokens, [batch * length, width]);
}

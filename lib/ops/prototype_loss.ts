// Cross-entropy of a student's softmax over prototypes with a teacher's (DINO, arXiv 2104.14294; iBOT,
// arXiv 2111.07832), from features and in tiles: no matrix of logits exists (native/ops/prototype_loss).
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op } from '../graph';
import { kernels } from '../native/kernels';

/** Operands of {@link prototypeLoss}. Gradients go to `student` and `studentPrototypes` alone. */
export interface PrototypeLossOperands {
  /** (n, F), unit rows. */
  readonly student: Tensor;
  /** (K, F), unit rows. */
  readonly studentPrototypes: Tensor;
  /** (m, F), unit rows. */
  readonly teacher: Tensor;
  /** (K, F), unit rows. */
  readonly teacherPrototypes: Tensor;
  /** (K), subtracted from the teacher's logits. */
  readonly centre: Tensor;
  /** (n): what the loss of a student's row counts. */
  readonly weights: Tensor;
  /** (n) int32, each in [0, m): the teacher's row that a student's is to match. Default: its own. */
  readonly teacherRows?: Tensor | null;
  /** (1) */
  readonly teacherTemperature: Tensor;
}

interface Temperature {
  readonly studentTemperature: number;
}

interface Operands {
  readonly student: Tensor;
  readonly studentPrototypes: Tensor;
  readonly teacher: Tensor;
  readonly teacherPrototypes: Tensor;
  readonly centre: Tensor;
  readonly weights: Tensor;
  readonly teacherRows: Tensor | null;
  readonly teacherTemperature: Tensor;
}

interface BackwardOperands extends Operands {
  readonly dloss: Tensor;
  readonly studentLse: Tensor;
  readonly teacherLse: Tensor;
}

const prototypeLossForward = op<Operands, 'loss' | 'studentLse' | 'teacherLse', Temperature>({
  name: 'prototype_loss',
  infer: ({
    student,
    studentPrototypes,
    teacher,
    teacherPrototypes,
    centre,
    weights,
    teacherRows,
    teacherTemperature,
  }) => {
    const [n = 0, width = 0] = expectRank('prototypeLoss', 'student', student, ['n', 'F']);
    const [m = 0] = expectRank('prototypeLoss', 'teacher', teacher, ['m', 'F']);
    const [prototypes = 0] = expectRank('prototypeLoss', 'teacherPrototypes', teacherPrototypes, [
      'K',
      'F',
    ]);
    const row = { dtype: 'float32', shape: [prototypes, width] } as const;
    expectSpec('prototypeLoss', 'teacher', teacher, { dtype: 'float32', shape: [m, width] });
    expectSpec('prototypeLoss', 'studentPrototypes', studentPrototypes, row);
    expectSpec('prototypeLoss', 'teacherPrototypes', teacherPrototypes, row);
    expectSpec('prototypeLoss', 'centre', centre, { dtype: 'float32', shape: [prototypes] });
    expectSpec('prototypeLoss', 'weights', weights, { dtype: 'float32', shape: [n] });
    if (teacherRows === null) {
      expectSpec('prototypeLoss', 'student', student, { dtype: 'float32', shape: [m, width] });
    } else {
      expectSpec('prototypeLoss', 'teacherRows', teacherRows, { dtype: 'int32', shape: [n] });
    }
    const scalar = { dtype: 'float32', shape: [1] } as const;
    expectSpec('prototypeLoss', 'teacherTemperature', teacherTemperature, scalar);
    return {
      loss: scalar,
      studentLse: { dtype: 'float32', shape: [n] },
      teacherLse: { dtype: 'float32', shape: [m] },
    };
  },
  kernel: kernels.prototypeLossForward,
  precision: 'float32',
  gradient: ({ inputs, outputs, attributes, gradients: { loss: dloss } }) => {
    if (dloss === undefined) return {};
    const { studentLse, teacherLse } = outputs;
    const { dstudent, dstudentPrototypes } = prototypeLossBackward(
      { ...inputs, dloss, studentLse, teacherLse },
      attributes,
    );
    // None for the teacher, on purpose.
    return { student: dstudent, studentPrototypes: dstudentPrototypes };
  },
});

const prototypeLossBackward = op<BackwardOperands, 'dstudent' | 'dstudentPrototypes', Temperature>({
  name: 'prototype_loss_backward',
  infer: ({ student, studentPrototypes }) => ({
    dstudent: student,
    dstudentPrototypes: studentPrototypes,
  }),
  kernel: kernels.prototypeLossBackward,
  precision: 'float32',
  optionalOutputs: ['dstudent', 'dstudentPrototypes'],
  gradient: 'notDifferentiable',
});

/** As in native/ops/prototype_loss. */
const mostIterations = 1000;

const sinkhornCentreForward = op<
  { teacher: Tensor; prototypes: Tensor; temperature: Tensor },
  'centre',
  { iterations: number }
>({
  name: 'sinkhorn_centre',
  infer: ({ teacher, prototypes, temperature }, { iterations }) => {
    const [, width = 0] = expectRank('sinkhornCentre', 'teacher', teacher, ['m', 'F']);
    expectRank('sinkhornCentre', 'prototypes', prototypes, ['K', 'F']);
    const count = extent(prototypes, 0);
    const expected = { dtype: 'float32', shape: [count, width] } as const;
    expectSpec('sinkhornCentre', 'prototypes', prototypes, expected);
    expectSpec('sinkhornCentre', 'temperature', temperature, { dtype: 'float32', shape: [1] });
    if (!Number.isInteger(iterations) || iterations < 1 || iterations > mostIterations) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `sinkhornCentre: iterations must be an integer from 1 to ${String(mostIterations)}, got ${String(iterations)}`,
      );
    }
    return { centre: { dtype: 'float32', shape: [count] } };
  },
  kernel: kernels.sinkhornCentre,
  precision: 'float32',
  gradient: 'notDifferentiable',
});

/**
 * Σ_i weight_i · H(q_{r(i)}, p_i), H(q, p) = −Σ_k q_k log p_k, with the student's
 * p_i = softmax_k(⟨student_i, studentPrototypes_k⟩ / studentTemperature) and the teacher's
 * q_j = softmax_k((⟨teacher_j, teacherPrototypes_k⟩ − centre_k) / teacherTemperature). Peak memory is
 * linear in rows and in prototypes.
 *
 * @param options - `studentTemperature`, positive.
 * @returns (1).
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT. Another teacher's row makes the run fail with
 * ERR_ARGUMENT.
 */
export function prototypeLoss(
  operands: PrototypeLossOperands,
  { studentTemperature }: { readonly studentTemperature: number },
): Tensor {
  if (!(studentTemperature > 0)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `prototypeLoss: studentTemperature must be positive, got ${String(studentTemperature)}`,
    );
  }
  return prototypeLossForward(
    {
      student: operands.student,
      studentPrototypes: operands.studentPrototypes,
      teacher: operands.teacher,
      teacherPrototypes: operands.teacherPrototypes,
      centre: operands.centre,
      weights: operands.weights,
      teacherRows: operands.teacherRows ?? null,
      teacherTemperature: operands.teacherTemperature,
    },
    { studentTemperature },
  ).loss;
}

/**
 * The centre with which the teacher's softmax is the result of Sinkhorn-Knopp over this batch, up to a
 * constant that the softmax does not see. Not differentiable.
 *
 * @param teacher - (m, F), unit rows.
 * @param prototypes - (K, F), unit rows.
 * @param temperature - (1), the teacher's.
 * @param options - `iterations`, default 3 (DINOv2, arXiv 2304.07193 §4).
 * @returns (K).
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT.
 */
export function sinkhornCentre(
  teacher: Tensor,
  prototypes: Tensor,
  temperature: Tensor,
  { iterations = 3 }: { readonly iterations?: number } = {},
): Tensor {
  return sinkhornCentreForward({ teacher, prototypes, temperature }, { iterations }).centre;
}

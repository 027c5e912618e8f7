// Adam with big_vision's decoupled weight decay (optax.py; native/ops/adam/adam.h has the formula).
import type { Tensor } from '../graph';
import { expectRank, expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

/** Constants of the update of one parameter. */
export interface AdamConstants {
  /** Multiplied by the schedule, not by the decay. */
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Relative to the schedule, NOT to the learning rate: 1e-4 at learning rate 1e-3 is AdamW's 0.1. */
  readonly weightDecay: number;
  /** Gradients are scaled down to this global norm; 0 for no clipping. */
  readonly clipNorm: number;
}

interface AdamOperands {
  param: Tensor;
  m: Tensor;
  v: Tensor;
  grad: Tensor;
  gradNorm: Tensor;
  schedule: Tensor;
}

type AdamOutput = 'newParam' | 'newM' | 'newV' | 'updateSquares' | 'paramSquares';

const adamInPlace = op<AdamOperands, AdamOutput, AdamConstants>({
  name: 'adam',
  infer: ({ param, m, v, grad, gradNorm, schedule }) => {
    const like = {
      dtype: 'float32',
      shape: expectRank('adam', 'param', param, ['…', 'D']),
    } as const;
    expectSpec('adam', 'm', m, like);
    expectSpec('adam', 'v', v, like);
    expectSpec('adam', 'grad', grad, like);
    expectSpec('adam', 'gradNorm', gradNorm, { dtype: 'float32', shape: [1] });
    expectSpec('adam', 'schedule', schedule, { dtype: 'float32', shape: [3] });
    const scalar = { dtype: 'float32', shape: [1] } as const;
    return { newParam: like, newM: like, newV: like, updateSquares: scalar, paramSquares: scalar };
  },
  kernel: (call) => kernels.adamUpdate(call),
  inPlace: { newParam: 'param', newM: 'm', newV: 'v' },
  precision: 'float32',
  gradient: 'notDifferentiable',
});

/**
 * One update of one parameter, in place; none where `gradNorm` is not finite.
 *
 * @param operands - `param`, `m`, `v`, `grad` of one shape; `gradNorm` (1), the global norm before
 * clipping; `schedule` (3) = [multiplier, 1 − β1^k, 1 − β2^k] for the k-th update, k from 1.
 * @returns the three updated tensors in the memory of the old ones, and the sums of squares of the
 * update and of the new parameter, (1) each.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function adam(
  operands: AdamOperands,
  constants: AdamConstants,
): Readonly<Record<AdamOutput, Tensor>> {
  return adamInPlace(operands, constants);
}

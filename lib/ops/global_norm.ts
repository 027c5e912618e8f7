// Norms over many tensors at once: for clipping and for the training log.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

const scalar = { dtype: 'float32', shape: [1] } as const;

function expectSome(who: string, tensors: readonly Tensor[]): void {
  if (tensors.length === 0) {
    throw new SiglipError('ERR_ARGUMENT', `${who}: tensors must not be empty, got none`);
  }
}

const globalNormForward = op<{ tensors: readonly Tensor[] }, 'y', object>({
  name: 'global_norm',
  infer: ({ tensors }) => {
    expectSome('globalNorm', tensors);
    tensors.forEach((x) => expectRank('globalNorm', 'a tensor', x, ['…', 'D']));
    return { y: scalar };
  },
  kernel: kernels.globalNormForward,
  precision: 'float32',
  gradient: 'notDifferentiable',
});

const rootSumForward = op<{ scalars: readonly Tensor[] }, 'y', object>({
  name: 'root_sum',
  infer: ({ scalars }) => {
    expectSome('rootSum', scalars);
    scalars.forEach((x) => {
      expectSpec('rootSum', 'a scalar', x, scalar);
    });
    return { y: scalar };
  },
  kernel: kernels.rootSumForward,
  precision: 'float32',
  gradient: 'notDifferentiable',
});

/** √(Σ x²) over all elements of all tensors, as (1). */
export function globalNorm(tensors: readonly Tensor[]): Tensor {
  return globalNormForward({ tensors }, {}).y;
}

/** √(Σ scalars) of tensors (1) that are sums of squares already, as (1). */
export function rootSum(scalars: readonly Tensor[]): Tensor {
  return rootSumForward({ scalars }, {}).y;
}

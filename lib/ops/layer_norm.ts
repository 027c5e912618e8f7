// Layer norm over the last axis; statistics in float32 whatever the data.
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op } from '../graph';
import { kernels } from '../native/kernels';

const layerNormForward = op<
  { x: Tensor; weight: Tensor; bias: Tensor | null },
  'y' | 'mean' | 'rstd',
  { eps: number }
>({
  name: 'layer_norm',
  infer: ({ x, weight, bias }) => {
    expectRank('layerNorm', 'x', x, ['…', 'rows', 'D']);
    const parameter = { dtype: 'float32', shape: [extent(x, -1)] } as const;
    expectSpec('layerNorm', 'weight', weight, parameter);
    if (bias !== null) expectSpec('layerNorm', 'bias', bias, parameter);
    const statistics = { dtype: 'float32', shape: x.shape.slice(0, -1) } as const;
    return { y: { dtype: 'float32', shape: x.shape }, mean: statistics, rstd: statistics };
  },
  kernel: kernels.layerNormForward,
  precision: { alike: ['x', 'y'] },
  gradient: ({ inputs: { x, weight, bias }, outputs: { mean, rstd }, gradients: { y: dy } }) => {
    if (dy === undefined) return {};
    const { dx, dweight, dbias } = layerNormBackward(
      { dy, x, weight, mean, rstd, residual: null },
      {},
    );
    return { x: dx, weight: dweight, ...(bias === null ? {} : { bias: dbias }) };
  },
});

const layerNormBackward = op<
  { dy: Tensor; x: Tensor; weight: Tensor; mean: Tensor; rstd: Tensor; residual: Tensor | null },
  'dx' | 'dweight' | 'dbias',
  object
>({
  name: 'layer_norm_backward',
  infer: ({ x, weight }) => ({ dx: x, dweight: weight, dbias: weight }),
  kernel: kernels.layerNormBackward,
  optionalOutputs: ['dbias'],
  precision: { alike: ['dy', 'x', 'residual', 'dx'] },
  gradient: 'notDifferentiable',
  fusions: { residual: { operand: 'residual', output: 'dx' } },
});

/**
 * (x − mean) / √(var + eps) · weight + bias over the last axis, biased variance.
 *
 * @param x - (…, D) with at least two axes.
 * @param weight - (D).
 * @param bias - (D); none for null.
 * @param options - `eps`, default 1e-6.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function layerNorm(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null,
  options: { readonly eps?: number } = {},
): Tensor {
  return layerNormForward({ x, weight, bias }, { eps: options.eps ?? 1e-6 }).y;
}

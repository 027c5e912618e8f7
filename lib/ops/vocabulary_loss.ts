// Cross-entropy over a vocabulary, in blocks: the logits of all rows and words never exist at once.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

interface Operands {
  hidden: Tensor;
  weight: Tensor;
  bias: Tensor;
  labels: Tensor;
  rowWeights: Tensor;
}

const scalar = { dtype: 'float32', shape: [1] } as const;

const vocabularyLossForward = op<Operands, 'loss' | 'lse' | 'rowLosses', object>({
  name: 'vocabulary_loss',
  infer: ({ hidden, weight, bias, labels, rowWeights }) => {
    const [rows = 0, width = 0] = expectRank('vocabularyLoss', 'hidden', hidden, ['N', 'D']);
    const [words = 0] = expectRank('vocabularyLoss', 'weight', weight, ['V', 'D']);
    expectSpec('vocabularyLoss', 'weight', weight, { dtype: 'float32', shape: [words, width] });
    expectSpec('vocabularyLoss', 'bias', bias, { dtype: 'float32', shape: [words] });
    expectSpec('vocabularyLoss', 'labels', labels, { dtype: 'int32', shape: [rows] });
    expectSpec('vocabularyLoss', 'rowWeights', rowWeights, { dtype: 'float32', shape: [rows] });
    const perRow = { dtype: 'float32', shape: [rows] } as const;
    return { loss: scalar, lse: perRow, rowLosses: perRow };
  },
  kernel: kernels.vocabularyLossForward,
  optionalOutputs: ['rowLosses'],
  precision: 'float32',
  gradient: ({ inputs, outputs: { lse }, gradients: { loss: dloss, ...others } }) => {
    if (Object.keys(others).length > 0) {
      throw new SiglipError(
        'ERR_NOT_DIFFERENTIABLE',
        'gradient: what it is taken of must not depend on rowLosses of vocabularyLoss, got a path through it',
      );
    }
    if (dloss === undefined) return {};
    const { dhidden, dweight, dbias } = vocabularyLossBackward({ dloss, ...inputs, lse }, {});
    return { hidden: dhidden, weight: dweight, bias: dbias };
  },
});

const vocabularyLossBackward = op<
  { dloss: Tensor; lse: Tensor } & Operands,
  'dhidden' | 'dweight' | 'dbias',
  object
>({
  name: 'vocabulary_loss_backward',
  infer: ({ hidden, weight, bias }) => ({ dhidden: hidden, dweight: weight, dbias: bias }),
  kernel: kernels.vocabularyLossBackward,
  optionalOutputs: ['dhidden', 'dweight', 'dbias'],
  precision: 'float32',
  gradient: 'notDifferentiable',
});

/**
 * Σ_n rowWeights_n (log Σ_v exp(z_nv) − z_n,label) with z = hidden · weightᵀ + bias. A row of weight 0
 * costs nothing, and nothing of it is looked at. Labels and weights get no gradient.
 *
 * @param hidden - (N, D).
 * @param weight - (V, D).
 * @param bias - (V).
 * @param labels - (N) int32; one outside of [0, V) in a row that counts makes the run fail with
 * ERR_ARGUMENT.
 * @param rowWeights - (N).
 * @returns the sum (1), and its terms, `rowLosses` (N), through which no gradient goes.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function vocabularyLoss(
  hidden: Tensor,
  weight: Tensor,
  bias: Tensor,
  labels: Tensor,
  rowWeights: Tensor,
): { readonly loss: Tensor; readonly rowLosses: Tensor } {
  return vocabularyLossForward({ hidden, weight, bias, labels, rowWeights }, {});
}

// The sigmoid contrastive loss (SigLIP, arXiv 2303.15343 §3.2), in tiles: B × B never exists.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, isOnes, op } from '../graph';
import { kernels } from '../native/kernels';

interface Block {
  readonly offset: number;
  readonly batch: number;
}

interface Embeddings {
  images: Tensor;
  texts: Tensor;
  logitScale: Tensor;
  logitBias: Tensor;
}

const scalar = { dtype: 'float32', shape: [1] } as const;

// The gradients come with the loss, from the same logits, where somebody reads them.
const sigmoidLossForward = op<
  Embeddings,
  'loss' | 'dimages' | 'dtexts' | 'dlogitScale' | 'dlogitBias',
  Block
>({
  name: 'sigmoid_loss',
  infer: ({ images, texts, logitScale, logitBias }) => {
    const [, width = 0] = expectRank('sigmoidLoss', 'images', images, ['R', 'E']);
    const [columns = 0] = expectRank('sigmoidLoss', 'texts', texts, ['C', 'E']);
    expectSpec('sigmoidLoss', 'texts', texts, { dtype: 'float32', shape: [columns, width] });
    expectSpec('sigmoidLoss', 'logitScale', logitScale, scalar);
    expectSpec('sigmoidLoss', 'logitBias', logitBias, scalar);
    return {
      loss: scalar,
      dimages: { dtype: 'float32', shape: images.shape },
      dtexts: { dtype: 'float32', shape: texts.shape },
      dlogitScale: scalar,
      dlogitBias: scalar,
    };
  },
  kernel: kernels.sigmoidLossForward,
  precision: { narrow: ['images', 'texts'] },
  optionalOutputs: ['dimages', 'dtexts', 'dlogitScale', 'dlogitBias'],
  gradient: ({ outputs, gradients: { loss: dloss, ...others } }) => {
    if (Object.keys(others).length > 0) {
      throw new SiglipError(
        'ERR_NOT_DIFFERENTIABLE',
        'gradient: the gradient of sigmoidLoss must not lie between the loss and what it is differentiated by, got a path through it',
      );
    }
    if (dloss === undefined) return {};
    return {
      images: timesUpstream(outputs.dimages, dloss),
      texts: timesUpstream(outputs.dtexts, dloss),
      logitScale: timesUpstream(outputs.dlogitScale, dloss),
      logitBias: timesUpstream(outputs.dlogitBias, dloss),
    };
  },
});

const sigmoidLossBackward = op<{ x: Tensor; factor: Tensor }, 'y', object>({
  name: 'sigmoid_loss_backward',
  infer: ({ x }) => ({ y: x }),
  kernel: kernels.scaleForward,
  precision: 'float32',
  gradient: 'notDifferentiable',
});

function timesUpstream(gradient: Tensor, dloss: Tensor): Tensor {
  if (isOnes(dloss)) return gradient;
  return sigmoidLossBackward({ x: gradient, factor: dloss }, {}).y;
}

/**
 * (1/batch) Σ_ij softplus(−z_ij S_ij) with S = exp(logitScale) · images · textsᵀ + logitBias and
 * z_ij = 1 where j = i + offset, −1 elsewhere. Peak memory is linear in the number of rows.
 *
 * @param images - (R, E), unit rows.
 * @param texts - (C, E), unit rows.
 * @param logitScale - (1), the logarithm of the scale.
 * @param logitBias - (1).
 * @param options - `offset`, default 0: where the matching texts begin (a block of a larger batch;
 * outside of the block every pair is a negative). `batch`, default R: the global number of pairs.
 * @returns (1).
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT.
 */
export function sigmoidLoss(
  images: Tensor,
  texts: Tensor,
  logitScale: Tensor,
  logitBias: Tensor,
  options: { readonly offset?: number; readonly batch?: number } = {},
): Tensor {
  const { offset = 0, batch = extent(images, 0) } = options;
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(batch) || batch < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `sigmoidLoss: offset and batch must be integers, batch positive, got ${String(offset)} and ${String(batch)}`,
    );
  }
  return sigmoidLossForward({ images, texts, logitScale, logitBias }, { offset, batch }).loss;
}

// The sigmoid contrastive loss of a two-tower batch (SigLIP, arXiv 2303.15343 §3.2; big_vision
// trainers/proj/image_text/siglip.py):
//
//   S = exp(t) · X Yᵀ + b,  z_ij = 1 on the diagonal, −1 elsewhere
//   L = (1/B) Σ_i Σ_j softplus(−z_ij S_ij)
//
// with unit rows X (images) and Y (texts). The sum runs over all B² pairs and is divided by B, the
// number of pairs in the whole (global) batch. At the published start t = ln 10, b = −10 and with
// unrelated embeddings (x·y = 0) the loss is softplus(10) + (B − 1) · softplus(−10): 10.00018 for
// B = 4, 10.01162 for 256, 10.04649 for 1,024, 11.48763 for 32,768.
import type { Tensor } from '../graph';
import { scope } from '../graph';
import type { TwoTowersOutput, TwoTowersParameters } from '../model';
import * as ops from '../ops';

export interface SigmoidLossOptions {
  /**
   * Column of the text that matches the first image, default 0; a block of a larger batch. Where it
   * points outside of the block every pair is a negative.
   */
  readonly offset?: number;
  /** Pairs in the global batch, by which the sum is divided. Default: the rows of images. */
  readonly batch?: number;
}

/**
 * The loss of a batch of pairs, as a scalar (1); see the head of the file for the formula.
 *
 * @throws ERR_SHAPE, ERR_ARGUMENT
 * @example
 * const output = twoTowers(parameters, config, batch);
 * const gradients = gradient(sigmoidLoss(output, parameters), parameters);
 */
export function sigmoidLoss(
  { vision, text }: TwoTowersOutput,
  { logitScale, logitBias }: Pick<TwoTowersParameters<Tensor>, 'logitScale' | 'logitBias'>,
  options: SigmoidLossOptions = {},
): Tensor {
  return scope('loss', () =>
    ops.sigmoidLoss(vision.embedding, text.embedding, logitScale, logitBias, options),
  );
}

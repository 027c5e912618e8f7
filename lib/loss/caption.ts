// The loss of a captioning decoder (big_vision utils.py, weighted_softmax_xent):
//
//   L = (1/B) Σ_b (Σ_t w_bt · crossEntropy(z_bt, label_bt)) / Σ_t w_bt
//
// Position t predicts label t. An example without weighted tokens counts 0 and stays in the mean. Logits
// are made in blocks, so that (B, T, V) never exists, and tokens of weight 0 cost nothing.
import type { Tensor } from '../graph';
import { expectRank, expectSpec, scope } from '../graph';
import type { LinearParameters } from '../nn';
import * as ops from '../ops';

/** What is to be predicted. */
export interface CaptionTargets<Leaf> {
  /** (B, T) int32 */
  readonly labels: Leaf;
  /** (B, T), not negative; 0 for what is not to be learned: padding, the prefix of a task. */
  readonly weights: Leaf;
}

export interface CaptionLossOptions {
  /**
   * By what the sum over examples is divided, default B. The three targets of LocCa as 3 B sequences,
   * each term of weight 1 as in SigLIP 2 (which leaves sum or mean open), take the number of images.
   */
  readonly examples?: number;
}

/**
 * The loss of a batch, as a scalar (1).
 *
 * @param hidden - (B, T, D), from `decoder`
 * @param head - the decoder's
 * @throws ERR_SHAPE, ERR_DTYPE
 */
export function captionLoss(
  hidden: Tensor,
  { weight, bias }: LinearParameters<Tensor>,
  { labels, weights }: CaptionTargets<Tensor>,
  options: CaptionLossOptions = {},
): Tensor {
  return scope('captionLoss', () => {
    const [batch = 0, length = 0, width = 0] = expectRank('captionLoss', 'hidden', hidden, [
      'B',
      'T',
      'D',
    ]);
    expectSpec('captionLoss', 'labels', labels, { dtype: 'int32', shape: [batch, length] });
    expectSpec('captionLoss', 'weights', weights, { dtype: 'float32', shape: [batch, length] });
    const rows = batch * length;
    const { loss } = ops.vocabularyLoss(
      ops.reshape(hidden, [rows, width]),
      weight,
      bias,
      ops.reshape(labels, [rows]),
      ops.reshape(ops.rowShares(weights), [rows]),
    );
    return ops.scaleBy(loss, 1 / (options.examples ?? batch));
  });
}

export { accumulate } from './accumulate';
export type { AdamConstants } from './adam';
export { adam } from './adam';
export { add } from './add';
export { addRow } from './add_row';
export type { AttentionScope, DecoderScope, Heads, Limits } from './attention';
export {
  attention,
  joinedAttention,
  joinedBackward,
  joinedForward,
  narrowAttention,
} from './attention';
export { attentionPool } from './attention_pool';
export { cast } from './cast';
export { dot } from './dot';
export { embedding } from './embedding';
export { gelu } from './gelu';
export { globalNorm, rootSum } from './global_norm';
export { groupMatmul } from './group_matmul';
export { joinRows, rowRange } from './join_rows';
export { l2Normalize } from './l2_normalize';
export { layerNorm } from './layer_norm';
export type { DrawOptions, ScoredModel, ScoreLoss, ScoreWeights } from './learnability';
export {
  conditionScores,
  drawExamples,
  drawInput,
  learnability,
  pairLogSums,
  scoreLosses,
  scoreWeights,
} from './learnability';
export type { LinearEpilogue, PackedLinear, Precision } from './linear';
export {
  linear,
  linearBackwardInput,
  linearBackwardWeight,
  linearForward,
  packedLinear,
  packLinears,
  precisions,
} from './linear';
export { maskTokens } from './mask_tokens';
export { matmul } from './matmul';
export { movingAverage } from './moving_average';
export { normalizePixels } from './normalize_pixels';
export { patchify } from './patchify';
export { positionResize } from './position_resize';
export type { PrototypeLossOperands } from './prototype_loss';
export { prototypeLoss, sinkhornCentre } from './prototype_loss';
export { repeatRow } from './repeat_row';
export { reshape } from './reshape';
export { rowShares } from './row_shares';
export { scale, scaleBy } from './scale';
export { sigmoidLoss } from './sigmoid_loss';
export { sumRows } from './sum_rows';
export { tokenMean, tokenSelect, tokenWrite } from './token';
export { vocabularyLoss } from './vocabulary_loss';

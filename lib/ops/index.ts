export { accumulate } from './accumulate';
export type { AdamConstants } from './adam';
export { adam } from './adam';
export { add } from './add';
export { addRow } from './add_row';
export type { AttentionScope } from './attention';
export { attention } from './attention';
export { attentionPool } from './attention_pool';
export { dot } from './dot';
export { embedding } from './embedding';
export { gelu } from './gelu';
export { globalNorm, rootSum } from './global_norm';
export { groupMatmul } from './group_matmul';
export { l2Normalize } from './l2_normalize';
export { layerNorm } from './layer_norm';
export {
  linear,
  linearBfloat16,
  linearBfloat16Bytes,
  linearInt8,
  linearInt8Bytes,
  packLinearBfloat16,
  packLinearInt8,
} from './linear';
export { matmul } from './matmul';
export { normalizePixels } from './normalize_pixels';
export { patchify } from './patchify';
export { positionResize } from './position_resize';
export { repeatRow } from './repeat_row';
export { reshape } from './reshape';
export { scale, scaleBy } from './scale';
export { sigmoidLoss } from './sigmoid_loss';
export { sumRows } from './sum_rows';
export { tokenMean, tokenSelect } from './token';

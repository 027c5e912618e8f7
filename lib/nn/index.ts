export type { AttentionOptions, AttentionParameters } from './attention';
export { attention, pooledAttention } from './attention';
export type { BlockOptions, BlockParameters } from './block';
export { block, blockAtToken } from './block';
export type {
  DecoderBlockOptions,
  DecoderBlockParameters,
  KeysAndValues,
  MemoryScope,
} from './decoder_block';
export { decoderBlock, keysAndValues } from './decoder_block';
export type { EncoderOptions, EncoderParameters } from './encoder';
export { encoder } from './encoder';
export { joinProjections, rewritesFor } from './join_projections';
export type { LayerNormParameters } from './layer_norm';
export { layerNorm } from './layer_norm';
export type { LinearParameters, OptionalBias } from './linear';
export { linear } from './linear';
export type { MapHeadParameters } from './map_head';
export { mapHead } from './map_head';
export type { MlpParameters } from './mlp';
export { mlp } from './mlp';
export { imagePatchEmbedding, rowPatchEmbedding } from './patch_embedding';
export { addPositions, addPositionsOfSide, addResizedPositions } from './positions';
export type { ProjectionHeadOptions, ProjectionHeadParameters } from './projection_head';
export { projectionFeatures, unitPrototypes } from './projection_head';

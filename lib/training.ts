// `siglip2/training`: what a training script needs, from models, batches and losses to recipes.
//
// @example
// import { publishedRecipe, runRecipe } from 'siglip2/training';
export * from './train';
export * from './data';
export * from './comm';
export { DeviceArray, resolveDevice } from './array';
export type { Device, HostArray, Spec } from './array';
export { disposeArrays, flatten, mapTree } from './graph';
export { normalizationTable } from './image';
export type { JointSelectionOptions } from './loss';
export {
  captionLoss,
  distillationSizeFactors,
  distillationWeights,
  jointSelection,
  localLoss,
  maskedLoss,
  sigmoidLoss,
} from './loss';
export type { ModelConfig, VariantName, VariantOptions } from './model';
export { adaptModel, checkConfig, parameterCount, parameterTable, variant } from './model';
export { BytePairTokenizer, loadTokenizer, saveTokenizer, TokenizerSubset } from './text';
export type { Tokenizer } from './text';
export {
  defaultPreprocessor,
  loadCheckpoint,
  saveCheckpoint,
  saveDecoder,
  writeSafetensors,
} from './weights';

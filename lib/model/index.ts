export type {
  Adaptation,
  AdaptationOptions,
  AdaptationTarget,
  AdaptedMoments,
  PositionMethod,
} from './adaptation';
export { adaptModel, patchAxis, positionMethods, resizePositions } from './adaptation';
export type {
  FixedVisionConfig,
  ModelConfig,
  NaflexVisionConfig,
  TextConfig,
  TowerConfig,
  VisionConfig,
} from './config';
export { checkConfig, gridSide } from './config';
export type { Initializer, LeafBuilder, ParameterSpec } from './branch';
export { initialValues, parameterCount } from './branch';
export type {
  InitialLogits,
  TextParameters,
  TwoTowersParameters,
  VisionParameters,
} from './parameters';
export {
  initialize,
  parameterTable,
  textParameters,
  twoTowersParameters,
  visionParameters,
} from './parameters';
export type {
  DistillationHeads,
  SelfDistillationConfig,
  SelfDistillationParameters,
  TeacherParameters,
} from './self_distillation';
export {
  localViewSize,
  patchHeadOf,
  selfDistillationDefaults,
  selfDistillationParameters,
  TEACHER_MOMENTUM,
  teacherPart,
  updateTeacher,
} from './self_distillation';
export type { TextOutput, TextTowerOptions } from './text_tower';
export { textInputSpec, textTower } from './text_tower';
export type { TwoTowersInput, TwoTowersOutput } from './two_towers';
export { twoTowers, twoTowersInputSpecs } from './two_towers';
export type { Release } from './released';
export { releaseConfig, releases } from './released';
export type { VariantName, VariantOptions } from './variants';
export { NAFLEX_GRID, TEXT_LENGTH, variant, VOCABULARY } from './variants';
export type {
  ImageInput,
  MaskedPatches,
  PackedInput,
  PatchInput,
  PixelInput,
  VisionInput,
  VisionOutput,
  VisionTowerOptions,
} from './vision_tower';
export {
  EMBEDDING_EPS,
  normalizedInput,
  packedInputSpecs,
  packedRows,
  pixelInputSpecs,
  visionInputSpecs,
  visionTower,
} from './vision_tower';
export type {
  DecoderConfig,
  DecoderInput,
  DecoderMemory,
  DecoderOptions,
  DecoderParameters,
} from './decoder';
export {
  checkDecoderConfig,
  decoder,
  decoderConfig,
  decoderInputSpecs,
  decoderParameters,
  decoderTable,
} from './decoder';
export type { CaptionFormat, CaptionTask } from './caption_format';
export { boxSteps, captionTasks, captionVocabulary, defaultCaptionFormat } from './caption_format';
export type { DecoderCache, DecoderStepInput } from './decoder_step';
export { decoderStep, decoderStepSpecs, memoryCache } from './decoder_step';

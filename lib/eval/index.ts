export type { DenseExample, DenseProbeOptions, DenseTokens } from './dense_probe';
export { DenseProbe, evaluateDenseProbe, trainDenseProbe } from './dense_probe';
export type {
  EmojiConfusion,
  EmojiEmbedder,
  EmojiLanguageKind,
  EmojiLanguageResult,
  EmojiReport,
  EmojiTask,
} from './emoji';
export { evaluateEmoji, pixelBaseline } from './emoji';
export type { PixelNeighbourResult } from './pixel_neighbour';
export { pixelNeighbour } from './pixel_neighbour';
export {
  canonicalClassName,
  canonicalizeText,
  clipBestTemplates,
  clipPaperTemplates,
  promptOf,
} from './prompts';
export type { Proportion } from './proportion';
export { meanProportion, wilson } from './proportion';
export type { Recall, RetrievalResult } from './retrieval';
export { retrieval } from './retrieval';
export type { FewShotOptions, FewShotResult, LabelledRows } from './ridge_probe';
export { fewShot, RIDGE, RidgeProbe, ridgeProbe, ridgeProbes } from './ridge_probe';
export type { Rows } from './scores';
export { forEachScores, rankOf, rowCount } from './scores';
export { SegmentationScore } from './segmentation_score';
export type { Confusion, ZeroShotResult } from './zero_shot';
export { classEmbeddings, zeroShot } from './zero_shot';

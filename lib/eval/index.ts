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
export type { Proportion } from './proportion';
export { meanProportion, wilson } from './proportion';
export type { Recall, RetrievalResult } from './retrieval';
export { retrieval } from './retrieval';
export type { Rows } from './scores';
export { forEachScores, rankOf, rowCount } from './scores';
export type { Confusion, ZeroShotResult } from './zero_shot';
export { classEmbeddings, zeroShot } from './zero_shot';

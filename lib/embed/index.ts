export type { PreparedImage } from './collate';
export type { Caption, CaptionOptions, Grounding } from './captioner';
export { Captioner } from './captioner';
export type {
  CloseOptions,
  EmbedderCallOptions,
  EmbedderImageOptions,
  EmbedderOptions,
  EmbedderStats,
} from './embedder';
export { Embedder } from './embedder';
export type { EmbedImage } from './image_input';
export type { LaneStats } from './lane';
export type {
  Classification,
  ClassifyOptions,
  EmbedImagesOptions,
  EmbedOptions,
  ImageTokens,
  LoadOptions,
} from './siglip2';
export { Siglip2 } from './siglip2';
export type { TowerChoice } from '../weights';
export type { SearchOptions } from './search';
export type { EmbedText } from './text_input';

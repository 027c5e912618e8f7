export type {
  Classification,
  ClassifyOptions,
  EmbedImage,
  EmbedImagesOptions,
  EmbedOptions,
  EmbedText,
  ImageTokens,
  LoadOptions,
} from './siglip2';
export { Siglip2 } from './siglip2';

export type {
  Classification,
  ClassifyOptions,
  EmbedImage,
  EmbedImagesOptions,
  EmbedOptions,
  EmbedText,
  ImageTokens,
  LoadOptions,
} from './embed';
export { Siglip2 } from './embed';
export type { SiglipErrorCode } from './errors';
export { SiglipError } from './errors';

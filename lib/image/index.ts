export type { DecodeOptions, ImageInput } from './decode';
export { decodeImage } from './decode';
export type { PatchGrid } from './naflex_grid';
export { naflexGrid } from './naflex_grid';
export { normalizationTable } from './normalization';
export type { Colour, Pixels, RawImage, RgbImage } from './pixels';
export type {
  FixedBatch,
  ImageProcessor,
  NaflexBatch,
  PackedBatch,
  PreparedImage,
  PrepareNaflexOptions,
  PrepareOptions,
} from './processor';
export { createProcessor, FixedProcessor, NaflexProcessor } from './processor';
export { resizeImage } from './resize';
export type { ColourChange, ColourJitter, Crop, ImageView, ViewedImage } from './views';
export { renderViews } from './views';

export { mapAhead } from './ahead';
export type { CorpusOptions } from './corpus';
export { openCorpus } from './corpus';
export { digest } from './fingerprint';
export { imageFiles } from './image_files';
export type { FieldNames } from './record';
export type { ImageReference, Row, RowFailure, Source, What } from './row';
export { needsOf } from './row';

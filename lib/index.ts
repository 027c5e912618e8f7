export type { Device } from './array';
export type {
  BulkModel,
  BulkModelOptions,
  BulkProgress,
  BulkSummary,
  EmbedCorpusOptions,
  MergeOptions,
  MergeSummary,
} from './bulk';
export {
  bulkModel,
  embedCorpus,
  mergeShards,
  modelFingerprint,
  parseShard,
  towersOf,
} from './bulk';
export type { CorpusOptions } from './corpus';
export { openCorpus } from './corpus';
export type {
  CorpusBatch,
  CorpusBatchOptions,
  DataNotice,
  Mixture,
  PairCorpus,
  PairFields,
  Region,
  RowCondition,
  Stream,
  StreamState,
  WeightedStream,
} from './data';
export { openCorpusBatches, pageLanguageMixture, readMixture } from './data';
export * from './embed';
export type { SiglipErrorCode } from './errors';
export { SiglipError } from './errors';
export type {
  CheckpointSource,
  DownloadedCheckpoint,
  DownloadedFile,
  DownloadProgress,
  HubOptions,
} from './weights';
export { downloadCheckpoint, resolveCheckpoint } from './weights';

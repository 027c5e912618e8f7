export type { Device } from './array';
export type {
  BulkModel,
  BulkModelOptions,
  BulkProgress,
  BulkSummary,
  Candidate,
  Candidates,
  CorpusCandidatesOptions,
  CuratedPart,
  CuratedRow,
  CurateOptions,
  CurateToFileOptions,
  CurationProgress,
  CurationSummary,
  EmbedCorpusOptions,
  MergeOptions,
  MergeSummary,
  ScoredFile,
  ScoringModel,
} from './bulk';
export {
  bulkModel,
  copyRows,
  corpusCandidates,
  curate,
  curateToFile,
  embedCorpus,
  embeddingCandidates,
  mergeShards,
  modelFingerprint,
  parseShard,
  scoringModel,
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
  ConvertOptions,
  DownloadedCheckpoint,
  DownloadedFile,
  DownloadProgress,
  HubOptions,
} from './weights';
export { convertCheckpoint, downloadCheckpoint, resolveCheckpoint } from './weights';

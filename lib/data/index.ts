export type { AugmentOptions } from './augment';
export { augment, checkAugment } from './augment';
export type { Batch, BatchOptions, PackedImages, PairBatchesInput } from './batches';
export { BatchStream, openPairBatches, pairBatchesModule } from './batches';
export type {
  Bias,
  BiasExample,
  BiasReport,
  ClipTheBiasOptions,
  ClipTheBiasState,
} from './clip_the_bias';
export { biasReport, ClipTheBias, keeps } from './clip_the_bias';
export type {
  CorpusBatch,
  CorpusBatchOptions,
  DataNotice,
  OpenCorpusBatches,
} from './corpus_batches';
export { CorpusBatchStream, openCorpusBatches } from './corpus_batches';
export type { CorpusStageOptions } from './corpus_stage';
export { openCorpusStage } from './corpus_stage';
export type {
  CompleteStyle,
  Emoji,
  EmojiGroup,
  EmojiNames,
  EmojiPackageOptions,
  EmojiStyle,
} from './emoji';
export {
  completeStyles,
  emojiGroups,
  emojiPackages,
  emojiStyles,
  partialStyles,
  readEmoji,
  readEmojiNames,
} from './emoji';
export type { EmojiImages, EmojiPart, EmojiTexts } from './emoji_data';
export { EmojiData } from './emoji_data';
export type { DrawingOptions } from './emoji_drawings';
export { emojiCacheFolder, emojiDrawings } from './emoji_drawings';
export type { EmojiPreset, EmojiPresetName, UnseenLocales } from './emoji_presets';
export { emojiLocales, emojiPreset, emojiPresets } from './emoji_presets';
export { emojiSource } from './emoji_source';
export type { EmojiSplit } from './emoji_split';
export { splitEmoji } from './emoji_split';
export type { WholeBatch } from './naflex_batches';
export { NaflexBatchStream } from './naflex_batches';
export type { NaflexLength, NaflexLengthOptions } from './naflex_lengths';
export { NaflexLengths, naflexLengths } from './naflex_lengths';
export type { Mixture, PairCorpus, PairFields, RowCondition, WeightedStream } from './mixture';
export { checkMixture, pageLanguageMixture, readMixture } from './mixture';
export type { Box, PairRow, Region } from './pair_row';
export type { DrawnPair, PairStreamOptions } from './pair_stream';
export { PairStream } from './pair_stream';
export type { PairTable, WeightedText } from './pair_table';
export { PairSource, pairTable } from './pair_table';
export type { PhotoCorpusOptions } from './photo_corpus';
export { writePhotoCorpus } from './photo_corpus';
export type { BatchParts, BatchViews, ComposedParts, PartsDraw, PartsExample } from './parts';
export { composeParts } from './parts';
export type { PrefetchOptions } from './prefetch';
export { Prefetch } from './prefetch';
export type { JoinRegionsOptions, RegionSummary, WriteRegionQueriesOptions } from './region_corpus';
export { joinRegions, writeRegionQueries } from './region_corpus';
export type { Detections, RegionFilter } from './region_detections';
export { RegionDetections } from './region_detections';
export type { RegionQueryOptions } from './region_queries';
export { labelSpace, regionQueries } from './region_queries';
export type { SamplerState } from './sampler';
export { ConceptSampler } from './sampler';
export type { Example, Source } from './source';
export type { StageBatchesInput, StageBatchOptions } from './stage_batches';
export { openStageBatches, StageBatchStream, stageBatchesModule } from './stage_batches';
export type { Stream, StreamState } from './stream';
export type { WorkerPoolOptions } from './worker_pool';
export { WorkerPool } from './worker_pool';
export type { MaskedBatch, PatchGridSize, PatchMaskOptions } from './patch_mask';
export { maskBatch, patchMask } from './patch_mask';
export type { ViewKind, ViewOptions } from './views';
export { drawView, viewDefaults } from './views';

export { adaptedSources, imageSizeAdaptation } from './adapted';
export type { HostModel, HostTensor, LoadBigVisionOptions } from './big_vision';
export { loadBigVision, readBigVision, toBigVision } from './big_vision';
export {
  bigVisionDecoderName,
  bigVisionDecoderTensors,
  decoderFromBigVision,
} from './big_vision_decoder';
export { bigVisionName } from './big_vision_names';
export { formatConfig, parseConfig } from './config';
export type { ConvertOptions } from './convert';
export { convertCheckpoint } from './convert';
export type { OpenDecoder, SavedDecoder } from './decoder_files';
export { hasDecoder, openDecoder, saveDecoder } from './decoder_files';
export type {
  CheckpointSource,
  DownloadedCheckpoint,
  DownloadedFile,
  DownloadProgress,
  HubOptions,
} from './hub';
export { downloadCheckpoint, hubCacheDir, resolveCheckpoint } from './hub';
export type {
  Checkpoint,
  LoadCheckpointOptions,
  LoadedParameters,
  OpenCheckpoint,
  SaveCheckpointOptions,
  TowerChoice,
} from './hugging_face';
export {
  loadCheckpoint,
  loadParameters,
  openCheckpoint,
  readModelConfig,
  readPreprocessor,
  saveCheckpoint,
} from './hugging_face';
export { huggingFaceName, huggingFaceTensors } from './hugging_face_names';
export { NpzFile, openNpz } from './npz';
export type { StoredDtype } from './number_formats';
export type {
  FixedPreprocessor,
  ImageBackend,
  NaflexPreprocessor,
  Normalization,
  Preprocessor,
  Resample,
} from './preprocessor_config';
export {
  adaptedPreprocessor,
  defaultPreprocessor,
  formatPreprocessor,
  parsePreprocessor,
} from './preprocessor_config';
export type { StoredTensor, TensorSource, WriteOptions } from './safetensors';
export { openSafetensors, SafetensorsFile, writeSafetensors } from './safetensors';
export type { SafetensorsDtype, TensorInfo } from './safetensors_header';
export { openWeights, ShardedWeights } from './shards';
export { publishTogether, StagedFiles } from './staged_files';
export type { LoadOptions, Weights } from './weights';
export { concatenate } from './weights';

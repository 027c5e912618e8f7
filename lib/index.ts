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

export type { DownloadedCheckpoint, DownloadedFile } from './download';
export { downloadCheckpoint } from './download';
export type { DownloadProgress, HubOptions } from './environment';
export { hubCacheDir } from './environment';
export type { CheckpointSource } from './source';
export { resolveCheckpoint } from './source';

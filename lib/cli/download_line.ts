// The live line of a download.
import type { DownloadProgress } from '../weights';
import { bytesText } from './bytes';
import { Progress } from './progress';

/**
 * A listener for `onProgress` that keeps one line on standard error: share, bytes, rate, time left,
 * file. Nothing is shown when nothing is fetched.
 */
export function downloadLine(stream?: NodeJS.WritableStream): (p: DownloadProgress) => void {
  let line: Progress | undefined;
  let total = -1;
  let isDone = false;
  return (progress) => {
    // An index is fetched before it is known which shards follow.
    if (line === undefined || total !== progress.total) {
      ({ total } = progress);
      line = new Progress({ total, from: progress.bytes, unit: '', format: bytesText, stream });
      isDone = false;
    }
    // A finished line is finished.
    if (isDone) return;
    isDone = progress.bytes >= total;
    line.update(progress.bytes, progress.file);
  };
}

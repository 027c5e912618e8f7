// What the cache refuses, with what to do about it.
import type { SiglipError } from '../../errors';
import { codeOf, unwritable } from '../file_errors';

/** ERR_FILE for a cache that refuses to be written. */
export function unwritableCache(path: string, error: unknown): SiglipError {
  const remedies: Readonly<Record<string, string>> = {
    ENOSPC: 'free space on this disk',
    EDQUOT: 'free space within your quota',
  };
  const remedy = remedies[codeOf(error)] ?? 'make it writable';
  return unwritable(path, error, `${remedy}, or choose another cache with HF_HUB_CACHE`);
}

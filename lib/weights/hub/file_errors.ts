// Refusals of the file system, in the form of this library's errors.
import { SiglipError } from '../../errors';

/** The code of an error of the file system or of the network, `''` for anything else. */
export function codeOf(error: unknown): string {
  if (typeof error !== 'object' || error === null || !('code' in error)) return '';
  return typeof error.code === 'string' ? error.code : '';
}

/** ERR_FILE for a cache that refuses to be written, with what to do about the reason. */
export function unwritable(path: string, error: unknown): SiglipError {
  const remedies: Readonly<Record<string, string>> = {
    ENOSPC: 'free space on this disk',
    EDQUOT: 'free space within your quota',
  };
  const code = codeOf(error);
  const remedy = remedies[code] ?? 'make it writable';
  return unusable(path, 'writable', error, `${remedy}, or choose another cache with HF_HUB_CACHE`);
}

/** ERR_FILE for a file of the cache that cannot be read. */
export function unreadable(path: string, error: unknown): SiglipError {
  return unusable(path, 'readable', error);
}

function unusable(path: string, what: string, error: unknown, remedy?: string): SiglipError {
  if (error instanceof SiglipError) return error;
  const reason = error instanceof Error ? error.message : String(error);
  return new SiglipError(
    'ERR_FILE',
    `${path}: file must be ${what}, got ${reason}${remedy === undefined ? '' : `\nto do: ${remedy}.`}`,
    { cause: error },
  );
}

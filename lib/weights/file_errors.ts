// What the file system refuses, in the form of this library's errors. By form and not by class: an
// error of Node may come from another realm.
import { SiglipError } from '../errors';

/** The code of an error of the file system or of the network, `''` for anything else. */
export function codeOf(error: unknown): string {
  if (typeof error !== 'object' || error === null || !('code' in error)) return '';
  return typeof error.code === 'string' ? error.code : '';
}

/** The message of whatever was thrown. */
export function reasonOf(error: unknown): string {
  const isError = typeof error === 'object' && error !== null && 'message' in error;
  return String(isError ? error.message : error);
}

/** Whether an error of the file system says that there is no such file. */
export function isMissing(error: unknown): boolean {
  return codeOf(error) === 'ENOENT';
}

/** ERR_FILE for a path that cannot be read; a SiglipError stays as it is. */
export function unreadable(path: string, error: unknown): SiglipError {
  return refused(path, 'readable', error);
}

/** ERR_FILE for a path that cannot be written; a SiglipError stays as it is. */
export function unwritable(path: string, error: unknown, remedy?: string): SiglipError {
  return refused(path, 'writable', error, remedy);
}

function refused(path: string, what: string, error: unknown, remedy?: string): SiglipError {
  if (error instanceof SiglipError) return error;
  const toDo = remedy === undefined ? '' : `\nto do: ${remedy}.`;
  return new SiglipError(
    'ERR_FILE',
    `${path}: file must be ${what}, got ${reasonOf(error)}${toDo}`,
    { cause: error },
  );
}

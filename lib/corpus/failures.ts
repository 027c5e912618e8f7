// Failures of rows and of files in the one form of this library's errors.
import { SiglipError } from '../errors';
import { reasonOf, unreadable } from '../weights/file_errors';
import type { Row, RowFailure } from './row';

/** Whether a system call was refused. */
export function isOfSystem(error: unknown): boolean {
  return typeof error === 'object' && error !== null && 'syscall' in error;
}

/**
 * An ERR_DATA for a container whose bytes do not make sense; ERR_FILE when the system did not give
 * them, which another start may mend.
 */
export function damaged(path: string, expected: string, cause: unknown): SiglipError {
  if (cause instanceof SiglipError) return cause;
  if (isOfSystem(cause)) return unreadable(path, cause);
  return new SiglipError('ERR_DATA', `${path}: file must be ${expected}, got ${reasonOf(cause)}`, {
    cause,
  });
}

/** What a row reports of an error; what is no SiglipError is a mistake of this program. */
export function failureOf(error: unknown): RowFailure {
  if (error instanceof SiglipError) return { code: error.code, reason: error.message };
  throw error;
}

/** The row that stands for what is lost of a source from here on. @throws what is no damage */
export function lostRest(index: number, id: string, error: SiglipError): Row {
  if (error.code !== 'ERR_DATA') throw error;
  const reason = `${error.message}; the rest of it is lost`;
  return { index, id, failure: { code: error.code, reason }, through: 1 };
}

/** A row that holds something else than it must. */
export function unfit(reason: string): RowFailure {
  return { code: 'ERR_DATA', reason };
}

// JSON written by people and by other programs: read with a size limit, checked by a schema, and
// refused in the one form of this library's errors.
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { z } from 'zod';
import type { SiglipErrorCode } from '../errors';
import { SiglipError } from '../errors';
import { isMissing, reasonOf, unreadable } from './file_errors';

// Configuration files have a few kilobytes; a shard index a few hundred.
const MAX_BYTES = 64 * 1024 * 1024;

/**
 * Reads a JSON file of a model folder.
 *
 * @returns undefined when there is no such file
 * @throws SiglipError ERR_FILE when it cannot be read, `code` when it is not JSON
 */
export async function readJsonFile(
  folder: string,
  name: string,
  code: SiglipErrorCode,
): Promise<unknown> {
  const path = join(folder, name);
  const text = await readSmallFile(path);
  return text === undefined ? undefined : parseJson(path, text, code);
}

/** @throws SiglipError with `code` when `text` is not JSON */
export function parseJson(file: string, text: string, code: SiglipErrorCode): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SiglipError(code, `${file}: content must be JSON, got ${reasonOf(error)}`, {
      cause: error,
    });
  }
}

async function readSmallFile(path: string): Promise<string | undefined> {
  try {
    const { size } = await stat(path);
    if (size > MAX_BYTES) {
      throw new SiglipError(
        'ERR_FILE',
        `${path}: size must be at most ${String(MAX_BYTES)} bytes, got ${String(size)}`,
      );
    }
    return await readFile(path, 'utf8');
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw unreadable(path, error);
  }
}

/**
 * Checks a value against a schema whose messages say what is expected (`'a positive integer'`).
 *
 * @param who - the file or object, named in the error
 * @throws SiglipError with `code`: `<who>: <path> must be <expected>, got <actual>`
 */
export function checked<T extends z.ZodType>(
  schema: T,
  value: unknown,
  who: string,
  code: SiglipErrorCode,
): z.output<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const lines = result.error.issues.map(({ path, message }) => {
    const what = path.length === 0 ? 'content' : path.map(String).join('.');
    return `${who}: ${what} must be ${message}, got ${shown(reach(value, path))}`;
  });
  throw new SiglipError(code, lines.join('\n'));
}

function reach(value: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (at, key) =>
      at instanceof Object && Object.hasOwn(at, key) ? Reflect.get(at, key) : undefined,
    value,
  );
}

function shown(value: unknown): string {
  const text = value === undefined ? 'nothing' : JSON.stringify(value);
  return text.length > 100 ? `${text.slice(0, 100)}…` : text;
}

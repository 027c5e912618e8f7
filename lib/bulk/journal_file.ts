// A JSON file of a journal: absent, or exactly what its schema says.
import { readFile } from 'node:fs/promises';
import type { z } from 'zod';
import { damaged } from '../corpus/failures';
import { isMissing, unreadable } from '../weights/file_errors';

/**
 * @param what - the content that was expected, for the error.
 * @returns undefined when there is no such file.
 * @throws ERR_FILE when it cannot be read, and what {@link damaged} gives when it is another's
 */
export async function readJournalFile<T>(
  path: string,
  schema: z.ZodType<T>,
  what: string,
): Promise<T | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw unreadable(path, error);
  }
  try {
    return schema.parse(JSON.parse(text));
  } catch (error) {
    throw damaged(path, what, error);
  }
}

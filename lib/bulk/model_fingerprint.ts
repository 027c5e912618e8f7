// Whether a model is still the one that a journal was begun with.
import { readdir } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { digest, fileFingerprint } from '../corpus/fingerprint';
import { unreadable } from '../weights/file_errors';

const MODEL_FILES = new Set(['.json', '.model', '.safetensors', '.txt']);

/**
 * Of a model folder (that of a hub id is told by `resolveCheckpoint`): its configuration, weights and
 * tokenizer.
 *
 * @throws SiglipError ERR_FILE for what is no folder, or cannot be read
 */
export async function modelFingerprint(folder: string): Promise<string> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw unreadable(folder, error);
  });
  const parts: string[] = [];
  for (const name of names.filter((each) => MODEL_FILES.has(extname(each))).sort()) {
    parts.push(name, (await fileFingerprint(join(folder, name))).fingerprint);
  }
  return digest(parts);
}

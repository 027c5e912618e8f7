// Whether an input is still the one that a journal was begun with. Corpora are too large to be hashed
// whole at every start: of a file its size and three samples count, of a folder the names and sizes
// of its files. Times and places do not, so that a copy on another machine is the same input.
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { unreadable } from '../weights/file_errors';

const SAMPLE_BYTES = 1 << 16;

/** SHA-256 of strings, each with its length before it. */
export function digest(parts: Iterable<string>): string {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(`${String(part.length)}:${part}`);
  return hash.digest('hex');
}

/** Size and SHA-256 of size, first, middle and last 64 KiB. @throws SiglipError ERR_FILE */
export async function fileFingerprint(
  path: string,
): Promise<{ readonly bytes: number; readonly fingerprint: string }> {
  try {
    const file = await open(path, 'r');
    try {
      const { size } = await file.stat();
      const hash = createHash('sha256').update(`${String(size)}:`);
      const buffer = Buffer.alloc(SAMPLE_BYTES);
      for (const at of [0, (size - SAMPLE_BYTES) / 2, size - SAMPLE_BYTES]) {
        const from = Math.max(0, Math.floor(at));
        const { bytesRead } = await file.read(buffer, 0, SAMPLE_BYTES, from);
        hash.update(buffer.subarray(0, bytesRead));
      }
      return { bytes: size, fingerprint: hash.digest('hex') };
    } finally {
      await file.close();
    }
  } catch (error) {
    throw unreadable(path, error);
  }
}

// A file read from its beginning, unpacked by gzip where its name says so, with the share that has
// been read.
import { createReadStream } from 'node:fs';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream';
import { createGunzip } from 'node:zlib';

const CHUNK_BYTES = 1 << 18;

export interface FileStream {
  readonly stream: Readable;
  /** Share of the file's bytes that were read, from 0 to 1. */
  readonly through: () => number;
}

/** @param bytes - size of the file, for the share */
export function openFileStream(path: string, bytes: number): FileStream {
  const file = createReadStream(path, { highWaterMark: CHUNK_BYTES });
  const through = (): number => (bytes === 0 ? 1 : Math.min(1, file.bytesRead / bytes));
  if (!/\.(gz|tgz)$/iu.test(path)) return { stream: file, through };
  const gunzip = createGunzip();
  // Errors arrive at the reader of the last stream, which pipeline destroys with them.
  pipeline(file, gunzip, () => undefined);
  return { stream: gunzip, through };
}

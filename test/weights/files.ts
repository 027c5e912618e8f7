// Temporary folders and hand-made safetensors files.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A folder that is there for every test of a file and empty at its beginning. */
export function temporaryFolder(): () => string {
  let folder = '';
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'siglip2-weights-'));
  });
  afterEach(() => {
    rmSync(folder, { recursive: true, force: true });
  });
  return () => folder;
}

/** The bytes of a file with this header, whatever it says. */
export function withHeader(header: string | Buffer | object, data = Buffer.alloc(0)): Buffer {
  const isText = typeof header === 'string' || Buffer.isBuffer(header);
  const json = Buffer.from(isText ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, data]);
}

/** Writes a file and gives its path. */
export function put(folder: string, name: string, content: string | Buffer): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

// Pictures and files of records to embed.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import sharp from 'sharp';
import type { Row, Source } from '../../lib/corpus';

export const golden = join(__dirname, '..', 'golden', 'bulk');

/** A folder that is there for every test of a file. */
export function folderForAll(): () => string {
  let folder = '';
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'siglip2-bulk-'));
  });
  afterAll(() => {
    rmSync(folder, { recursive: true, force: true });
  });
  return () => folder;
}

/** Writes a file and the folders above it. */
export function put(path: string, content: string | Uint8Array): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
  return path;
}

/** A PNG whose pixels differ from those of every other number. */
export function picture(number: number): Promise<Buffer> {
  const [width, height] = [8 + (number % 5), 6 + (number % 3)];
  const data = Uint8Array.from({ length: width * height * 3 }, (_, i) => {
    return (i * (7 + number) + 13 * number) % 256;
  });
  return sharp(data, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer();
}

/** `count` pictures in a folder and one below it. */
export async function putPictures(folder: string, count: number): Promise<void> {
  for (let i = 0; i < count; i++) {
    const name = `${String(i).padStart(3, '0')}.png`;
    put(join(folder, i % 2 === 0 ? name : join('below', name)), await picture(i));
  }
}

/** A tar file of members in the order given. */
export async function putTar(
  path: string,
  members: readonly (readonly [string, string | Buffer])[],
): Promise<string> {
  const { pack } = await import('tar-stream');
  const tar = pack();
  const pieces: Buffer[] = [];
  const collecting = (async () => {
    for await (const piece of tar) pieces.push(piece as Buffer);
  })();
  // Written one by one: a time of its own would make the bytes differ from run to run.
  for (const [name, content] of members) tar.entry({ name, mtime: new Date(0) }, content);
  tar.finalize();
  await collecting;
  return put(path, Buffer.concat(pieces));
}

export const all = (): boolean => true;

/** The rows of a source. */
export async function rowsOf(
  source: Source,
  wanted: (index: number) => boolean = all,
): Promise<Row[]> {
  const rows: Row[] = [];
  for await (const row of source.rows(wanted)) rows.push(row);
  return rows;
}

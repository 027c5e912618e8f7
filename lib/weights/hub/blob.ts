// One file of a repository, fetched into the cache: continued where an earlier attempt stopped,
// checked against its hash, and named only then.
//
// A partial file is named by the hash of the whole, so what it holds is a beginning of the right
// content or damaged; which of the two, the hash tells at the end. The ETag of the hub is compared on
// its own hop; the server it redirects to has ETags of its own that say nothing about the content.
import { createHash } from 'node:crypto';
import type { Hash } from 'node:crypto';
import { constants, existsSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { open, rename, rm, stat, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { expectNotAborted, SiglipError } from '../../errors';
import { isMissing, unreadable } from '../file_errors';
import type { FileLock } from './lock';
import type { HubSession, Reply } from './session';
import { Dropped } from './session';
import { unwritableCache } from './unwritable_cache';

/** A file as the hub lists it. */
export interface RemoteFile {
  readonly name: string;
  readonly size: number;
  /** SHA-256 of a large file, git's hash of a small one. */
  readonly oid: string;
  readonly hash: 'sha256' | 'git';
}

const READ_BYTES = 1 << 20;

/**
 * Fetches a file to `path`.
 *
 * @param partial - where it grows
 * @param lock - the lock of this blob, held by the caller
 * @param report - told how many bytes are here whenever that changes
 * @throws SiglipError ERR_NETWORK, ERR_FILE, ERR_ABORTED; the partial file stays unless it is damaged
 */
export async function fetchBlob(
  session: HubSession,
  file: RemoteFile,
  url: string,
  paths: { readonly path: string; readonly partial: string },
  lock: FileLock,
  report: (bytes: number) => void,
): Promise<void> {
  const growing = await GrowingFile.open(paths.partial, file, session.signal);
  try {
    const continued = growing.length > 0;
    report(growing.length);
    const once = async (): Promise<boolean> => {
      await growToEnd(session, growing, file, url, report);
      await growing.sync();
      if (!(await lock.isOwn())) await growing.readAgain();
      return growing.isRight();
    };
    if (!(await once())) {
      const pieces = continued || growing.pieces > 1;
      await growing.restart();
      report(0);
      // Two halves that do not fit each other are no fault of the server.
      if (!pieces || !(await once())) throw await mismatch(growing, file, url, paths.partial);
    }
    await growing.close();
    await named(paths.partial, paths.path);
  } finally {
    await growing.close();
  }
}

/** Bytes of a file that are here already, of an earlier attempt. */
export async function partialBytes(partial: string): Promise<number> {
  try {
    return (await stat(partial)).size;
  } catch {
    return 0;
  }
}

/**
 * Refuses a download the disk has no room for, before its first byte.
 *
 * @throws SiglipError ERR_FILE
 */
export async function expectSpace(folder: string, needed: number): Promise<void> {
  const free = await freeBytes(folder);
  if (free === undefined || free >= needed) return;
  throw new SiglipError(
    'ERR_FILE',
    `${folder}: disk must have ${String(needed)} bytes free, got ${String(free)}\n` +
      'to do: free space on this disk, or choose another cache with HF_HUB_CACHE.',
  );
}

// undefined where the file system does not tell.
async function freeBytes(folder: string): Promise<number | undefined> {
  try {
    const { bavail, bsize } = await statfs(folder);
    return bavail * bsize;
  } catch {
    return undefined;
  }
}

async function growToEnd(
  session: HubSession,
  growing: GrowingFile,
  file: RemoteFile,
  url: string,
  report: (bytes: number) => void,
): Promise<void> {
  let furthest = growing.length;
  const init = (): RequestInit =>
    growing.length === 0 ? {} : { headers: { range: `bytes=${String(growing.length)}-` } };
  const consume = async ({ response, body, first, alive }: Reply): Promise<void> => {
    expectContent(first, file, url);
    if (!(await continues(response, growing, file))) await growing.restart();
    growing.pieces += 1;
    for await (const chunk of body) {
      if (growing.length + chunk.byteLength > file.size) {
        await growing.restart();
        throw new SiglipError(
          'ERR_NETWORK',
          `${url}: body must have ${String(file.size)} bytes, got more\nto do: try again, or name the mirror's maintainers the file.`,
        );
      }
      await growing.append(chunk);
      alive(growing.length > furthest);
      furthest = Math.max(furthest, growing.length);
      report(growing.length);
    }
    if (growing.length === file.size) return;
    throw new Dropped(
      `body must have ${String(file.size)} bytes, got ${String(growing.length)}: it was cut off`,
    );
  };
  if (growing.length < file.size || file.size === 0) await session.request(url, init, consume);
}

// Whether the answer goes on where the file ends. One that starts anew is as good.
async function continues(
  response: Response,
  growing: GrowingFile,
  file: RemoteFile,
): Promise<boolean> {
  if (response.status === 200) return growing.length === 0;
  const range = /^bytes (\d+)-\d+\/(\d+|\*)$/u.exec(response.headers.get('content-range') ?? '');
  const [, from, total] = range ?? [];
  const fits = Number(from) === growing.length && (total === '*' || Number(total) === file.size);
  if (response.status === 206 && fits) return true;
  // Another file, or a range that is not there: from the beginning, in another attempt.
  await growing.restart();
  throw new Dropped(
    `range must be answered by it, got status ${String(response.status)} and ${response.headers.get('content-range') ?? 'no range'}`,
  );
}

// The hub names the content it is about to send; a commit never changes, so it must be the same.
function expectContent(first: Headers, file: RemoteFile, url: string): void {
  const etag = first.get('x-linked-etag') ?? first.get('etag');
  const oid = etag?.replace(/^W\//u, '').replace(/^"|"$/gu, '').toLowerCase();
  // Mirrors have ETags of other kinds; only one of the same kind can disagree.
  if (oid === undefined || !/^[0-9a-f]+$/u.test(oid) || oid.length !== file.oid.length) return;
  if (oid === file.oid) return;
  throw new SiglipError(
    'ERR_NETWORK',
    `${url}: content must be ${file.oid} as listed, got ${oid}\nto do: try again; the repository or its mirror is just being changed.`,
  );
}

async function mismatch(
  growing: GrowingFile,
  file: RemoteFile,
  url: string,
  partial: string,
): Promise<SiglipError> {
  const actual = growing.lastDigest;
  await growing.close();
  await rm(partial, { force: true });
  const kind = file.hash === 'sha256' ? 'SHA-256' : 'git hash';
  return new SiglipError(
    'ERR_NETWORK',
    `${url}: ${kind} of the ${String(file.size)} bytes must be ${file.oid}, got ${actual}\n` +
      'to do: the file was damaged on its way and is removed; try again, or try without the proxy or mirror in between.',
  );
}

// Another process may have been first.
async function named(partial: string, path: string): Promise<void> {
  try {
    await rename(partial, path);
    await syncFolder(dirname(path));
  } catch (error) {
    if (isMissing(error) && existsSync(path)) return;
    throw unwritableCache(path, error);
  }
}

async function syncFolder(folder: string): Promise<void> {
  // Windows has no way to do this and does not need it.
  if (process.platform === 'win32') return;
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** A partial file and the hash of what it holds. */
class GrowingFile {
  /** Bytes that are here and in the hash. */
  length = 0;
  /** Answers it was put together from. */
  pieces = 0;
  lastDigest = '';
  private isOpen = true;
  private digest: Hash;

  private constructor(
    private readonly path: string,
    private readonly handle: FileHandle,
    private readonly file: RemoteFile,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.digest = newHash(file);
  }

  /** Opens or creates the file and reads what it holds. */
  static async open(
    path: string,
    file: RemoteFile,
    signal: AbortSignal | undefined,
  ): Promise<GrowingFile> {
    let handle: FileHandle;
    try {
      handle = await open(path, constants.O_RDWR | constants.O_CREAT, 0o644);
    } catch (error) {
      throw unwritableCache(path, error);
    }
    const growing = new GrowingFile(path, handle, file, signal);
    try {
      if ((await handle.stat()).size > file.size) await growing.restart();
      await growing.readAgain();
      return growing;
    } catch (error) {
      await growing.close();
      throw error;
    }
  }

  /** Hashes what the disk holds, from the beginning. */
  async readAgain(): Promise<void> {
    this.digest = newHash(this.file);
    this.length = 0;
    const buffer = Buffer.allocUnsafe(READ_BYTES);
    for (;;) {
      expectNotAborted(this.path, this.signal);
      const bytes = await this.readInto(buffer);
      if (bytes === 0) return;
      this.digest.update(buffer.subarray(0, bytes));
      this.length += bytes;
    }
  }

  private async readInto(buffer: Buffer): Promise<number> {
    try {
      return (await this.handle.read(buffer, 0, buffer.length, this.length)).bytesRead;
    } catch (error) {
      throw unreadable(this.path, error);
    }
  }

  async append(chunk: Uint8Array): Promise<void> {
    // At its place rather than at the end: whoever else writes this file writes the same.
    let written = 0;
    try {
      while (written < chunk.byteLength) {
        const rest = chunk.byteLength - written;
        const { bytesWritten } = await this.handle.write(
          chunk,
          written,
          rest,
          this.length + written,
        );
        written += bytesWritten;
      }
    } catch (error) {
      throw unwritableCache(this.path, error);
    }
    this.digest.update(chunk);
    this.length += chunk.byteLength;
  }

  async restart(): Promise<void> {
    try {
      await this.handle.truncate(0);
    } catch (error) {
      throw unwritableCache(this.path, error);
    }
    this.digest = newHash(this.file);
    this.length = 0;
    this.pieces = 0;
  }

  async sync(): Promise<void> {
    try {
      await this.handle.sync();
    } catch (error) {
      throw unwritableCache(this.path, error);
    }
  }

  /** Whether it is the whole file and the right one. */
  isRight(): boolean {
    this.lastDigest = this.digest.copy().digest('hex');
    return this.length === this.file.size && this.lastDigest === this.file.oid;
  }

  async close(): Promise<void> {
    if (!this.isOpen) return;
    this.isOpen = false;
    await this.handle.close();
  }
}

function newHash({ hash, size }: RemoteFile): Hash {
  if (hash === 'sha256') return createHash('sha256');
  // git hashes a header before the content.
  return createHash('sha1').update(`blob ${String(size)}\0`);
}

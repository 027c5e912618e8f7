// One process at a time fetches a blob; the others wait and find it there. The lock is a file with a
// heartbeat: the file system locks of other languages are not to be had in Node without an addon.
//
// It saves work, it does not guard the data: a lock is taken from a process that looks dead, and one
// that was only suspended wakes up. Both then write the same bytes at the same places, and whoever
// finds that the lock is no longer its own checks the file from the disk again before naming it.
import { randomBytes } from 'node:crypto';
import { mkdir, open, readFile, rename, rm, stat, utimes } from 'node:fs/promises';
import { hostname } from 'node:os';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf, isMissing } from '../file_errors';
import { unwritableCache } from './unwritable_cache';

const BEAT_MS = 5_000;
const STALE_MS = 30_000;
const POLL_MS = 200;

interface Holder {
  readonly pid: number;
  readonly host: string;
  readonly nonce: string;
}

/** A lock that is held. */
export class FileLock {
  private readonly beat: NodeJS.Timeout;

  private constructor(
    private readonly path: string,
    private readonly nonce: string,
  ) {
    this.beat = setInterval(() => {
      const now = new Date();
      // A lock that was taken away is noticed by isOwn().
      utimes(path, now, now).catch(() => undefined);
    }, BEAT_MS).unref();
  }

  /**
   * Waits for the lock.
   *
   * @param done - asked before every attempt: whether the lock is no longer needed
   * @returns undefined when `done` said so
   * @throws SiglipError ERR_FILE; the reason of the signal
   */
  static async take(
    path: string,
    done: () => boolean,
    signal?: AbortSignal,
  ): Promise<FileLock | undefined> {
    const holder: Holder = {
      pid: process.pid,
      host: hostname(),
      nonce: randomBytes(12).toString('hex'),
    };
    for (;;) {
      if (done()) return undefined;
      signal?.throwIfAborted();
      if (await created(path, holder)) return new FileLock(path, holder.nonce);
      if (await isStale(path)) await setAside(path);
      else await sleep(POLL_MS, undefined, { signal });
    }
  }

  /** Whether nobody has taken the lock away. */
  async isOwn(): Promise<boolean> {
    return (await holderOf(this.path))?.nonce === this.nonce;
  }

  async release(): Promise<void> {
    clearInterval(this.beat);
    if (await this.isOwn()) await rm(this.path, { force: true });
  }
}

async function created(path: string, holder: Holder): Promise<boolean> {
  try {
    await mkdir(dirname(path), { recursive: true });
    const file = await open(path, 'wx');
    try {
      await file.writeFile(JSON.stringify(holder));
    } finally {
      await file.close();
    }
    return true;
  } catch (error) {
    if (codeOf(error) === 'EEXIST') return false;
    throw unwritableCache(path, error);
  }
}

async function isStale(path: string): Promise<boolean> {
  try {
    const { mtimeMs } = await stat(path);
    if (Date.now() - mtimeMs > STALE_MS) return true;
    const holder = await holderOf(path);
    return holder?.host === hostname() && !isAlive(holder.pid);
  } catch (error) {
    if (isMissing(error)) return false;
    throw unwritableCache(path, error);
  }
}

// Renamed, not removed: of two processes that find it stale only one succeeds.
async function setAside(path: string): Promise<void> {
  const aside = `${path}.${randomBytes(6).toString('hex')}.stale`;
  try {
    await rename(path, aside);
    await rm(aside, { force: true });
  } catch (error) {
    if (!isMissing(error)) throw unwritableCache(path, error);
  }
}

// undefined when there is none, or one that is just being written.
async function holderOf(path: string): Promise<Holder | undefined> {
  try {
    const content: unknown = JSON.parse(await readFile(path, 'utf8'));
    return isHolder(content) ? content : undefined;
  } catch {
    return undefined;
  }
}

function isHolder(content: unknown): content is Holder {
  return (
    typeof content === 'object' &&
    content !== null &&
    'pid' in content &&
    Number.isSafeInteger(content.pid) &&
    'host' in content &&
    'nonce' in content
  );
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: alive, and somebody else's.
    return codeOf(error) !== 'ESRCH';
  }
}

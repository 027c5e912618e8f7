// Two processes in one folder would compute everything twice and take each other's files away. A
// process that is gone holds nothing; one on another machine cannot be asked, and a machine that
// died must not stop its successor, so only living processes of this machine count.
import { readFile, rm, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { SiglipError } from '../errors';
import { codeOf } from '../weights/file_errors';

/**
 * Takes a folder for this process.
 *
 * @param who - begins the message of an error
 * @throws SiglipError ERR_FILE when another process works there
 */
export async function lock(who: string, folder: string): Promise<void> {
  const path = join(folder, 'lock.json');
  const holder = await readFile(path, 'utf8').then(
    (text): unknown => {
      try {
        return JSON.parse(text);
      } catch {
        return undefined;
      }
    },
    () => undefined,
  );
  const known = z.object({ pid: z.number(), host: z.string() }).safeParse(holder);
  if (known.success && known.data.host === hostname() && isAlive(known.data.pid)) {
    throw new SiglipError(
      'ERR_FILE',
      `${who}: ${folder} must be worked on by one process, got another one, ${String(known.data.pid)}\n` +
        `to do: wait for it; if it is no such process, remove ${path}.`,
    );
  }
  await writeFile(path, JSON.stringify({ pid: process.pid, host: hostname() }));
}

/** Lets another process work in a folder. */
export async function release(folder: string): Promise<void> {
  await rm(join(folder, 'lock.json'), { force: true });
}

function isAlive(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return codeOf(error) === 'EPERM';
  }
}

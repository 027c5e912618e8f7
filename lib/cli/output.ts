// Where results go: standard output, or a file that appears only when it is complete.
import { open, rename, rm } from 'node:fs/promises';
import { once } from 'node:events';

/** Takes one piece of the output; resolves when it may be followed by the next. */
export type Write = (text: string) => Promise<void>;

/**
 * Runs `body` with a writer. A file is written beside its destination, synced and renamed, so that a
 * failure leaves no half-written result.
 */
export async function withOutput(
  path: string | undefined,
  body: (write: Write) => Promise<void>,
): Promise<void> {
  if (path === undefined) {
    await body(async (text) => {
      if (!process.stdout.write(text)) await once(process.stdout, 'drain');
    });
    return;
  }
  const temporary = `${path}.${String(process.pid)}.tmp`;
  const file = await open(temporary, 'w');
  try {
    await body(async (text) => {
      await file.write(text);
    });
    await file.sync();
    await file.close();
    await rename(temporary, path);
  } catch (error) {
    await file.close().catch(() => undefined);
    await rm(temporary, { force: true });
    throw error;
  }
}

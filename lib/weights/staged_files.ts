// Files that appear complete or not at all. Each is written under a temporary name in its own folder
// and synchronised with the disk; publishing is renames only, in the order of writing, and one
// synchronisation of the folder. A crash leaves the old files, and at worst some `.tmp` beside them.
import { randomBytes } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { unwritable } from './file_errors';

/** A set of files of one folder that is published together. */
export class StagedFiles {
  private readonly staged: { readonly name: string; readonly temporary: string }[] = [];

  /** @param folder - created when it does not exist */
  constructor(readonly folder: string) {}

  /**
   * Writes one file under a temporary name.
   *
   * @param fill - writes the content; when it throws, the file is removed again
   * @throws SiglipError ERR_FILE when the disk refuses
   */
  async write(name: string, fill: (file: FileHandle) => Promise<void>): Promise<void> {
    const temporary = join(this.folder, `.${name}.${randomBytes(6).toString('hex')}.tmp`);
    await this.refusing(name, async () => {
      await mkdir(this.folder, { recursive: true });
      const file = await open(temporary, 'wx');
      this.staged.push({ name, temporary });
      try {
        await fill(file);
        await file.sync();
      } finally {
        await file.close();
      }
    });
  }

  /** Writes a JSON file: two spaces, a newline at the end. */
  async writeJson(name: string, content: unknown): Promise<void> {
    await this.write(name, (file) => file.writeFile(`${JSON.stringify(content, null, 2)}\n`));
  }

  /**
   * Gives every file its name, in the order in which they were written, then removes `obsolete`.
   *
   * @throws SiglipError ERR_FILE
   */
  async publish(obsolete: readonly string[] = []): Promise<void> {
    for (const { name, temporary } of this.staged) {
      await this.refusing(name, () => rename(temporary, join(this.folder, name)));
    }
    this.staged.length = 0;
    for (const name of obsolete) {
      await this.refusing(name, () => rm(join(this.folder, name), { force: true }));
    }
    await this.syncFolder();
  }

  /** Removes what was written and not published. */
  async discard(): Promise<void> {
    for (const { temporary } of this.staged.splice(0)) await rm(temporary, { force: true });
  }

  private async syncFolder(): Promise<void> {
    // Windows has no way to do this and does not need it.
    if (process.platform === 'win32') return;
    await this.refusing('', async () => {
      const folder = await open(this.folder, 'r');
      try {
        await folder.sync();
      } finally {
        await folder.close();
      }
    });
  }

  private async refusing(name: string, action: () => Promise<unknown>): Promise<void> {
    try {
      await action();
    } catch (error) {
      throw unwritable(join(this.folder, name), error);
    }
  }
}

/**
 * Runs `write` on staged files of a folder and publishes them; on any failure the folder stays as it
 * was.
 *
 * @param write - returns names of files that the new ones make obsolete
 */
export async function publishTogether(
  folder: string,
  write: (files: StagedFiles) => Promise<readonly string[]>,
): Promise<void> {
  const files = new StagedFiles(folder);
  try {
    await files.publish(await write(files));
  } finally {
    await files.discard();
  }
}

// The cache that Python's huggingface_hub, transformers and this library share:
//
//   models--owner--name/blobs/<object id>            content, named by its hash
//   models--owner--name/snapshots/<commit>/<file>    link to ../../blobs/<object id>
//   models--owner--name/refs/<branch or tag>         the commit it last meant
//   models--owner--name/.no_exist/<commit>/<file>    the repository has no such file
//
// What appears under these names is complete. What is not yet lies in blobs/ under a name of this
// library's own: Python's lock is a kind that Node cannot take, so partial files are not shared.
import { copyFile, mkdir, readFile, rename, rm, symlink } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { basename, dirname, join, relative } from 'node:path';
import { codeOf, isMissing, unreadable } from '../file_errors';
import { publishTogether } from '../staged_files';
import { snapshotState } from './files';
import type { SnapshotState } from './files';
import { isCommit } from './id';
import { unwritableCache } from './unwritable_cache';

// What systems answer where there are no symbolic links, or not for this user.
const NO_SYMLINKS = ['EPERM', 'ENOSYS', 'ENOTSUP', 'EOPNOTSUPP', 'EINVAL', 'UNKNOWN'];

/** One repository in the cache. */
export class CachedRepository {
  readonly folder: string;

  /**
   * @param cacheDir - root of the cache
   * @param id - `owner/name`, checked
   * @param symlinks - false: snapshots hold files instead of links
   */
  constructor(
    private readonly cacheDir: string,
    id: string,
    private readonly symlinks = true,
  ) {
    this.folder = join(cacheDir, this.folderName(id));
  }

  /** The commit a revision last meant here. */
  async commitOf(revision: string): Promise<string | undefined> {
    if (isCommit(revision)) return revision;
    try {
      const commit = (await readFile(this.refPath(revision), 'utf8')).trim();
      return isCommit(commit) ? commit : undefined;
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw unreadable(this.refPath(revision), error);
    }
  }

  snapshot(commit: string): string {
    return join(this.folder, 'snapshots', commit);
  }

  /** What the snapshot of a commit lacks. */
  state(commit: string): SnapshotState {
    const absent = (name: string): boolean =>
      existsSync(join(this.folder, '.no_exist', commit, name));
    return snapshotState(this.snapshot(commit), absent);
  }

  has(commit: string, name: string): boolean {
    return existsSync(join(this.snapshot(commit), name));
  }

  blob(oid: string): string {
    return join(this.folder, 'blobs', oid);
  }

  /** Where a blob grows. */
  partial(oid: string): string {
    return `${this.blob(oid)}.siglip2.incomplete`;
  }

  /** Who fetches a blob; beside the locks of Python, whose names end in `.lock` after the id. */
  lock(oid: string): string {
    return join(this.cacheDir, '.locks', basename(this.folder), `${oid}.siglip2`);
  }

  /** @throws SiglipError ERR_FILE when the cache cannot be written */
  async prepare(commit: string): Promise<void> {
    const folders = [join(this.folder, 'blobs'), this.snapshot(commit), dirname(this.lock(''))];
    for (const folder of [this.folder, ...folders]) {
      try {
        await mkdir(folder, { recursive: true });
      } catch (error) {
        throw unwritableCache(folder, error);
      }
    }
  }

  /**
   * Gives a blob its name in a snapshot: a relative link where the file system has links, else the
   * file itself, moved when it is `fresh` and copied when another snapshot may hold on to it.
   *
   * @throws SiglipError ERR_FILE
   */
  async link(commit: string, name: string, oid: string, fresh: boolean): Promise<void> {
    const path = join(this.snapshot(commit), name);
    const blob = this.blob(oid);
    // Placed under another name first: a name that exists is complete, and one that is a dead link
    // is replaced.
    const temporary = join(dirname(path), `.${name}.${randomBytes(6).toString('hex')}.tmp`);
    try {
      if (!(this.symlinks && (await linked(relative(dirname(path), blob), temporary)))) {
        await (fresh ? rename(blob, temporary) : copyFile(blob, temporary));
      }
      await rename(temporary, path);
    } catch (error) {
      await rm(temporary, { force: true });
      throw unwritableCache(path, error);
    }
  }

  /** Notes files the repository does not have, so that nobody asks again. */
  async noteAbsent(commit: string, names: readonly string[]): Promise<void> {
    const folder = join(this.folder, '.no_exist', commit);
    const unknown = names.filter((name) => !existsSync(join(folder, name)));
    if (unknown.length === 0) return;
    await publishTogether(folder, async (files) => {
      for (const name of unknown) await files.write(name, () => Promise.resolve());
      return [];
    });
  }

  /** Notes what a branch or a tag means now. Last, when the snapshot is complete. */
  async writeRef(revision: string, commit: string): Promise<void> {
    if (revision === commit || (await this.commitOf(revision)) === commit) return;
    const path = this.refPath(revision);
    await publishTogether(dirname(path), async (files) => {
      await files.write(basename(path), (file) => file.writeFile(commit));
      return [];
    });
  }

  private folderName(id: string): string {
    return ['models', ...id.split('/')].join('--');
  }

  private refPath(revision: string): string {
    return join(this.folder, 'refs', ...revision.split('/'));
  }
}

// False where the file system has no links.
async function linked(target: string, path: string): Promise<boolean> {
  try {
    await symlink(target, path);
    return true;
  } catch (error) {
    if (NO_SYMLINKS.includes(codeOf(error))) return false;
    throw error;
  }
}

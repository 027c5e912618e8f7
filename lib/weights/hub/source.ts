// Where a model is: a folder, or a name of the hub.
import { statSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { SiglipError } from '../../errors';
import { CachedRepository } from './cache';
import { download } from './download';
import type { HubEnvironment, HubOptions } from './environment';
import { hubEnvironment } from './environment';
import type { HubName } from './id';
import { isCommit, parseHubName } from './id';

/** A checkpoint folder and where it came from. */
export interface CheckpointSource {
  /** The folder, in Hugging Face layout. */
  readonly path: string;
  /** Commit of the repository; undefined for a folder that does not come from the cache. */
  readonly revision?: string;
}

/**
 * Finds the folder of a model. A folder that exists is taken as it is. Else the source is a hub id,
 * `owner/name` or `owner/name@revision`: a complete snapshot in the shared cache is taken without
 * any network; otherwise what is missing is downloaded.
 *
 * A branch that is in the cache keeps meaning the commit it meant when it was fetched:
 * {@link downloadCheckpoint} asks again.
 *
 * @param who - named in errors. Default `resolveCheckpoint`.
 * @throws SiglipError ERR_FILE for a path that does not exist, ERR_ARGUMENT for a name that cannot be
 * one, and what {@link downloadCheckpoint} throws
 * @example
 * const { path } = await resolveCheckpoint('google/siglip2-base-patch16-224', { offline: true });
 */
export async function resolveCheckpoint(
  source: string,
  options: HubOptions = {},
  who = 'resolveCheckpoint',
): Promise<CheckpointSource> {
  if (typeof source !== 'string') {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `${who}: source must be a folder or a hub id, got ${typeof source}`,
    );
  }
  const found = kindOf(source);
  if (found === 'folder') return fromFolder(source);
  if (found === 'file') {
    throw new SiglipError(
      'ERR_FILE',
      `${who}: source must be a folder or a hub id, got ${source}, which is a file\n` +
        'to do: give the folder that holds config.json and the weights.',
    );
  }
  const name = parseHubName(who, source, options.revision);
  return fromHub(who, name, hubEnvironment(who, options), options);
}

function kindOf(path: string): 'folder' | 'file' | undefined {
  try {
    const found = statSync(path, { throwIfNoEntry: false });
    if (found === undefined) return undefined;
    return found.isDirectory() ? 'folder' : 'file';
  } catch {
    // Not a path at all, or none that may be looked at.
    return undefined;
  }
}

// A folder of the cache says in its name which commit it is.
function fromFolder(path: string): CheckpointSource {
  const name = basename(path);
  const isSnapshot = isCommit(name) && basename(dirname(path)) === 'snapshots';
  return isSnapshot ? { path, revision: name } : { path };
}

async function fromHub(
  who: string,
  name: HubName,
  environment: HubEnvironment,
  options: HubOptions,
): Promise<CheckpointSource> {
  const repository = new CachedRepository(environment.cacheDir, name.id, environment.symlinks);
  const commit = await repository.commitOf(name.revision);
  const cached = commit === undefined ? undefined : { commit, ...repository.state(commit) };
  const here = cached === undefined ? undefined : fromFolder(repository.snapshot(cached.commit));
  if (here !== undefined && cached?.complete === true) return here;
  const isEnough = here !== undefined && cached?.usable === true;
  if (environment.offline !== undefined) {
    if (isEnough) return here;
    throw notHere(who, name, environment, repository, environment.offline, cached?.missing);
  }
  try {
    const { path, revision } = await download(who, name, environment, options);
    return { path, revision };
  } catch (error) {
    const isNetwork = error instanceof SiglipError && error.code === 'ERR_NETWORK';
    if (isEnough && isNetwork) return here;
    throw error;
  }
}

function notHere(
  who: string,
  { id, revision }: HubName,
  { cacheDir, endpoint }: HubEnvironment,
  repository: CachedRepository,
  reason: string,
  missing: readonly string[] | undefined,
): SiglipError {
  const found =
    missing === undefined
      ? `no snapshot of revision ${revision}`
      : `one without ${missing.slice(0, 5).join(', ')}`;
  return new SiglipError(
    'ERR_NETWORK',
    `${who}: ${id} must be in the cache ${cacheDir}, got ${found}; the network is not used because ${reason}\n` +
      `tried: ${repository.folder}\n` +
      `to do: where there is a network run "siglip2 download ${id}" with HF_HUB_CACHE=<folder> and copy that folder here,\n` +
      `to do: or fetch the files of ${endpoint}/${id} by hand into any folder and give that folder as the source.`,
  );
}

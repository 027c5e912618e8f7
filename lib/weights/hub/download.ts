// A model of the hub, brought into the cache.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { SiglipError } from '../../errors';
import { INDEX_FILE, shardFiles } from '../shards';
import { expectNotAborted } from '../weights';
import { expectSpace, fetchBlob, partialBytes } from './blob';
import type { RemoteFile } from './blob';
import { CachedRepository } from './cache';
import type { HubEnvironment, HubOptions } from './environment';
import { hubEnvironment } from './environment';
import { absentFiles, chosenFiles } from './files';
import type { HubName } from './id';
import { isCommit, parseHubName } from './id';
import { FileLock } from './lock';
import { DownloadMeter } from './progress';
import { HubSession } from './session';

/** What {@link downloadCheckpoint} brought. */
export interface DownloadedCheckpoint {
  /** The snapshot folder, in Hugging Face layout. */
  readonly path: string;
  /** The commit. */
  readonly revision: string;
  /** Every file of the model, fetched now or here before. */
  readonly files: readonly DownloadedFile[];
}

/** One file of a model in the cache. */
export interface DownloadedFile {
  readonly name: string;
  readonly bytes: number;
  /** False: it was here. */
  readonly fetched: boolean;
}

// Weights are one or two files; more connections than this only help small files.
const FILES_AT_ONCE = 4;

/**
 * Brings the files a model needs into the shared cache: config, safetensors weights, preprocessor and
 * tokenizer. Always asks the hub what the revision means now; what is here is not fetched again, what
 * was interrupted is continued, and every file is checked against its hash before it gets its name.
 *
 * @param source - `owner/name` or `owner/name@revision`
 * @throws SiglipError ERR_ARGUMENT for a name that cannot be one, ERR_NETWORK, ERR_FILE when the cache
 * cannot be written, ERR_WEIGHTS for a repository without safetensors, ERR_ABORTED
 * @example
 * const { path, revision } = await downloadCheckpoint('google/siglip2-base-patch16-224');
 */
export async function downloadCheckpoint(
  source: string,
  options: HubOptions = {},
): Promise<DownloadedCheckpoint> {
  const who = 'downloadCheckpoint';
  const name = parseHubName(who, source, options.revision);
  return download(who, name, hubEnvironment(who, options), options);
}

/** {@link downloadCheckpoint} with its arguments taken apart. */
export async function download(
  who: string,
  name: HubName,
  environment: HubEnvironment,
  options: HubOptions,
): Promise<DownloadedCheckpoint> {
  const { id, revision } = name;
  if (environment.offline !== undefined) {
    throw new SiglipError(
      'ERR_NETWORK',
      `${who}: network must be allowed to fetch ${id}, got offline: ${environment.offline}`,
    );
  }
  // The first failure ends what is still under way.
  const stop = new AbortController();
  const signals = [stop.signal, ...(options.signal === undefined ? [] : [options.signal])];
  const session = new HubSession(who, id, environment, AbortSignal.any(signals));
  const repository = new CachedRepository(environment.cacheDir, id, environment.symlinks);
  try {
    const { commit, files } = await listed(who, session, name);
    const task = new Task(session, repository, id, commit, stop, options.onProgress);
    const names = [...files.keys()];
    const chosen = chosenFiles(who, id, names).map((file) => taken(who, id, files, file));
    await repository.prepare(commit);
    if (chosen.some((file) => file.name === INDEX_FILE)) {
      await task.fetch([taken(who, id, files, INDEX_FILE)]);
      const index = join(repository.snapshot(commit), INDEX_FILE);
      chosen.push(...shardFiles(index).map((file) => taken(who, id, files, file)));
    }
    await task.fetch(chosen);
    await repository.noteAbsent(commit, absentFiles(names));
    await repository.writeRef(revision, commit);
    return { path: repository.snapshot(commit), revision: commit, files: task.report(chosen) };
  } catch (error) {
    expectNotAborted(who, options.signal);
    throw error;
  }
}

// The commit of a revision and the files at its top.
async function listed(
  who: string,
  session: HubSession,
  { id, revision }: HubName,
): Promise<{ commit: string; files: Map<string, RemoteFile> }> {
  // Loaded here: whoever has the model in the cache needs nothing of it.
  const { listFiles, modelInfo } = await import('@huggingface/hub');
  const { fetch, endpoint: hubUrl } = session;
  const query = { name: id, revision, hubUrl, fetch, additionalFields: ['sha' as const] };
  const { sha: commit } = await answered(who, id, () => modelInfo(query));
  if (typeof commit !== 'string' || !isCommit(commit)) {
    throw new SiglipError(
      'ERR_NETWORK',
      `${who}: ${hubUrl} must name the commit of ${id}, got ${JSON.stringify(commit)}`,
    );
  }
  const files = new Map<string, RemoteFile>();
  await answered(who, id, async () => {
    for await (const entry of listFiles({ repo: id, revision: commit, hubUrl, fetch })) {
      const { type, path: name, oid, lfs } = entry;
      if (type !== 'file') continue;
      const large = lfs === undefined ? undefined : { size: lfs.size, oid: lfs.oid };
      const { size, oid: hash } = large ?? { size: entry.size, oid };
      const kind = large === undefined ? 'git' : 'sha256';
      if (
        hash === undefined ||
        !(kind === 'git' ? /^[0-9a-f]{40}$/u : /^[0-9a-f]{64}$/u).test(hash)
      )
        continue;
      if (Number.isSafeInteger(size) && size >= 0) {
        files.set(name, { name, size, oid: hash, hash: kind });
      }
    }
  });
  return { commit, files };
}

// An answer that is not what the hub gives: something in between answers for it.
async function answered<T>(who: string, id: string, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof SiglipError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new SiglipError(
      'ERR_NETWORK',
      `${who}: the endpoint must answer about ${id} as the hub does, got ${reason}\n` +
        'to do: check HF_ENDPOINT, and whether a proxy or a login page answers in its place.',
      { cause: error },
    );
  }
}

function taken(
  who: string,
  id: string,
  files: ReadonlyMap<string, RemoteFile>,
  name: string,
): RemoteFile {
  const file = files.get(name);
  if (file !== undefined) return file;
  throw new SiglipError(
    'ERR_WEIGHTS',
    `${who}: ${id} must hold ${name}, which its index lists, got a repository without it`,
  );
}

/** The files of one commit on their way into the cache. */
class Task {
  private readonly fetched = new Set<string>();

  constructor(
    private readonly session: HubSession,
    private readonly repository: CachedRepository,
    private readonly id: string,
    private readonly commit: string,
    private readonly stop: AbortController,
    private readonly tell: HubOptions['onProgress'],
  ) {}

  report(files: readonly RemoteFile[]): DownloadedFile[] {
    return files.map(({ name, size }) => ({ name, bytes: size, fetched: this.fetched.has(name) }));
  }

  /** Fetches what is not here; the first failure stops the others. */
  async fetch(files: readonly RemoteFile[]): Promise<void> {
    const { repository, commit } = this;
    const isHere = ({ name }: RemoteFile): boolean => repository.has(commit, name);
    const queue = files.filter((file) => !isHere(file));
    await this.expectSpace(queue);
    const sum = (list: readonly RemoteFile[]): number => list.reduce((n, { size }) => n + size, 0);
    const total = sum(files);
    const meter = new DownloadMeter(total, total - sum(queue), this.tell);
    // Small files first: a failure that concerns all of them shows before the gigabytes.
    queue.sort((a, b) => a.size - b.size);
    const failures: unknown[] = [];
    const worker = async (): Promise<void> => {
      try {
        for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
          if (!this.stop.signal.aborted) await this.fetchOne(file, meter);
        }
      } catch (error) {
        failures.push(error);
        this.stop.abort();
      }
    };
    // Nothing may still write when this returns.
    await Promise.all(Array.from({ length: FILES_AT_ONCE }, worker));
    if (failures.length > 0) throw failures[0];
  }

  private async fetchOne(file: RemoteFile, meter: DownloadMeter): Promise<void> {
    const { repository, commit, session } = this;
    const { name, oid, size } = file;
    const path = repository.blob(oid);
    const isHere = (): boolean => repository.has(commit, name);
    const lock = await FileLock.take(repository.lock(oid), isHere, session.signal);
    try {
      if (lock !== undefined && !isHere()) {
        const fresh = !existsSync(path);
        if (fresh) {
          const url = `${session.endpoint}/${this.id}/resolve/${commit}/${encodeURIComponent(name)}`;
          const paths = { path, partial: repository.partial(oid) };
          await fetchBlob(session, file, url, paths, lock, (bytes) => {
            meter.update(name, bytes);
          });
          this.fetched.add(name);
        }
        await repository.link(commit, name, oid, fresh);
      }
      meter.update(name, size, true);
    } finally {
      await lock?.release();
    }
  }

  private async expectSpace(queue: readonly RemoteFile[]): Promise<void> {
    const { repository } = this;
    let needed = 0;
    for (const { oid, size } of queue) {
      if (existsSync(repository.blob(oid))) continue;
      needed += Math.max(size - (await partialBytes(repository.partial(oid))), 0);
    }
    await expectSpace(repository.folder, needed);
  }
}

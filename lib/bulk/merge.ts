// The folders that shards left, put together to the output of one process.
import { rm } from 'node:fs/promises';
import { SiglipError } from '../errors';
import { fingerprintOf, receiptOf } from './embed_corpus';
import type { Manifest } from './journal';
import { Journal } from './journal';
import type { OutputFormat } from './output';
import { assemble, outputPaths } from './output';
import { PartFile } from './part';
import type { PartPlace } from './journal';

export interface MergeOptions {
  /** The folder of every shard, in any order. */
  readonly folders: readonly string[];
  readonly output: string;
  readonly format: OutputFormat;
}

/** What a merge came to. */
export interface MergeSummary {
  readonly rows: number;
  readonly failures: number;
  readonly outputs: readonly string[];
  readonly failuresFile?: string;
}

/**
 * Puts shards together: the same bytes as one process without shards would have written. The folders
 * stay.
 *
 * @throws SiglipError ERR_CONFIG when a shard is missing, there twice, unfinished or of another run
 */
export async function mergeShards({
  folders,
  output,
  format,
}: MergeOptions): Promise<MergeSummary> {
  const journals: Journal[] = [];
  for (const folder of folders) journals.push(await Journal.read(folder));
  const manifest = commonManifest(journals);
  const parts = partsOf(journals, manifest);
  const paths = outputPaths(output, format, manifest.columns);
  let width = 0;
  if (parts.length > 0) {
    using file = PartFile.open(parts[0].path);
    width = file.width;
  }
  const files = [...paths.vectors, ...(paths.ids === undefined ? [] : [paths.ids])];
  const scratch = `${output}.merge`;
  const { rows, failures } = await assemble({
    parts,
    sources: manifest.sources,
    form: { columns: manifest.columns, width, dtype: manifest.dtype },
    format,
    output,
    scratch,
    receipt: receiptOf(manifest, format, files),
  }).finally(() => rm(scratch, { recursive: true, force: true }));
  return {
    rows,
    failures,
    outputs: files,
    ...(failures > 0 ? { failuresFile: paths.failures } : {}),
  };
}

function wrong(expected: string, got: string, remedy: string): SiglipError {
  return new SiglipError(
    'ERR_CONFIG',
    `merge: shards must be ${expected}, got ${got}\nto do: ${remedy}`,
  );
}

function commonManifest(journals: readonly Journal[]): Manifest {
  const [first, ...others] = journals;
  if (first === undefined) throw wrong('at least one folder', 'none', 'name the folders.');
  const { manifest } = first;
  const form = 'jsonl';
  for (const other of others) {
    const same =
      fingerprintOf(other.manifest, form) === fingerprintOf(manifest, form) &&
      other.manifest.shard.count === manifest.shard.count;
    if (same) continue;
    const got = `${first.folder} and ${other.folder} with different inputs or options`;
    throw wrong('of one run', got, 'embed the shards with one command but for --shard.');
  }
  for (let index = 0; index < manifest.shard.count; index++) {
    const found = journals.filter(({ manifest: { shard } }) => shard.index === index);
    if (found.length === 1) continue;
    const shard = `${String(index + 1)}/${String(manifest.shard.count)}`;
    const got = found.length === 0 ? `no ${shard}` : `${shard} twice`;
    throw wrong('all there, each once', got, 'name every folder, or embed what is missing.');
  }
  return manifest;
}

// Every block of every source, in order; how many there are is known from whoever read it to its end.
function partsOf(journals: readonly Journal[], manifest: Manifest): PartPlace[] {
  const places = new Map<string, PartPlace>();
  for (const journal of journals) {
    for (const place of journal.parts()) {
      places.set(`${String(place.source)} ${String(place.block)}`, place);
    }
  }
  const parts: PartPlace[] = [];
  for (const [source, { name }] of manifest.sources.entries()) {
    const rows = journals.map((journal) => journal.rowsOf(source)).find((n) => n !== undefined);
    const blocks = rows === undefined ? 0 : Math.ceil(rows / manifest.blockRows);
    for (let block = 0; block < blocks; block++) {
      const place = places.get(`${String(source)} ${String(block)}`);
      if (place !== undefined) parts.push(place);
      else throw unfinished(name);
    }
    if (rows === undefined) throw unfinished(name);
  }
  return parts;
}

function unfinished(source: string): SiglipError {
  return wrong('finished', `an unfinished one for ${source}`, 'run its command again to the end.');
}

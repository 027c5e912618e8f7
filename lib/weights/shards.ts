// Weights in several files: `<stem>-00001-of-00003.safetensors` and an index that says which file
// holds which tensor.
import { existsSync, readFileSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { z } from 'zod';
import type { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { HostArray } from '../native/spec';
import { unreadable } from './file_errors';
import { checked, parseJson } from './json_file';
import type { StoredTensor, WriteOptions } from './safetensors';
import { openSafetensors, SafetensorsFile, stageSafetensors, storedBytes } from './safetensors';
import type { TensorInfo } from './safetensors_header';
import type { StagedFiles } from './staged_files';
import type { LoadOptions, Weights } from './weights';
import { readTensor, tensorOf } from './weights';

/** Name of the weights in a model folder when they are one file. */
export const SINGLE_FILE = 'model.safetensors';

/** Name of the index in a model folder when they are several. */
export const INDEX_FILE = 'model.safetensors.index.json';

const indexSchema = z.looseObject(
  {
    metadata: z.looseObject({}, 'an object').optional(),
    weight_map: z.record(z.string(), z.string('the name of a file'), 'an object'),
  },
  'an object',
);

const MAX_INDEX_BYTES = 64 * 1024 * 1024;

/** Tensors spread over several safetensors files, seen as one. */
export class ShardedWeights implements Weights {
  readonly source: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  private readonly shards: ReadonlyMap<string, SafetensorsFile>;
  private readonly shardOf: ReadonlyMap<string, string>;

  /** @param path - the index file */
  constructor(path: string) {
    this.source = path;
    this.shardOf = readIndex(path);
    this.shards = openShards(path, new Set(this.shardOf.values()));
    try {
      this.tensors = this.join();
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  async load(name: string, options?: LoadOptions): Promise<DeviceArray> {
    tensorOf(this, name);
    return this.shard(name).load(name, options);
  }

  async read(name: string, options?: LoadOptions): Promise<HostArray> {
    return readTensor(this, name, options);
  }

  dispose(): void {
    for (const shard of this.shards.values()) shard.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  private shard(name: string): SafetensorsFile {
    const shard = this.shards.get(this.shardOf.get(name) ?? '');
    if (shard !== undefined) return shard;
    throw new SiglipError('ERR_WEIGHTS', `${this.source}: index must list ${name}, got no entry`);
  }

  // The index and the shards must say the same.
  private join(): Map<string, TensorInfo> {
    const tensors = new Map<string, TensorInfo>();
    for (const [name, file] of this.shardOf) {
      const info = this.shard(name).tensors.get(name);
      if (info === undefined) {
        const elsewhere = [...this.shards].find(([, shard]) => shard.tensors.has(name))?.[0];
        throw this.mixedUp(`${name} must be in ${file}`, elsewhere ?? 'no shard that has it');
      }
      tensors.set(name, info);
    }
    for (const [file, shard] of this.shards) {
      const extra = [...shard.tensors.keys()].find((name) => this.shardOf.get(name) !== file);
      if (extra !== undefined) {
        const listed = this.shardOf.get(extra) ?? 'no shard';
        throw this.mixedUp(`${extra}, which is in ${file}, must be listed there`, listed);
      }
    }
    return tensors;
  }

  private mixedUp(expected: string, actual: string): SiglipError {
    return new SiglipError(
      'ERR_WEIGHTS',
      `${this.source}: ${expected}, got ${actual}\nto do: index and shards are of different versions: fetch all of them again.`,
    );
  }
}

/**
 * Names of the shards an index lists; they lie beside it.
 *
 * @throws SiglipError ERR_WEIGHTS, ERR_FILE
 */
export function shardFiles(path: string): string[] {
  return [...new Set(readIndex(path).values())];
}

function readIndex(path: string): Map<string, string> {
  const index = checked(
    indexSchema,
    parseJson(path, indexText(path), 'ERR_WEIGHTS'),
    path,
    'ERR_WEIGHTS',
  );
  const entries = Object.entries(index.weight_map);
  if (entries.length === 0) {
    throw new SiglipError('ERR_WEIGHTS', `${path}: weight_map must list tensors, got none`);
  }
  for (const [name, file] of entries) {
    // A shard lies beside its index; anything else would read files somebody else chose.
    if (basename(file) !== file || !file.endsWith('.safetensors') || /[\\\0]/u.test(file)) {
      throw new SiglipError(
        'ERR_WEIGHTS',
        `${path}: file of ${name} must be a .safetensors file beside the index, got ${JSON.stringify(file)}`,
      );
    }
  }
  return new Map(entries);
}

function indexText(path: string): string {
  try {
    const { size } = statSync(path);
    if (size <= MAX_INDEX_BYTES) return readFileSync(path, 'utf8');
    throw new SiglipError(
      'ERR_WEIGHTS',
      `${path}: size must be at most ${String(MAX_INDEX_BYTES)} bytes, got ${String(size)}`,
    );
  } catch (error) {
    throw unreadable(path, error);
  }
}

function openShards(path: string, files: ReadonlySet<string>): Map<string, SafetensorsFile> {
  const folder = dirname(path);
  const missing = [...files].filter((file) => !existsSync(join(folder, file)));
  if (missing.length > 0) {
    throw new SiglipError(
      'ERR_WEIGHTS',
      `${path}: all ${String(files.size)} shards must lie beside it, got ${String(missing.length)} missing: ` +
        `${missing.slice(0, 5).join(', ')}\nto do: fetch the missing files.`,
    );
  }
  const shards = new Map<string, SafetensorsFile>();
  try {
    for (const file of files) shards.set(file, new SafetensorsFile(join(folder, file)));
    return shards;
  } catch (error) {
    for (const shard of shards.values()) shard.dispose();
    throw error;
  }
}

/**
 * Opens the weights of a model folder (`model.safetensors`, else the index of its shards), or a
 * `.safetensors` or `.index.json` file.
 *
 * @throws SiglipError ERR_WEIGHTS, ERR_FILE
 */
export function openWeights(path: string): Weights {
  if (path.endsWith('.index.json')) return new ShardedWeights(path);
  if (path.endsWith('.safetensors')) return openSafetensors(path);
  const single = join(path, SINGLE_FILE);
  if (existsSync(single)) return openSafetensors(single);
  const index = join(path, INDEX_FILE);
  if (existsSync(index)) return new ShardedWeights(index);
  throw new SiglipError(
    'ERR_FILE',
    `${path}: folder must hold weights, got neither ${SINGLE_FILE} nor ${INDEX_FILE}\n` +
      'to do: fetch them; pytorch_model.bin and .msgpack files must be converted to safetensors first.',
  );
}

/**
 * Writes the weights of a model folder, as one file, or as shards of at most `maxShardBytes` of data
 * and an index when they do not fit into one. A tensor that is larger alone gets a shard of its own.
 *
 * @returns names of the files written
 */
export async function stageWeights(
  files: StagedFiles,
  tensors: ReadonlyMap<string, StoredTensor>,
  metadata: Readonly<Record<string, string>>,
  maxShardBytes: number,
  options: WriteOptions = {},
): Promise<string[]> {
  const shards = split(tensors, maxShardBytes);
  if (shards.length === 1) {
    await stageSafetensors(files, SINGLE_FILE, tensors, metadata, options);
    return [SINGLE_FILE];
  }
  const weightMap: Record<string, string> = {};
  const written: string[] = [];
  for (const [i, shard] of shards.entries()) {
    const name = `model-${padded(i + 1)}-of-${padded(shards.length)}.safetensors`;
    await stageSafetensors(files, name, shard, metadata, options);
    for (const tensor of shard.keys()) weightMap[tensor] = name;
    written.push(name);
  }
  const totalSize = [...tensors].reduce(
    (sum, [name, { dtype, shape }]) => sum + storedBytes(INDEX_FILE, name, dtype, shape),
    0,
  );
  await files.writeJson(INDEX_FILE, {
    metadata: { total_size: totalSize },
    weight_map: weightMap,
  });
  return [...written, INDEX_FILE];
}

function padded(number: number): string {
  return String(number).padStart(5, '0');
}

function split(
  tensors: ReadonlyMap<string, StoredTensor>,
  maxShardBytes: number,
): Map<string, StoredTensor>[] {
  if (!(maxShardBytes >= 1)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `saveCheckpoint: maxShardBytes must be positive, got ${String(maxShardBytes)}`,
    );
  }
  let current = new Map<string, StoredTensor>();
  const shards = [current];
  let bytes = 0;
  for (const [name, tensor] of [...tensors].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const size = storedBytes(INDEX_FILE, name, tensor.dtype, tensor.shape);
    if (current.size > 0 && bytes + size > maxShardBytes) {
      current = new Map();
      shards.push(current);
      bytes = 0;
    }
    current.set(name, tensor);
    bytes += size;
  }
  return shards;
}

// Which files of a repository make a model, and whether a folder holds them.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { SiglipError } from '../../errors';
import { INDEX_FILE, shardFiles, SINGLE_FILE } from '../shards';

const CONFIG = 'config.json';
const PREPROCESSORS = ['preprocessor_config.json', 'processor_config.json'] as const;
const TOKENIZERS = ['tokenizer.json', 'tokenizer.model', 'spiece.model'] as const;
// Small, and read beside a tokenizer by this library or by `transformers`.
const TOKENIZER_NOTES = [
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
] as const;

/** Every name a model may have beside its shards. */
const OPTIONAL_FILES: readonly string[] = [...PREPROCESSORS, ...TOKENIZERS, ...TOKENIZER_NOTES];

/** What a snapshot folder lacks. */
export interface SnapshotState {
  /** Nothing is missing but what the repository is known not to have. */
  readonly complete: boolean;
  /** Config, weights and preprocessor are here: the model can be loaded and gives the right vectors. */
  readonly usable: boolean;
  /** For messages. */
  readonly missing: readonly string[];
}

/**
 * Chooses what to fetch of a repository: the config, the weights (one file, or the index; its shards
 * follow from its content), one preprocessor and the tokenizer. Weights in other formats never.
 *
 * @param names - files at the top of the repository
 * @throws SiglipError ERR_WEIGHTS, ERR_CONFIG when they do not make a model
 */
export function chosenFiles(who: string, id: string, names: readonly string[]): string[] {
  const has = (name: string): boolean => names.includes(name);
  const weights = [SINGLE_FILE, INDEX_FILE].find(has);
  if (weights === undefined) throw withoutSafetensors(who, id, names);
  if (!has(CONFIG)) {
    throw new SiglipError(
      'ERR_CONFIG',
      `${who}: ${id} must hold ${CONFIG}, got a repository without it`,
    );
  }
  const preprocessor = PREPROCESSORS.find(has);
  // tokenizer.model says nothing that tokenizer.json does not; spiece.model does, for SigLIP 1.
  const tokenizers = TOKENIZERS.filter((name) => has(name)).filter(
    (name) => name !== 'tokenizer.model' || !has('tokenizer.json'),
  );
  return [
    CONFIG,
    ...(preprocessor === undefined ? [] : [preprocessor]),
    ...TOKENIZER_NOTES.filter(has),
    ...tokenizers,
    weights,
  ];
}

/** Names of the files a model may have that a repository does not have. */
export function absentFiles(names: readonly string[]): string[] {
  return OPTIONAL_FILES.filter((name) => !names.includes(name));
}

/**
 * Looks at a snapshot folder.
 *
 * @param absent - whether the repository is known not to have a file
 */
export function snapshotState(folder: string, absent: (name: string) => boolean): SnapshotState {
  const has = (name: string): boolean => existsSync(join(folder, name));
  const lacksAll = (names: readonly string[]): boolean => !names.some(has) && !names.every(absent);
  const needed = [
    ...(has(CONFIG) ? [] : [CONFIG]),
    ...missingWeights(folder, has),
    ...(lacksAll(PREPROCESSORS) ? [PREPROCESSORS[0]] : []),
  ];
  const missing = [...needed, ...(lacksAll(TOKENIZERS) ? [TOKENIZERS[0]] : [])];
  return { complete: missing.length === 0, usable: needed.length === 0, missing };
}

function missingWeights(folder: string, has: (name: string) => boolean): string[] {
  if (has(SINGLE_FILE)) return [];
  if (!has(INDEX_FILE)) return [SINGLE_FILE];
  return shardFiles(join(folder, INDEX_FILE)).filter((name) => !has(name));
}

function withoutSafetensors(who: string, id: string, names: readonly string[]): SiglipError {
  const others = names.filter((name) => /\.(?:bin|npz|msgpack|h5|onnx|gguf|pt|pth)$/iu.test(name));
  const found = others.length === 0 ? 'no weights' : others.slice(0, 3).join(', ');
  const remedy = others.some((name) => name.endsWith('.npz'))
    ? 'these are weights of big_vision; take the repository without -jax in its name.'
    : 'take a repository in transformers format, or convert the weights to safetensors.';
  return new SiglipError(
    'ERR_WEIGHTS',
    `${who}: ${id} must hold ${SINGLE_FILE} or ${INDEX_FILE}, got ${found}\nto do: ${remedy}`,
  );
}

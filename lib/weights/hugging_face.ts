// A checkpoint folder in Hugging Face layout, loaded and saved.
import { createReadStream, statSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import type { DeviceArray } from '../array';
import { expectNotAborted, SiglipError } from '../errors';
import type { ConstantSource } from '../graph';
import { flatten, mapTree } from '../graph';
import type { LeafBuilder, ModelConfig, ParameterSpec, TwoTowersParameters } from '../model';
import { textParameters, visionParameters } from '../model';
import type { HostArray } from '../native/spec';
import { elementsOf } from '../native/spec';
import { adaptedSources, imageSizeAdaptation } from './adapted';
import { formatConfig, parseConfig } from './config';
import type { HuggingFaceTensor } from './hugging_face_names';
import { huggingFaceTensors } from './hugging_face_names';
import { readJsonFile } from './json_file';
import type { Preprocessor } from './preprocessor_config';
import {
  adaptedPreprocessor,
  defaultPreprocessor,
  formatPreprocessor,
  parsePreprocessor,
} from './preprocessor_config';
import type { StoredTensor, TensorSource } from './safetensors';
import { valuesOf } from './safetensors';
import { INDEX_FILE, openWeights, SINGLE_FILE, stageWeights } from './shards';
import { publishTogether } from './staged_files';
import type { Weights } from './weights';
import { concatenate } from './weights';

const CONFIG_FILE = 'config.json';
const PREPROCESSOR_FILE = 'preprocessor_config.json';
// Newer processors are saved whole; that of images is a part of the file.
const PROCESSOR_FILE = 'processor_config.json';

/** A model as it lies on a device. */
export interface Checkpoint<Parameters = TwoTowersParameters<DeviceArray>> {
  readonly config: ModelConfig;
  readonly preprocessor: Preprocessor;
  /** Float32 whatever the file holds. The caller disposes them. */
  readonly parameters: Parameters;
}

/** Parameters of which only the towers that were asked for are there. */
export type LoadedParameters<Leaf> = Omit<TwoTowersParameters<Leaf>, 'vision' | 'text'> &
  Partial<TwoTowersParameters<Leaf>>;

/**
 * The config of a checkpoint folder.
 *
 * @throws SiglipError ERR_FILE when there is none, ERR_CONFIG when it does not describe a model
 */
export async function readModelConfig(folder: string): Promise<ModelConfig> {
  const content = await readJsonFile(folder, CONFIG_FILE, 'ERR_CONFIG');
  if (content !== undefined) return parseConfig(content, join(folder, CONFIG_FILE));
  const isFolder = statSync(folder, { throwIfNoEntry: false })?.isDirectory() === true;
  throw new SiglipError(
    'ERR_FILE',
    isFolder
      ? `${folder}: folder must hold ${CONFIG_FILE}, got a folder without it`
      : `${folder}: model must be a folder in Hugging Face layout, got no such folder`,
  );
}

/**
 * How the model of a checkpoint folder prepares images; what SigLIP 2 does when the folder does not
 * say.
 *
 * @throws SiglipError ERR_CONFIG
 */
export async function readPreprocessor(folder: string, config: ModelConfig): Promise<Preprocessor> {
  const own = await readJsonFile(folder, PREPROCESSOR_FILE, 'ERR_CONFIG');
  const content = own ?? imagePart(await readJsonFile(folder, PROCESSOR_FILE, 'ERR_CONFIG'));
  if (content === undefined) return defaultPreprocessor(config);
  const file = join(folder, own === undefined ? PROCESSOR_FILE : PREPROCESSOR_FILE);
  return fitting(parsePreprocessor(content, config.vision.layout, file), config, file);
}

function imagePart(processor: unknown): unknown {
  return typeof processor === 'object' && processor !== null && 'image_processor' in processor
    ? processor.image_processor
    : undefined;
}

// A processor for another model is the most common reason for embeddings that mean nothing.
function fitting(preprocessor: Preprocessor, { vision }: ModelConfig, file: string): Preprocessor {
  if (preprocessor.layout === 'fixed' && vision.layout === 'fixed') {
    const { height, width } = preprocessor;
    if (height === vision.imageSize && width === vision.imageSize) return preprocessor;
    throw new SiglipError(
      'ERR_CONFIG',
      `${file}: size must be ${String(vision.imageSize)} × ${String(vision.imageSize)} as in ${CONFIG_FILE}, ` +
        `got ${String(height)} × ${String(width)}`,
    );
  }
  if (preprocessor.layout === 'naflex' && preprocessor.patch !== vision.patch) {
    throw new SiglipError(
      'ERR_CONFIG',
      `${file}: patch_size must be ${String(vision.patch)} as in ${CONFIG_FILE}, got ${String(preprocessor.patch)}`,
    );
  }
  return preprocessor;
}

/** Which towers of a model are loaded. */
export type TowerChoice = 'both' | 'vision' | 'text';

/** How a checkpoint is loaded. */
export interface LoadCheckpointOptions {
  readonly signal?: AbortSignal | undefined;
  /**
   * Default `'both'`. Of the other tower nothing but names is read: its weights may even be missing.
   * Without the vision tower preprocessor_config.json is not read and stands for what SigLIP 2 does.
   */
  readonly towers?: TowerChoice;
  /**
   * Side in pixels of the images a fixed-resolution model is to take; its positions are resized to it.
   * Default: what it was trained with. {@link loadParameters} takes no notice of it.
   */
  readonly imageSize?: number | undefined;
}

/** A checkpoint whose weights are read when they are asked for, tensor by tensor. */
export interface OpenCheckpoint<Parameters = LoadedParameters<ConstantSource>> {
  readonly config: ModelConfig;
  readonly preprocessor: Preprocessor;
  /** Float32 whatever the file holds. */
  readonly parameters: Parameters;
  /** Closes the files; nothing can be read afterwards. Idempotent. */
  dispose(): void;
}

/**
 * Opens config.json, preprocessor_config.json and the weights of a folder. Every tensor is checked
 * against the config before the first is read: missing and unexpected names and disagreeing shapes
 * are listed. Old `position_ids` buffers are ignored.
 *
 * @throws SiglipError ERR_FILE, ERR_CONFIG, ERR_WEIGHTS
 */
export async function openCheckpoint(
  folder: string,
  options?: LoadCheckpointOptions & { readonly towers?: 'both' },
): Promise<OpenCheckpoint<TwoTowersParameters<ConstantSource>>>;
export async function openCheckpoint(
  folder: string,
  options: LoadCheckpointOptions,
): Promise<OpenCheckpoint>;
export async function openCheckpoint(
  folder: string,
  options: LoadCheckpointOptions = {},
): Promise<OpenCheckpoint> {
  const config = await readModelConfig(folder);
  const preprocessor =
    options.towers === 'text'
      ? defaultPreprocessor(config)
      : await readPreprocessor(folder, config);
  const { imageSize } = options;
  const adaptation = imageSize === undefined ? undefined : imageSizeAdaptation(config, imageSize);
  const weights = openWeights(folder);
  try {
    const parameters = openParameters(weights, config, options);
    const dispose = (): void => {
      weights.dispose();
    };
    if (adaptation === undefined) return { config, preprocessor, parameters, dispose };
    return {
      config: adaptation.config,
      preprocessor: adaptedPreprocessor(preprocessor, adaptation.config),
      parameters: adaptedSources(parameters, adaptation),
      dispose,
    };
  } catch (error) {
    weights.dispose();
    throw error;
  }
}

/**
 * Loads what {@link openCheckpoint} opens.
 *
 * @throws SiglipError ERR_FILE, ERR_CONFIG, ERR_WEIGHTS, ERR_OUT_OF_MEMORY, ERR_ABORTED
 * @example
 * const { config, preprocessor, parameters } = await loadCheckpoint('./siglip2-base-patch16-224');
 */
export async function loadCheckpoint(
  folder: string,
  options?: LoadCheckpointOptions & { readonly towers?: 'both' },
): Promise<Checkpoint>;
export async function loadCheckpoint(
  folder: string,
  options: LoadCheckpointOptions,
): Promise<Checkpoint<LoadedParameters<DeviceArray>>>;
export async function loadCheckpoint(
  folder: string,
  options: LoadCheckpointOptions = {},
): Promise<Checkpoint<LoadedParameters<DeviceArray>>> {
  const opened = await openCheckpoint(folder, options);
  try {
    const { config, preprocessor } = opened;
    return { config, preprocessor, parameters: await load(opened.parameters, options.signal) };
  } finally {
    opened.dispose();
  }
}

/**
 * Loads the parameters of a model from weights with Hugging Face names.
 *
 * @throws SiglipError ERR_WEIGHTS, ERR_OUT_OF_MEMORY, ERR_ABORTED
 */
export async function loadParameters(
  weights: Weights,
  config: ModelConfig,
  options: LoadCheckpointOptions = {},
): Promise<LoadedParameters<DeviceArray>> {
  return load(openParameters(weights, config, options), options.signal);
}

// The parameters of a model in weights with Hugging Face names.
function openParameters(
  weights: Weights,
  config: ModelConfig,
  { towers = 'both' }: LoadCheckpointOptions,
): LoadedParameters<ConstantSource> {
  const all = huggingFaceTensors(config);
  const tensors = all.filter(({ parts }) => parts.some(({ path }) => isWanted(path, towers)));
  expectTensors(weights, tensors, all, config);
  const sources = new Map<string, ConstantSource>();
  for (const { name, parts } of tensors) {
    let next = 0;
    for (const { path, shape } of parts) {
      const first = next;
      next += elementsOf(shape);
      sources.set(path, {
        dtype: 'float32',
        shape,
        open: (signal) => weights.load(name, { shape, first, signal }),
      });
    }
  }
  const build: LeafBuilder<ConstantSource> = ({ path }) => taken(sources, path);
  return {
    vision: towers === 'text' ? undefined : visionParameters(config, build),
    text: towers === 'vision' ? undefined : textParameters(config, build),
    logitScale: taken(sources, 'logitScale'),
    logitBias: taken(sources, 'logitBias'),
  };
}

async function load(
  sources: LoadedParameters<ConstantSource>,
  signal: AbortSignal | undefined,
): Promise<LoadedParameters<DeviceArray>> {
  const loaded = new Map<string, DeviceArray>();
  try {
    for (const { path, leaf } of flatten(sources)) {
      loaded.set(path, await (leaf as ConstantSource).open(signal));
    }
    return mapTree<LoadedParameters<ConstantSource>, ConstantSource, DeviceArray>(
      sources,
      (_, path) => taken(loaded, path),
    );
  } catch (error) {
    for (const array of loaded.values()) array.dispose();
    throw error;
  }
}

function isWanted(path: string, towers: TowerChoice): boolean {
  const [tower] = path.split('.');
  return towers === 'both' || tower === towers || !['vision', 'text'].includes(tower);
}

function taken<T>(byPath: ReadonlyMap<string, T>, path: string): T {
  const value = byPath.get(path);
  if (value !== undefined) return value;
  throw new SiglipError('ERR_WEIGHTS', `weights: parameters must include ${path}, got none`);
}

const FLOATS: ReadonlySet<string> = new Set(['F64', 'F32', 'F16', 'BF16']);

function expectTensors(
  weights: Weights,
  expected: readonly HuggingFaceTensor[],
  known: readonly HuggingFaceTensor[],
  config: ModelConfig,
): void {
  const names = new Set(expected.map(({ name }) => name));
  const knownNames = new Set(known.map(({ name }) => name));
  const missing = [...names].filter((name) => !weights.tensors.has(name));
  const unexpected = [...weights.tensors.keys()].filter(
    (name) => !knownNames.has(name) && !name.endsWith('.position_ids'),
  );
  if (missing.length > 0 || unexpected.length > 0) {
    throw new SiglipError(
      'ERR_WEIGHTS',
      [
        `${weights.source}: tensors must be the ${String(names.size)} that ${CONFIG_FILE} asks for, got ` +
          `${String(missing.length)} missing and ${String(unexpected.length)} unexpected`,
        ...listed('missing', missing),
        ...listed('unexpected', unexpected),
        ...explanation([...weights.tensors.keys()], config),
      ].join('\n'),
    );
  }
  for (const { name, shape } of expected) expectShape(weights, name, shape);
}

function expectShape(weights: Weights, name: string, expected: readonly number[]): void {
  const info = weights.tensors.get(name);
  if (info === undefined) return;
  // Some writers store one number as a scalar.
  const scalar = info.shape.length === 0 && elementsOf(expected) === 1;
  if (!scalar && String(info.shape) !== String(expected)) {
    throw new SiglipError(
      'ERR_WEIGHTS',
      `${weights.source}: ${name} must have shape [${expected.join(', ')}] by ${CONFIG_FILE}, got ` +
        `[${info.shape.join(', ')}]\nto do: ${CONFIG_FILE} is not of these weights; compare ${keysOf(name)}.`,
    );
  }
  if (!FLOATS.has(info.dtype)) {
    throw new SiglipError(
      'ERR_WEIGHTS',
      `${weights.source}: dtype of ${name} must be one of ${[...FLOATS].join(', ')}, got ${info.dtype}\n` +
        'to do: quantised checkpoints cannot be loaded; take the original one.',
    );
  }
}

function keysOf(name: string): string {
  const tower = name.startsWith('text') ? 'text_config' : 'vision_config';
  const keys: readonly (readonly [RegExp, string])[] = [
    [/text.*position_embedding/u, 'max_position_embeddings and hidden_size'],
    [/position_embedding/u, 'image_size, patch_size (siglip2: num_patches) and hidden_size'],
    [/token_embedding/u, 'vocab_size and hidden_size'],
    [/patch_embedding/u, 'patch_size, hidden_size and model_type'],
    [/fc[12]/u, 'intermediate_size and hidden_size'],
    [/text_model\.head/u, 'projection_size and hidden_size'],
  ];
  const [, found = 'hidden_size'] = keys.find(([pattern]) => pattern.test(name)) ?? [];
  return `${found} in ${tower}`;
}

function listed(what: string, names: readonly string[]): string[] {
  if (names.length === 0) return [];
  const more = names.length > 5 ? ` and ${String(names.length - 5)} more` : '';
  return [`${what}: ${names.slice(0, 5).join(', ')}${more}`];
}

// What the names say about where the file came from.
function explanation(names: readonly string[], config: ModelConfig): string[] {
  const some = (pattern: RegExp): boolean => names.some((name) => pattern.test(name));
  const [vision, text] = [some(/^vision_model\./u), some(/^text_model\./u)];
  if (vision && text) return depths(names, config);
  const tower = vision ? 'vision' : 'text';
  if (some(/^classifier\./u)) {
    return [
      'to do: this is an image classifier tuned from a SigLIP vision tower; it has no text tower. Take the checkpoint with both towers.',
    ];
  }
  if (vision || text) {
    return [`to do: this is the ${tower} tower alone. Take the checkpoint with both towers.`];
  }
  if (some(/^(?:embeddings|encoder|post_layernorm|final_layer_norm)\./u)) {
    return [
      'to do: this is one tower saved alone, without the prefix of its names. Take the checkpoint with both towers.',
    ];
  }
  if (some(/^(?:visual|text)\./u)) {
    return [
      'to do: these are names of open_clip or timm. Take the checkpoint in transformers format.',
    ];
  }
  if (some(/vision_tower|vision_model\./u)) {
    return [
      'to do: this is a larger model that holds a SigLIP tower. Take the SigLIP checkpoint itself.',
    ];
  }
  return [];
}

function depths(names: readonly string[], config: ModelConfig): string[] {
  return (['vision', 'text'] as const).flatMap((tower) => {
    const pattern = new RegExp(`^${tower}_model\\.encoder\\.layers\\.(\\d+)\\.`, 'u');
    const layers = new Set(names.flatMap((name) => pattern.exec(name)?.[1] ?? [])).size;
    const { depth } = config[tower];
    if (layers === depth) return [];
    return [
      `to do: compare num_hidden_layers in ${tower}_config, ${String(depth)}, with the ${String(layers)} layers stored.`,
    ];
  });
}

/** What is saved, and how. */
export interface SaveCheckpointOptions {
  readonly config: ModelConfig;
  /** A tree of device or host arrays, or of sources that are opened in turn, of the config's shapes. */
  readonly parameters: TwoTowersParameters<DeviceArray | Float32Array | ConstantSource>;
  /** Default: what SigLIP 2 does. */
  readonly preprocessor?: Preprocessor;
  /** How weights are stored. Default `'F32'`. */
  readonly dtype?: 'F32' | 'F16' | 'BF16' | undefined;
  /** Most bytes of data in one file; more weights are split. Default 5,000,000,000. */
  readonly maxShardBytes?: number;
  /** Files that are copied into the folder as they are, such as a tokenizer's: paths by name. */
  readonly files?: ReadonlyMap<string, string>;
  /** Strings for the header of the weights, beside `format: pt`. */
  readonly metadata?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Saves a model as a folder that `transformers` and {@link loadCheckpoint} load: config.json,
 * preprocessor_config.json and the weights. Files appear together, complete, config.json last; what
 * else the folder holds stays, but weights of an earlier save that the new ones replace are removed.
 *
 * @throws SiglipError ERR_CONFIG when the format cannot hold the model, ERR_WEIGHTS when parameters
 * do not fit the config, ERR_FILE, ERR_ABORTED
 */
export async function saveCheckpoint(
  folder: string,
  options: SaveCheckpointOptions,
): Promise<void> {
  const { config, metadata = {}, signal, maxShardBytes = 5e9 } = options;
  const tensors = storedTensors(options);
  const configFile = formatConfig(config);
  const preprocessor = formatPreprocessor(options.preprocessor ?? defaultPreprocessor(config));
  await publishTogether(folder, async (files) => {
    const all = { format: 'pt', ...metadata };
    const written = await stageWeights(files, tensors, all, maxShardBytes, { signal });
    for (const [name, path] of options.files ?? []) {
      await files.write(name, async (file) => {
        await pipeline(createReadStream(path), file.createWriteStream({ autoClose: false }));
      });
    }
    await files.writeJson(PREPROCESSOR_FILE, preprocessor);
    await files.writeJson(CONFIG_FILE, configFile);
    expectNotAborted('saveCheckpoint', signal);
    const present = await readdir(folder);
    return present.filter((name) => isWeightsFile(name) && !written.includes(name));
  });
}

function isWeightsFile(name: string): boolean {
  return (
    name === SINGLE_FILE || name === INDEX_FILE || /^model-\d{5}-of-\d{5}\.safetensors$/u.test(name)
  );
}

function storedTensors(options: SaveCheckpointOptions): Map<string, StoredTensor> {
  const { config, parameters, dtype = 'F32' } = options;
  const leaves = new Map(flatten(parameters).map(({ path, leaf }) => [path, leaf as Leaf]));
  const stored = new Map<string, StoredTensor>();
  for (const { name, shape, parts } of huggingFaceTensors(config)) {
    const sources = parts.map((part) => fittingLeaf(taken(leaves, part.path), part));
    const data =
      sources.length === 1
        ? sources[0]
        : async () => concatenate(await Promise.all(sources.map(valuesOf)));
    stored.set(name, { dtype, shape, data });
  }
  const known = new Set(
    huggingFaceTensors(config).flatMap(({ parts }) => parts.map((p) => p.path)),
  );
  const extra = [...leaves.keys()].find((path) => !known.has(path));
  if (extra === undefined) return stored;
  throw new SiglipError(
    'ERR_WEIGHTS',
    `saveCheckpoint: parameters must be those of the config, got ${extra} too`,
  );
}

type Leaf = DeviceArray | Float32Array | ConstantSource;

function fittingLeaf(leaf: Leaf, { path, shape }: ParameterSpec): TensorSource {
  const actual = 'dtype' in leaf ? leaf.shape : [leaf.length];
  const fits =
    'dtype' in leaf ? String(actual) === String(shape) : leaf.length === elementsOf(shape);
  if (fits) return 'open' in leaf ? () => opened(leaf) : leaf;
  throw new SiglipError(
    'ERR_WEIGHTS',
    `saveCheckpoint: ${path} must have shape [${shape.join(', ')}], got [${actual.join(', ')}]`,
  );
}

async function opened(source: ConstantSource): Promise<HostArray> {
  const array = await source.open();
  try {
    return await array.read();
  } finally {
    array.dispose();
  }
}

// From one checkpoint to another: another size of images, another patch, the other layout, another
// dtype, or from big_vision's format to that of Hugging Face.
import { existsSync } from 'node:fs';
import { extname, join, resolve } from 'node:path';
import { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { ConstantSource } from '../graph';
import { mapTree } from '../graph';
import type { AdaptationTarget, ModelConfig, PositionMethod, TwoTowersParameters } from '../model';
import { adaptModel, parameterTable } from '../model';
import { adaptedSources } from './adapted';
import { loadBigVision } from './big_vision';
import type { OpenCheckpoint, SaveCheckpointOptions } from './hugging_face';
import { openCheckpoint, saveCheckpoint } from './hugging_face';
import { adaptedPreprocessor, defaultPreprocessor } from './preprocessor_config';

/** Everything that a tokenizer of a folder may be spread over. */
const TOKENIZER_FILES: readonly string[] = [
  'added_tokens.json',
  'special_tokens_map.json',
  'spiece.model',
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
];

/** What a checkpoint is converted to; see {@link AdaptationTarget} for its shape. */
export interface ConvertOptions extends AdaptationTarget {
  /** How positions are resized where they are; default `'linear'`. */
  readonly positionMethod?: PositionMethod | undefined;
  /** How weights are stored. Default `'F32'`. */
  readonly dtype?: SaveCheckpointOptions['dtype'] | undefined;
  /** Folder whose tokenizer files are copied; default that of the model, none for an archive. */
  readonly tokenizer?: string | undefined;
  /** Side of the images of an `.npz`, which does not say it; see `loadBigVision`. */
  readonly sourceImageSize?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

type Opened = OpenCheckpoint<TwoTowersParameters<ConstantSource>>;

/**
 * Converts a checkpoint to a folder in Hugging Face layout: config.json, preprocessor_config.json,
 * weights and tokenizer, which appear together. Of a folder, one tensor at a time is in memory.
 *
 * @param source - a folder in Hugging Face layout, or an `.npz` of big_vision
 * @param folder - another one than the source
 * @returns the config of the new model
 * @throws SiglipError ERR_ARGUMENT, ERR_CONFIG, ERR_WEIGHTS, ERR_FILE, ERR_ABORTED
 * @example
 * await convertCheckpoint('./siglip2-so400m-patch16-256', './so400m-14', { patch: 14, imageSize: 224 });
 */
export async function convertCheckpoint(
  source: string,
  folder: string,
  options: ConvertOptions = {},
): Promise<ModelConfig> {
  if (resolve(source) === resolve(folder)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `convert: output must be another folder than the model, got ${folder}`,
    );
  }
  const archive = extname(source) === '.npz';
  const opened = archive ? await openArchive(source, options) : await openCheckpoint(source);
  try {
    const adaptation = adaptModel(opened.config, options, { positions: options.positionMethod });
    const { config } = adaptation;
    await saveCheckpoint(folder, {
      config,
      parameters: adaptedSources(opened.parameters, adaptation),
      preprocessor: adaptedPreprocessor(opened.preprocessor, config),
      files: tokenizerFiles(options.tokenizer ?? (archive ? undefined : source)),
      dtype: options.dtype,
      signal: options.signal,
    });
    return config;
  } finally {
    opened.dispose();
  }
}

// An archive is compressed, so it is read at once.
async function openArchive(source: string, options: ConvertOptions): Promise<Opened> {
  const { sourceImageSize: imageSize, signal } = options;
  const { config, parameters } = await loadBigVision(source, { imageSize, signal });
  const shapes = new Map(parameterTable(config).map(({ path, shape }) => [path, shape]));
  return {
    config,
    preprocessor: defaultPreprocessor(config),
    parameters: mapTree<TwoTowersParameters<Float32Array>, Float32Array, ConstantSource>(
      parameters,
      (values, path) => {
        const shape = shapes.get(path) ?? [values.length];
        const open = (): Promise<DeviceArray> => Promise.resolve(DeviceArray.from(values, shape));
        return { dtype: 'float32', shape, open };
      },
    ),
    dispose: () => undefined,
  };
}

function tokenizerFiles(folder: string | undefined): ReadonlyMap<string, string> {
  if (folder === undefined) return new Map();
  const paths = TOKENIZER_FILES.map((name): [string, string] => [name, join(folder, name)]);
  return new Map(paths.filter(([, path]) => existsSync(path)));
}

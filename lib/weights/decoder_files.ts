// The files of a decoder beside those of its model: `decoder_config.json` and `decoder.safetensors`, whose
// tensors have the paths of our tree. No published format has a decoder.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { ConstantSource } from '../graph';
import { flatten } from '../graph';
import type { CaptionFormat, DecoderConfig, DecoderParameters } from '../model';
import {
  checkDecoderConfig,
  decoderParameters,
  decoderTable,
  defaultCaptionFormat,
} from '../model';
import { checked, readJsonFile } from './json_file';
import type { StoredTensor, WriteOptions } from './safetensors';
import { openSafetensors, stageSafetensors } from './safetensors';
import { publishTogether } from './staged_files';

const CONFIG_FILE = 'decoder_config.json';
const WEIGHTS_FILE = 'decoder.safetensors';

const count = z.int('a positive integer').min(1, 'a positive integer');
const flag = z.boolean('true or false');
const text = z.string('a string');

const file = z.object(
  {
    width: count,
    depth: count.max(1000, 'at most 1000'),
    heads: count,
    mlpWidth: count,
    vocabulary: count,
    length: count,
    memoryWidth: count,
    attentionBias: flag,
    blockBias: flag,
    layerNormEps: z.number('a number').gt(0, 'positive').lt(1, 'below 1'),
    format: z.object(
      {
        prefixes: z.object({ cap: text, aref: text, gcap: text }, 'an object'),
        boxes: z.enum(['integers', 'loc'], 'integers or loc'),
      },
      'an object',
    ),
  },
  'an object',
);

/** A decoder in memory, and in what format it writes. */
export interface SavedDecoder<Leaf> {
  readonly config: DecoderConfig;
  readonly format: CaptionFormat;
  /** Paths begin with `decoder`. */
  readonly parameters: DecoderParameters<Leaf>;
}

/** A decoder whose weights are read when they are needed. */
export interface OpenDecoder extends SavedDecoder<ConstantSource> {
  /** Closes the file. Idempotent. */
  dispose(): void;
}

/** Whether a folder holds a decoder. */
export function hasDecoder(folder: string): boolean {
  return existsSync(join(folder, CONFIG_FILE));
}

/**
 * Writes a decoder into a folder, both files at once or none.
 *
 * @throws SiglipError ERR_FILE when the disk refuses, ERR_CONFIG, ERR_ABORTED
 */
export async function saveDecoder(
  folder: string,
  {
    config,
    parameters,
    format = defaultCaptionFormat,
  }: Omit<SavedDecoder<DeviceArray | Float32Array>, 'format'> & { readonly format?: CaptionFormat },
  options: WriteOptions = {},
): Promise<void> {
  checkDecoderConfig(config);
  const values = new Map(
    flatten(parameters, 'decoder').map(({ path, leaf }) => [
      path,
      leaf as DeviceArray | Float32Array,
    ]),
  );
  const tensors = new Map<string, StoredTensor>();
  for (const { path, shape } of decoderTable(config)) {
    const data = values.get(path);
    if (data === undefined) {
      throw new SiglipError('ERR_WEIGHTS', `saveDecoder: parameters must have ${path}, got none`);
    }
    tensors.set(path, { dtype: 'F32', shape, data });
  }
  await publishTogether(folder, async (files) => {
    await stageSafetensors(files, WEIGHTS_FILE, tensors, { format: 'pt' }, options);
    await files.writeJson(CONFIG_FILE, { ...config, format });
    return [];
  });
}

/**
 * Opens the decoder of a folder and checks its tensors against its config.
 *
 * @throws SiglipError ERR_FILE where there is none or it cannot be read, ERR_CONFIG, ERR_WEIGHTS
 */
export async function openDecoder(folder: string): Promise<OpenDecoder> {
  const content = await readJsonFile(folder, CONFIG_FILE, 'ERR_CONFIG');
  if (content === undefined) {
    throw new SiglipError(
      'ERR_FILE',
      `${folder}: a folder that writes captions must have ${CONFIG_FILE} and ${WEIGHTS_FILE}, got none\n` +
        'to do: train a model with its captioning decoder; published checkpoints have none.',
    );
  }
  const path = join(folder, CONFIG_FILE);
  const { format, ...config } = checked(file, content, path, 'ERR_CONFIG');
  checkDecoderConfig(config);
  const weights = openSafetensors(join(folder, WEIGHTS_FILE));
  try {
    const parameters = decoderParameters<ConstantSource>(config, (spec) => {
      const found = weights.tensors.get(spec.path)?.shape;
      if (String(found) !== String(spec.shape)) {
        throw new SiglipError(
          'ERR_WEIGHTS',
          `${weights.source}: ${spec.path} must have shape [${spec.shape.join(', ')}], got ${found === undefined ? 'no such tensor' : `[${found.join(', ')}]`}`,
        );
      }
      const { shape } = spec;
      return {
        dtype: 'float32',
        shape,
        open: (signal) => weights.load(spec.path, { shape, signal }),
      };
    });
    return {
      config,
      format,
      parameters,
      dispose: () => {
        weights.dispose();
      },
    };
  } catch (error) {
    weights.dispose();
    throw error;
  }
}

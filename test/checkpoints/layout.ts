// The files of a published checkpoint as they lie on the hub, with random weights.
import { Philox4x32 } from '../../lib/array/random';
import type { Initializer, ModelConfig, ParameterSpec, Release } from '../../lib/model';
import {
  concatenate,
  defaultPreprocessor,
  formatConfig,
  formatPreprocessor,
  huggingFaceTensors,
  publishTogether,
} from '../../lib/weights';
import type { StoredTensor } from '../../lib/weights';
import { stageWeights } from '../../lib/weights/shards';

/** Bytes of weights beyond which the saver of that time began another file. */
export const SHARD_BYTES = 5e9;

// Defaults of the classes of transformers; what equals them is not in a published config.json.
const TOWER_DEFAULTS = {
  attention_dropout: 0,
  hidden_act: 'gelu_pytorch_tanh',
  hidden_size: 768,
  intermediate_size: 3072,
  layer_norm_eps: 1e-6,
  num_attention_heads: 12,
  num_hidden_layers: 12,
};
const DEFAULTS = {
  text_config: { ...TOWER_DEFAULTS, max_position_embeddings: 64, vocab_size: 32000 },
  vision_config: {
    ...TOWER_DEFAULTS,
    image_size: 224,
    num_channels: 3,
    num_patches: 256,
    patch_size: 16,
  },
};

type Json = Record<string, unknown>;

function sparse(given: Json, defaults: Json): Json {
  return Object.fromEntries(
    Object.entries(given).filter(([key, value]) => defaults[key] !== value),
  );
}

/** The content of config.json as it is published: sparse. */
export function publishedConfig(config: ModelConfig, { generation }: Release): Json {
  const full = formatConfig(config);
  const text = sparse(full['text_config'] as Json, DEFAULTS.text_config);
  if (text['projection_size'] === config.text.width) delete text['projection_size'];
  const vision = sparse(full['vision_config'] as Json, DEFAULTS.vision_config);
  const naflex = config.vision.layout === 'naflex';
  // The fixed ones of SigLIP 2 were written by another script, which left these out.
  const written = generation === 1 || naflex;
  return {
    ...(written ? { architectures: full['architectures'] } : {}),
    initializer_factor: 1,
    model_type: full['model_type'],
    text_config: text,
    ...(written ? { torch_dtype: 'float32' } : {}),
    transformers_version: generation === 1 ? '4.37.0.dev0' : '4.49.0.dev0',
    vision_config: vision,
  };
}

/** JSON as the reference writes it: keys in order, floats as floats. */
export function pythonJson(content: Json): string {
  const sorted = (value: unknown): unknown =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? Object.fromEntries(
          Object.entries(value)
            .sort(([a], [b]) => (a < b ? -1 : 1))
            .map(([key, inner]) => [key, sorted(inner)]),
        )
      : value;
  const text = JSON.stringify(sorted(content), null, 2);
  return `${text.replace('"initializer_factor": 1,', '"initializer_factor": 1.0,')}\n`;
}

const BLOCK = 1 << 20;
let block: Float32Array | undefined;

// A million numbers of the standard normal distribution, cut at ±3: drawn once, used for all tensors.
function normals(): Float32Array {
  if (block === undefined) {
    block = new Float32Array(BLOCK);
    new Philox4x32(17, 'checkpoint weights').fillTruncatedNormal(block, 1, 3);
  }
  return block;
}

// Near what the parameter is initialised with, but never all alike.
function scaleOf(init: Initializer): readonly [mean: number, deviation: number] {
  switch (init.kind) {
    case 'constant':
      return [init.value, 0.05];
    case 'normal':
    case 'truncatedNormal':
      return [0, Math.max(init.deviation, 0.02)];
    case 'uniform':
      return [0, init.limit / Math.sqrt(3)];
  }
}

function randomValues({ path, shape, init }: ParameterSpec): Float32Array {
  const source = normals();
  const [mean, deviation] = scaleOf(init);
  const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
  let from = new Philox4x32(19, path).integer(BLOCK);
  for (let i = 0; i < values.length; i++) {
    values[i] = mean + deviation * source[from];
    from = (from + 1) & (BLOCK - 1);
  }
  return values;
}

/** Tensors by their published name, made when they are written. */
export function randomTensors(config: ModelConfig): Map<string, StoredTensor> {
  return new Map(
    huggingFaceTensors(config).map(({ name, shape, parts }) => [
      name,
      { dtype: 'F32', shape, data: () => Promise.resolve(concatenate(parts.map(randomValues))) },
    ]),
  );
}

/** Writes config.json, preprocessor_config.json and the weights of a checkpoint. */
export async function writeCheckpoint(
  folder: string,
  release: Release,
  config: ModelConfig,
  { shardBytes = SHARD_BYTES, maxPatches = 256 } = {},
): Promise<void> {
  const preprocessor = {
    ...defaultPreprocessor(config),
    ...(config.vision.layout === 'naflex' ? { maxPatches } : {}),
    resample: release.generation === 1 ? 'bicubic' : 'bilinear',
  } as const;
  await publishTogether(folder, async (files) => {
    await stageWeights(files, randomTensors(config), { format: 'pt' }, shardBytes);
    await files.writeJson('preprocessor_config.json', formatPreprocessor(preprocessor));
    await files.write('config.json', (file) =>
      file.writeFile(pythonJson(publishedConfig(config, release))),
    );
    return [];
  });
}

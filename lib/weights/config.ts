// config.json of a Hugging Face checkpoint. Published files are sparse: what equals the default of
// the library's classes is left out, so the defaults are part of the format. Which kind of model it
// is says `model_type` alone ("siglip": fixed resolution, "siglip2": NaFlex); names of repositories
// and architectures do not count.
import { z } from 'zod';
import { SiglipError } from '../errors';
import type { ModelConfig, TowerConfig, VisionConfig } from '../model/config';
import { checkConfig } from '../model/config';
import { checked } from './json_file';

const count = z.int('a positive integer').min(1, 'a positive integer');

// Bounds what a file can make us list; the deepest model has 40.
const DEPTH = 'an integer from 1 to 1000';
const depth = z.int(DEPTH).min(1, DEPTH).max(1000, DEPTH);

function orDefault<T extends z.ZodType, D>(
  schema: T,
  value: D,
): z.ZodType<NonNullable<z.output<T>> | D> {
  return schema.nullish().transform((given) => given ?? value);
}

const towerKeys = {
  hidden_size: orDefault(count, 768),
  intermediate_size: orDefault(count, 3072),
  num_hidden_layers: orDefault(depth, 12),
  num_attention_heads: orDefault(count, 12),
  // attention_dropout is left alone: it concerns training by the reference, not the model.
  hidden_act: orDefault(
    z.literal('gelu_pytorch_tanh', 'gelu_pytorch_tanh (the only activation of SigLIP)'),
    'gelu_pytorch_tanh',
  ),
  layer_norm_eps: orDefault(z.number('a number').gt(0, 'positive').lt(1, 'below 1'), 1e-6),
};

const textKeys = z.looseObject(
  {
    ...towerKeys,
    vocab_size: orDefault(count, 32000),
    max_position_embeddings: orDefault(count, 64),
    projection_size: count.nullish(),
  },
  'an object',
);

const visionKeys = z.looseObject(
  {
    ...towerKeys,
    num_channels: orDefault(z.literal(3, '3 (red, green, blue)'), 3),
    patch_size: orDefault(count, 16),
    image_size: orDefault(count, 224),
    num_patches: orDefault(count, 256),
    vision_use_head: orDefault(z.boolean('true or false'), true),
  },
  'an object',
);

const file = z.looseObject(
  {
    model_type: z.string('siglip or siglip2'),
    text_config: z.unknown().optional(),
    vision_config: z.unknown().optional(),
  },
  'an object',
);

type TowerKeys = z.output<z.ZodObject<typeof towerKeys>>;

/**
 * Reads the content of a `config.json`.
 *
 * @param who - the file, named in errors
 * @throws SiglipError ERR_CONFIG naming the key, what it must be and what it is
 */
export function parseConfig(content: unknown, who = 'config.json'): ModelConfig {
  const json = checked(file, content, who, 'ERR_CONFIG');
  const layout = layoutOf(json.model_type, who);
  const texts = checked(textKeys, json.text_config ?? {}, `${who}: text_config`, 'ERR_CONFIG');
  const images = checked(
    visionKeys,
    json.vision_config ?? {},
    `${who}: vision_config`,
    'ERR_CONFIG',
  );
  if (texts.layer_norm_eps !== images.layer_norm_eps) {
    throw new SiglipError(
      'ERR_CONFIG',
      `${who}: layer_norm_eps must be the same in both towers, got ${String(texts.layer_norm_eps)} ` +
        `(text) and ${String(images.layer_norm_eps)} (vision)`,
    );
  }
  return located(who, {
    vision: visionOf(images, layout),
    text: {
      ...towerOf(texts),
      vocabulary: texts.vocab_size,
      length: texts.max_position_embeddings,
      pool: 'last',
    },
    embedding: texts.projection_size ?? texts.hidden_size,
    layerNormEps: texts.layer_norm_eps,
  });
}

function layoutOf(modelType: string, who: string): 'fixed' | 'naflex' {
  if (modelType === 'siglip') return 'fixed';
  if (modelType === 'siglip2') return 'naflex';
  const tower = /^siglip2?_(vision|text)_model$/u.exec(modelType)?.[1];
  throw new SiglipError(
    'ERR_CONFIG',
    `${who}: model_type must be siglip (fixed resolution) or siglip2 (NaFlex), got ${modelType}` +
      (tower === undefined
        ? ''
        : `\nto do: this is a ${tower} tower alone; use the checkpoint with both towers.`),
  );
}

function towerOf(json: TowerKeys): TowerConfig {
  return {
    width: json.hidden_size,
    depth: json.num_hidden_layers,
    mlpWidth: json.intermediate_size,
    heads: json.num_attention_heads,
  };
}

function visionOf(json: z.output<typeof visionKeys>, layout: 'fixed' | 'naflex'): VisionConfig {
  const patch = json.patch_size;
  const shared = { ...towerOf(json), patch, pool: json.vision_use_head ? 'map' : 'none' } as const;
  if (layout === 'naflex') return { ...shared, layout, positions: json.num_patches };
  const imageSize = json.image_size;
  return { ...shared, layout, imageSize, positions: Math.floor(imageSize / patch) ** 2 };
}

// The model's own check names its own fields; say which file they came from.
function located(who: string, config: ModelConfig): ModelConfig {
  try {
    return checkConfig(config);
  } catch (error) {
    if (!(error instanceof SiglipError)) throw error;
    throw new SiglipError('ERR_CONFIG', `${who}: ${error.message}`, { cause: error });
  }
}

/**
 * The content of a `config.json` for a model, complete: nothing is left to a reader's defaults.
 *
 * @throws SiglipError ERR_CONFIG when the format cannot say what the model is
 */
export function formatConfig(config: ModelConfig): Record<string, unknown> {
  const { vision, text, embedding, layerNormEps } = checkConfig(config);
  if (text.pool !== 'last') {
    throw new SiglipError(
      'ERR_CONFIG',
      `formatConfig: text.pool must be last, the only pooling the Hugging Face format knows, got ${text.pool}`,
    );
  }
  const naflex = vision.layout === 'naflex';
  const family = naflex ? 'siglip2' : 'siglip';
  return {
    architectures: [naflex ? 'Siglip2Model' : 'SiglipModel'],
    model_type: family,
    text_config: {
      ...towerFields(text, layerNormEps),
      max_position_embeddings: text.length,
      model_type: `${family}_text_model`,
      projection_size: embedding,
      vocab_size: text.vocabulary,
    },
    torch_dtype: 'float32',
    vision_config: {
      ...towerFields(vision, layerNormEps),
      model_type: `${family}_vision_model`,
      num_channels: 3,
      patch_size: vision.patch,
      ...(vision.layout === 'naflex'
        ? { num_patches: vision.positions }
        : { image_size: vision.imageSize }),
      ...(vision.pool === 'none' ? { vision_use_head: false } : {}),
    },
  };
}

function towerFields(tower: TowerConfig, layerNormEps: number): Record<string, unknown> {
  return {
    attention_dropout: 0,
    hidden_act: 'gelu_pytorch_tanh',
    hidden_size: tower.width,
    intermediate_size: tower.mlpWidth,
    layer_norm_eps: layerNormEps,
    num_attention_heads: tower.heads,
    num_hidden_layers: tower.depth,
  };
}

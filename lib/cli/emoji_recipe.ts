// How a small model is trained on emoji: sizes and hyper-parameters for each preset of the data.
// Chosen with one of the training styles left out; the style that is measured took no part.
import type { EmojiPreset } from '../data';
import type { InitialLogits, ModelConfig } from '../model';
import type { OptimizerConfig } from '../train';
import { defaultOptimizer } from '../train';

export interface EmojiRecipe {
  readonly patch: number;
  readonly vision: { readonly depth: number };
  readonly text: { readonly depth: number; readonly length: number };
  readonly width: number;
  readonly mlpWidth: number;
  readonly heads: number;
  readonly batch: number;
  readonly steps: number;
  /** Share of the steps with a rising learning rate. */
  readonly warmup: number;
  readonly optimizer: OptimizerConfig;
}

// The token table learns from few batches per token, the two scalars from all: both need more than
// the common rate to get anywhere in a short run.
const optimizer: OptimizerConfig = {
  ...defaultOptimizer,
  learningRateFactors: { logitScale: 5, logitBias: 5, 'text.tokens': 25 },
};

const recipes: Readonly<Record<string, EmojiRecipe>> = {
  'animals-food': {
    patch: 8,
    vision: { depth: 2 },
    text: { depth: 1, length: 12 },
    width: 128,
    mlpWidth: 256,
    heads: 4,
    batch: 64,
    steps: 4000,
    warmup: 0.05,
    optimizer,
  },
  full: {
    patch: 8,
    vision: { depth: 3 },
    text: { depth: 1, length: 16 },
    width: 192,
    mlpWidth: 384,
    heads: 6,
    batch: 128,
    steps: 8000,
    warmup: 0.05,
    optimizer,
  },
};

/** The recipe of a preset. */
export function emojiRecipe(preset: EmojiPreset): EmojiRecipe {
  return recipes[preset.name] ?? recipes['animals-food'];
}

/** The model of a recipe, for images of the preset and so many token ids. */
export function emojiModel(
  recipe: EmojiRecipe,
  preset: EmojiPreset,
  vocabulary: number,
): ModelConfig {
  const { width, mlpWidth, heads, patch, vision, text } = recipe;
  const tower = { width, mlpWidth, heads };
  return {
    vision: {
      ...tower,
      depth: vision.depth,
      layout: 'fixed',
      imageSize: preset.size,
      patch,
      positions: Math.floor(preset.size / patch) ** 2,
      pool: 'map',
    },
    text: { ...tower, depth: text.depth, vocabulary, length: text.length, pool: 'last' },
    embedding: width,
    layerNormEps: 1e-6,
  };
}

/** Start of the logits: the published bias of −10 is for batches of 32k, −ln(batch) fits any. */
export function initialLogits(recipe: EmojiRecipe): InitialLogits {
  return { logitBias: -Math.log(recipe.batch) };
}

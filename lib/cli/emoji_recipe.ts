// How a small model is trained on emoji: sizes and hyper-parameters for each preset of the data.
// Chosen with one of the training styles left out; the style that is measured took no part.
import type { EmojiPreset } from '../data';
import { SiglipError } from '../errors';
import type { ModelConfig } from '../model';
import type { OptimizerConfig, Recipe } from '../train';
import { defaultOptimizer, parseRecipe, smallRecipe } from '../train';

/**
 * - `towers`: both towers by the sigmoid loss, in one stage.
 * - `complete`: everything of SigLIP 2, all its stages at the size of a laptop.
 */
export const emojiRecipes = ['towers', 'complete'] as const;
export type EmojiRecipeName = (typeof emojiRecipes)[number];

interface EmojiSizes {
  readonly imageSize: number;
  readonly patch: number;
  readonly vision: { readonly depth: number };
  readonly text: { readonly depth: number; readonly length: number };
  readonly width: number;
  readonly mlpWidth: number;
  readonly heads: number;
  readonly batch: number;
  readonly steps: number;
}

/** Share of the steps with a rising learning rate. */
const WARMUP = 0.05;

// The token table learns from few batches per token, the two scalars from all: both need more than
// the common rate to get anywhere in a short run.
const optimizer: OptimizerConfig = {
  ...defaultOptimizer,
  learningRateFactors: { logitScale: 5, logitBias: 5, 'text.tokens': 25 },
};

const animalsFood: EmojiSizes = {
  imageSize: 32,
  patch: 8,
  vision: { depth: 2 },
  text: { depth: 1, length: 12 },
  width: 128,
  mlpWidth: 256,
  heads: 4,
  batch: 64,
  steps: 4000,
};

const sizes: Readonly<Record<string, EmojiSizes>> = {
  'animals-food': animalsFood,
  full: {
    imageSize: 32,
    patch: 8,
    vision: { depth: 3 },
    text: { depth: 1, length: 16 },
    width: 192,
    mlpWidth: 384,
    heads: 6,
    batch: 128,
    steps: 8000,
  },
};

/** Whatever of a recipe the command line changes. */
export interface EmojiRecipeChanges {
  readonly steps?: number | undefined;
  readonly batch?: number | undefined;
  readonly learningRate?: number | undefined;
  readonly seed?: number | undefined;
}

/** The recipe of a preset for so many token ids. @throws ERR_ARGUMENT for a name that is none */
export function emojiRecipe(
  preset: EmojiPreset,
  name: string,
  vocabulary: number,
  changes: EmojiRecipeChanges = {},
): Recipe {
  const of = Object.hasOwn(sizes, preset.name) ? sizes[preset.name] : animalsFood;
  const { seed = 0, learningRate = optimizer.learningRate } = changes;
  const batch = changes.batch ?? of.batch;
  const shared = {
    batch,
    optimizer: { ...optimizer, learningRate },
    // The published bias of −10 is for batches of 32k, −ln(batch) fits any.
    initialLogits: { logitBias: -Math.log(batch) },
    seed,
  };
  const steps = (standard: number): { totalSteps: number; warmupSteps: number } => {
    const totalSteps = changes.steps ?? standard;
    return { totalSteps, warmupSteps: Math.floor(WARMUP * totalSteps) };
  };
  switch (name) {
    case 'towers':
      return parseRecipe({
        name: `${preset.name} towers`,
        model: emojiModel(of, vocabulary),
        ...shared,
        ...steps(of.steps),
        stages: [{ name: 'A', start: 0, end: 1, losses: {} }],
      });
    case 'complete':
      return smallRecipe({
        name: `${preset.name} complete`,
        // 64 patches: enough for views and masks to mean something.
        model: emojiModel({ ...of, imageSize: 64 }, vocabulary),
        ...shared,
        ...steps(2500),
        decoder: { depth: 1, length: 32 },
        selfDistillation: { hidden: 256, bottleneck: 64, prototypes: 1024, patchPrototypes: 512 },
        resolutions: [{ imageSize: 96 }],
        naflexLengths: [16, 36, 64, 100, 144],
        sizeFactor: 0.25,
      });
    default:
      throw new SiglipError(
        'ERR_ARGUMENT',
        `train: recipe must be one of ${emojiRecipes.join(', ')}, got ${name}`,
      );
  }
}

function emojiModel(
  { imageSize, width, mlpWidth, heads, patch, vision, text }: EmojiSizes,
  vocabulary: number,
): ModelConfig {
  const tower = { width, mlpWidth, heads };
  return {
    vision: {
      ...tower,
      depth: vision.depth,
      layout: 'fixed',
      imageSize,
      patch,
      positions: Math.floor(imageSize / patch) ** 2,
      pool: 'map',
    },
    text: { ...tower, depth: text.depth, vocabulary, length: text.length, pool: 'last' },
    embedding: width,
    layerNormEps: 1e-6,
  };
}

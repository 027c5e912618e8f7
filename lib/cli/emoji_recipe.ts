// How a small model is trained on emoji: sizes and hyper-parameters for each preset of the data.
// Chosen with one of the training styles left out; the style that is measured took no part.
import type { EmojiPreset } from '../data';
import { SiglipError } from '../errors';
import { distillationSizeFactors, distillationWeights } from '../loss';
import type { ModelConfig } from '../model';
import type { OptimizerConfig, Recipe, RecipeInput, SmallRecipe } from '../train';
import { defaultOptimizer, parseRecipe, smallRecipe } from '../train';

/**
 * - `towers`: both towers by the sigmoid loss, in one stage.
 * - `complete`: everything of SigLIP 2, all its stages at the size of a laptop.
 * - `ablation`: its stages of one resolution with more and more of its losses, to compare.
 */
export const emojiRecipes = ['towers', 'complete', 'ablation'] as const;
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
export const WARMUP = 0.05;

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
  steps: 8000,
};

const sizes: Readonly<Record<string, EmojiSizes>> = {
  'animals-food': animalsFood,
  full: {
    imageSize: 32,
    patch: 8,
    vision: { depth: 3 },
    text: { depth: 1, length: 16 },
    width: 128,
    mlpWidth: 256,
    heads: 4,
    batch: 256,
    steps: 6000,
  },
};

/** Whatever of a recipe the command line changes. */
export interface EmojiRecipeChanges {
  readonly steps?: number | undefined;
  readonly batch?: number | undefined;
  readonly learningRate?: number | undefined;
  readonly seed?: number | undefined;
  readonly microBatch?: number | undefined;
  /** Of the recipe `towers`. */
  readonly curation?: RecipeInput['stages'][number]['curation'];
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
    microBatch: changes.microBatch,
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
        stages: [{ name: 'A', start: 0, end: 1, losses: {}, curation: changes.curation }],
      });
    case 'ablation':
      return parseRecipe({
        name: `${preset.name} ablation`,
        ...shared,
        ...steps(1500),
        ...additions(of, vocabulary),
        stages: ablationStages(),
      });
    case 'complete':
      return smallRecipe({
        name: `${preset.name} complete`,
        ...shared,
        ...steps(1500),
        ...additions(of, vocabulary),
        resolutions: [{ imageSize: 96 }],
        naflexLengths: [16, 36, 64, 100, 144],
        sizeFactor: SIZE_FACTOR,
        // The model of 64 pixels before its last stage goes on with what its last stage finds learnable.
        curation: { reference: 'C', filterRatio: 0.5 },
      });
    default:
      throw new SiglipError(
        'ERR_ARGUMENT',
        `train: recipe must be one of ${emojiRecipes.join(', ')}, got ${name}`,
      );
  }
}

/** Of the self-supervised terms: that of the smallest published model. */
const SIZE_FACTOR = distillationSizeFactors.B;

// 64 patches: enough for views and masks to mean something.
function additions(
  sizesOfModel: EmojiSizes,
  vocabulary: number,
): Pick<SmallRecipe, 'model' | 'decoder' | 'selfDistillation'> {
  return {
    model: emojiModel({ ...sizesOfModel, imageSize: 64 }, vocabulary),
    decoder: { depth: 1, length: 32 },
    selfDistillation: { hidden: 256, bottleneck: 64, prototypes: 1024, patchPrototypes: 512 },
  };
}

const decoder = { caption: 1, referring: 1, grounded: 1 };
const local = SIZE_FACTOR * distillationWeights.local;
const masked = SIZE_FACTOR * distillationWeights.masked;

/** What each line of the ablation trains: until 80 % of the schedule, and from there. */
export const ablations = {
  sigmoid: [{}, {}],
  caption: [{ caption: 1 }, { caption: 1 }],
  decoder: [decoder, decoder],
  local: [decoder, { ...decoder, local }],
  masked: [decoder, { ...decoder, masked }],
  all: [decoder, { ...decoder, local, masked }],
} as const;

// Lines that begin alike share their first stage.
function ablationStages(): RecipeInput['stages'] {
  const stages: RecipeInput['stages'] = [];
  const firsts = new Map<string, string>();
  for (const [name, [first, then]] of Object.entries(ablations)) {
    const key = JSON.stringify(first);
    let after = firsts.get(key);
    if (after === undefined) {
      after = `A-${name}`;
      firsts.set(key, after);
      stages.push({ name: after, start: 0, end: 0.8, losses: first });
    }
    stages.push({ name, after, start: 0.8, end: 1, losses: then });
  }
  return stages;
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

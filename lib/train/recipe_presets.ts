// The published recipe for every size, and smaller ones. Sources: SigLIP 2 (arXiv 2502.14786 §2) and, where
// it is silent, what is named beside the value.
import { naflexLengths } from '../data';
import { SiglipError } from '../errors';
import { distillationSizeFactors, distillationWeights } from '../loss';
import type { ModelConfig, VariantName } from '../model';
import { variant } from '../model';
import { defaultOptimizer } from './optimizer';
import type { Recipe, RecipeInput } from './recipe';
import { parseRecipe } from './recipe';

type StageInput = RecipeInput['stages'][number];

interface Published {
  /** On the two self-supervised terms (§2.3). */
  readonly sizeFactor: number;
  /** Resolutions that are adapted to at 95 %, besides that of training; with the patch where it changes. */
  readonly resolutions: readonly { readonly imageSize: number; readonly patch?: number }[];
  readonly naflex: boolean;
  /** Share of the super-batch that active curation drops (§2.5). */
  readonly filterRatio?: number;
}

const published: Readonly<Record<string, Published>> = {
  'B/32': {
    sizeFactor: distillationSizeFactors.B,
    resolutions: [],
    naflex: false,
    filterRatio: 0.75,
  },
  'B/16': {
    sizeFactor: distillationSizeFactors.B,
    resolutions: [{ imageSize: 224 }, { imageSize: 384 }, { imageSize: 512 }],
    naflex: true,
    filterRatio: 0.5,
  },
  'L/16': {
    sizeFactor: distillationSizeFactors.L,
    resolutions: [{ imageSize: 384 }, { imageSize: 512 }],
    naflex: false,
  },
  'So400m/16': {
    sizeFactor: distillationSizeFactors.So400m,
    resolutions: [
      { imageSize: 384 },
      { imageSize: 512 },
      { imageSize: 224, patch: 14 },
      { imageSize: 384, patch: 14 },
    ],
    naflex: true,
  },
  'g-opt/16': {
    sizeFactor: distillationSizeFactors.g,
    resolutions: [{ imageSize: 384 }],
    naflex: false,
  },
};

/** Sizes that have a published recipe. */
export const publishedSizes: readonly string[] = Object.keys(published);

/** What all presets share: the chain of stages. */
interface Chain {
  readonly sizeFactor: number;
  readonly resolutions: Published['resolutions'];
  readonly naflexLengths?: readonly number[];
  readonly curation?: StageInput['curation'];
}

function stages({
  sizeFactor,
  resolutions,
  naflexLengths: lengths,
  curation,
}: Chain): StageInput[] {
  const decoder = { caption: 1, referring: 1, grounded: 1 };
  const all = {
    ...decoder,
    local: sizeFactor * distillationWeights.local,
    masked: sizeFactor * distillationWeights.masked,
  };
  const adapted = resolutions.map((resolution): StageInput => ({
    name: `C-${String(resolution.imageSize)}${resolution.patch === undefined ? '' : `-p${String(resolution.patch)}`}`,
    after: 'B',
    start: 0.95,
    end: 1,
    losses: all,
    resolution,
  }));
  const fixed: StageInput[] = [
    { name: 'A', start: 0, end: 0.8, losses: decoder },
    { name: 'B', after: 'A', start: 0.8, end: 0.95, losses: all },
    { name: 'C', after: 'B', start: 0.95, end: 1, losses: all },
    ...adapted,
  ];
  // Whether NaFlex starts from a model with self-distillation is not said; its own training has none.
  const naflex: StageInput[] =
    lengths === undefined
      ? []
      : [
          { name: 'A-90', after: 'A', start: 0.8, end: 0.9, losses: decoder },
          {
            name: 'N',
            after: 'A-90',
            start: 0.9,
            end: 1,
            stretch: 3.75,
            losses: decoder,
            resolution: { layout: 'naflex' },
            lengths: [...lengths],
          },
        ];
  // 4 billion examples at a constant rate, without weight decay (§2.5; the schedule is not said).
  const curated: StageInput[] =
    curation === undefined
      ? []
      : ['C', ...adapted.map(({ name }) => name)].map((after) => ({
          name: `D${after.slice(1)}`,
          after,
          start: 0,
          end: 0.1,
          constant: { learningRate: 1e-5 },
          optimizer: { weightDecay: 0 },
          losses: {},
          // What is named `C` is the stage that it goes on from.
          curation: curation.reference === 'C' ? { ...curation, reference: after } : curation,
        }));
  return [...fixed, ...naflex, ...curated];
}

/**
 * The published recipe of a size: 40 billion examples in batches of 32,768.
 *
 * @param reference - of active curation, for the sizes that have it: a model folder or a hub id. The
 * published one, So400m fine-tuned on curated data, was not released; its nearest relative is the default.
 * @throws ERR_ARGUMENT for a size that was not published
 */
export function publishedRecipe(
  size: string,
  reference = 'google/siglip2-so400m-patch16-256',
): Recipe {
  const { filterRatio, naflex, sizeFactor, resolutions } = sizeOf(size);
  return parseRecipe({
    name: `siglip2 ${size}`,
    // Every published model is of the form <size>/<patch>.
    model: variant(size as VariantName),
    batch: 32768,
    totalSteps: 1220703,
    warmupSteps: 20000,
    optimizer: defaultOptimizer,
    stages: stages({
      sizeFactor,
      resolutions,
      ...(naflex ? { naflexLengths } : {}),
      ...(filterRatio === undefined ? {} : { curation: { reference, filterRatio } }),
    }),
  });
}

/**
 * The recipe for one GPU: the same stages over 400 million examples in batches of 4,096, with a quarter
 * of the prototypes. Not published: a hundredth of the examples at the published rate.
 *
 * @throws ERR_ARGUMENT for a size that was not published
 */
export function oneGpuRecipe(size: string): Recipe {
  const { sizeFactor, resolutions, naflex } = sizeOf(size);
  return parseRecipe({
    name: `one GPU ${size}`,
    model: variant(size as VariantName),
    batch: 4096,
    totalSteps: 97656,
    warmupSteps: 2000,
    optimizer: defaultOptimizer,
    initialLogits: { logitBias: -10 },
    selfDistillation: { prototypes: 16384, patchPrototypes: 8192 },
    stages: stages({ sizeFactor, resolutions, ...(naflex ? { naflexLengths } : {}) }),
  });
}

/** Sizes of a recipe that runs on a laptop. */
export interface SmallRecipe {
  readonly name: string;
  readonly model: ModelConfig;
  readonly batch: number;
  readonly totalSteps: number;
  readonly warmupSteps: number;
  readonly optimizer: RecipeInput['optimizer'];
  readonly initialLogits: RecipeInput['initialLogits'];
  readonly decoder: RecipeInput['decoder'];
  readonly selfDistillation: RecipeInput['selfDistillation'];
  readonly resolutions: Published['resolutions'];
  readonly naflexLengths: readonly number[];
  readonly sizeFactor: number;
  readonly seed: number;
  readonly microBatch?: number | undefined;
  readonly curation?: StageInput['curation'];
}

/** All stages with sizes of one's own. @throws ERR_CONFIG */
export function smallRecipe(sizes: SmallRecipe): Recipe {
  const { resolutions, naflexLengths: lengths, sizeFactor, curation, ...recipe } = sizes;
  return parseRecipe({
    ...recipe,
    stages: stages({ resolutions, naflexLengths: lengths, sizeFactor, curation }),
  });
}

function sizeOf(size: string): Published {
  if (Object.hasOwn(published, size)) return published[size];
  throw new SiglipError(
    'ERR_ARGUMENT',
    `recipe: model must be one of ${publishedSizes.join(', ')}, got ${size}`,
  );
}

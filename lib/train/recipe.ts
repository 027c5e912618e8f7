// A recipe: a whole training as one value. Plain JSON, so that it can be read, printed, changed field by
// field and stored beside what it made.
//
// SigLIP 2 (arXiv 2502.14786 §2) trains in stages that branch off one another. Each covers a part of one
// cosine schedule, which is given in shares of the whole:
//
//   A  0–80 %      sigmoid loss and LocCa decoder, one resolution
//   B  80–95 %     with self-distillation and masked prediction
//   C  95–100 %    the same at another resolution or patch size, one stage for each
//   N  90–100 %    NaFlex, its part of the schedule stretched 3.75 times, without self-distillation
//   D  after C     small models: sigmoid loss alone on actively curated batches, constant rate 1e-5
import { z } from 'zod';
import { SiglipError } from '../errors';
import type { ModelConfig } from '../model';
import { adaptModel, checkConfig } from '../model';
import { scoreLosses } from '../ops';
import { checked } from '../weights/json_file';

const positive = z.number('a positive number').positive('a positive number');
const count = z.int('a positive integer').min(1, 'a positive integer');
const share = z
  .number('a number from 0 to 1')
  .min(0, 'a number from 0 to 1')
  .max(1, 'a number from 0 to 1');
const weight = z.number('a number of at least 0').min(0, 'a number of at least 0');

const tower = {
  width: count,
  depth: count,
  mlpWidth: count,
  heads: count,
};

const modelSchema = z.strictObject(
  {
    vision: z.discriminatedUnion(
      'layout',
      [
        z.strictObject({
          ...tower,
          layout: z.literal('fixed'),
          patch: count,
          imageSize: count,
          positions: count,
          pool: z.enum(['map', 'none'], 'map or none'),
        }),
        z.strictObject({
          ...tower,
          layout: z.literal('naflex'),
          patch: count,
          positions: count,
          pool: z.enum(['map', 'none'], 'map or none'),
        }),
      ],
      'a vision tower with layout fixed or naflex',
    ),
    text: z.strictObject({
      ...tower,
      vocabulary: count,
      length: count,
      pool: z.enum(['last', 'map', 'first', 'mean'], 'last, map, first or mean'),
    }),
    embedding: count,
    layerNormEps: positive,
  },
  'a model',
);

const optimizerSchema = z.strictObject({
  learningRate: positive,
  beta1: share,
  beta2: share,
  eps: weight,
  weightDecay: weight,
  clipNorm: weight,
  learningRateFactors: z.record(z.string(), positive),
});

const lossesSchema = z.strictObject({
  /** Weight of the sigmoid loss. Default 1. */
  sigmoid: weight.default(1),
  /** Of captioning, of referring expressions and of grounded captioning; LocCa's three targets. */
  caption: weight.default(0),
  referring: weight.default(0),
  grounded: weight.default(0),
  /** Of local-to-global self-distillation, the factor of the model's size included. */
  local: weight.default(0),
  /** Of masked prediction, that factor included. */
  masked: weight.default(0),
});

const resolutionSchema = z.strictObject({
  imageSize: count.optional(),
  patch: count.optional(),
  layout: z.enum(['fixed', 'naflex'], 'fixed or naflex').optional(),
});

const distillationSchema = z.strictObject({
  /** Of the teacher's moving average; fixed, not annealed to 1 (SILC, arXiv 2310.13355). */
  momentum: share.default(0.966),
  /** Of the centres. */
  centreMomentum: share.default(0.9),
  studentTemperature: positive.default(0.1),
  teacherTemperature: positive.default(0.04),
  centring: z.enum(['centre', 'sinkhorn'], 'centre or sinkhorn').default('centre'),
  /** Local views of an image. */
  localViews: count.default(8),
  /** Share of the patches that are masked. */
  maskShare: share.default(0.5),
  mask: z.enum(['random', 'block'], 'random or block').default('random'),
});

const curationSchema = z.strictObject({
  /** A stage before it, whose last weights are the reference, or a model folder. */
  reference: z.string('a stage or a model folder').optional(),
  /** Share of the super-batch that is dropped. */
  filterRatio: share,
  chunks: count.default(16),
  gain: positive.default(1),
  score: z
    .enum(
      ['learnability', 'easyReference', 'hardLearner'],
      'learnability, easyReference or hardLearner',
    )
    .default('learnability'),
  /** What losses a score is made of. */
  scoreLoss: z.enum(scoreLosses, 'sigmoid or softmax').default('sigmoid'),
  /** In chunks, each by what it scores with those before; or every pair by itself, or at random. */
  selection: z
    .enum(['joint', 'independent', 'uniform'], 'joint, independent or uniform')
    .default('joint'),
  /** Over ranks: out of the pairs of all of them, or each out of its own. */
  scope: z.enum(['global', 'local'], 'global or local').default('global'),
});

const stageSchema = z.strictObject({
  name: z
    .string('a name')
    .regex(/^[\w.-]+$/u, 'a name of letters, digits, dots, dashes and underscores'),
  /** The stage it goes on from; absent: it begins with initial weights. */
  after: z.string('the name of a stage').optional(),
  /** The part of the schedule, as shares of its length. */
  start: share,
  end: share,
  /** How many times slower the schedule goes. */
  stretch: positive.default(1),
  /** Instead of the cosine: this rate throughout, after so many steps of warm-up. */
  constant: z
    .strictObject({
      learningRate: positive,
      warmupSteps: z.int('steps').min(0, 'steps').default(0),
    })
    .optional(),
  /** Changes to the recipe's optimizer. */
  optimizer: optimizerSchema.partial().default({}),
  /** Default the recipe's. */
  batch: count.optional(),
  losses: lossesSchema,
  /** Changes of the model against the stage before. */
  resolution: resolutionSchema.optional(),
  /** NaFlex: the patches of an image, drawn for every batch. */
  lengths: z.array(count, 'a list of lengths').min(1, 'a list of lengths').optional(),
  curation: curationSchema.optional(),
});

const recipeSchema = z.strictObject({
  name: z.string('a name'),
  model: modelSchema,
  /** Changes to the decoder that the model's size implies. */
  decoder: z
    .strictObject({ ...tower, length: count })
    .partial()
    .default({}),
  /** Share of the captions that are predicted in parallel (§2.2). */
  parallelShare: share.default(0.5),
  selfDistillation: z
    .strictObject({
      hidden: count.default(2048),
      bottleneck: count.default(256),
      prototypes: count.default(65536),
      patchPrototypes: count.default(32768),
    })
    .prefault({}),
  distillation: distillationSchema.prefault({}),
  batch: count,
  /**
   * Pairs of one run of the towers, in stages of square images without self-distillation; the loss takes
   * the whole batch all the same. Default: the batch.
   */
  microBatch: count.optional(),
  totalSteps: count,
  warmupSteps: z.int('a number of steps').min(0, 'a number of steps'),
  optimizer: optimizerSchema,
  initialLogits: z
    .strictObject({ logitScale: z.number('a number'), logitBias: z.number('a number') })
    .partial()
    .default({}),
  seed: z.int('an integer of at least 0').min(0, 'an integer of at least 0').default(0),
  stages: z.array(stageSchema).min(1, 'a list of stages'),
});

/** A training in stages; see the head of the file. */
export type Recipe = z.output<typeof recipeSchema>;
/** A recipe as it is written: what has a default may be left out. */
export type RecipeInput = z.input<typeof recipeSchema>;
/** One stage of a recipe. */
export type Stage = Recipe['stages'][number];

/**
 * A recipe with every default filled in.
 *
 * @throws ERR_CONFIG naming the field, what it must be and what it is
 */
export function parseRecipe(content: unknown, who = 'recipe'): Recipe {
  const recipe = checked(recipeSchema, content, who, 'ERR_CONFIG');
  checkConfig(recipe.model);
  const known = new Set<string>();
  for (const stage of recipe.stages) {
    const refuse = (what: string, expected: string, got: unknown): never => {
      throw new SiglipError(
        'ERR_CONFIG',
        `${who}: ${what} of stage ${stage.name} must be ${expected}, got ${String(got)}`,
      );
    };
    if (known.has(stage.name)) refuse('name', 'unlike that of another', stage.name);
    if (stage.after !== undefined && !known.has(stage.after)) {
      refuse('after', 'a stage before it', stage.after);
    }
    if (!(stage.start < stage.end))
      refuse('start', `below its end ${String(stage.end)}`, stage.start);
    if (stage.after === undefined && stage.start !== 0) {
      refuse('start', '0, as it goes on from no other', stage.start);
    }
    const isNaflex = stageModel(recipe, stage).vision.layout === 'naflex';
    if (isNaflex !== (stage.lengths !== undefined)) {
      refuse('lengths', 'given exactly where the layout is naflex', stage.lengths);
    }
    if (isNaflex && trainsSelfDistillation(stage)) {
      refuse('losses', 'without local and masked in the naflex layout', 'both');
    }
    if (stage.curation !== undefined) {
      const { reference, selection } = stage.curation;
      if (isNaflex || trainsDecoder(stage) || trainsSelfDistillation(stage)) {
        refuse('losses', 'the sigmoid loss over square images alone with curation', 'others');
      }
      if (selection !== 'uniform' && reference === undefined) {
        refuse('curation.reference', 'given for a selection that scores', reference);
      }
    }
    known.add(stage.name);
  }
  return recipe;
}

/** Whether a stage trains the decoder. */
export function trainsDecoder({ losses }: Stage): boolean {
  return losses.caption > 0 || losses.referring > 0 || losses.grounded > 0;
}

/** Whether a stage has a teacher. */
export function trainsSelfDistillation({ losses }: Stage): boolean {
  return losses.local > 0 || losses.masked > 0;
}

/** A stage by its name. @throws ERR_ARGUMENT */
export function stageOf(recipe: Recipe, name: string): Stage {
  const stage = recipe.stages.find((one) => one.name === name);
  if (stage !== undefined) return stage;
  const names = recipe.stages.map((one) => one.name).join(', ');
  throw new SiglipError('ERR_ARGUMENT', `recipe: stage must be one of ${names}, got ${name}`);
}

/** The model that a stage trains: the recipe's with what this stage and those before it change. */
export function stageModel(recipe: Recipe, stage: Stage): ModelConfig {
  const before =
    stage.after === undefined ? recipe.model : stageModel(recipe, stageOf(recipe, stage.after));
  return stage.resolution === undefined ? before : adaptModel(before, stage.resolution).config;
}

/**
 * A recipe with some fields replaced: `{ 'stages.B.losses.local': 0 }`. Elements of lists are named by
 * their `name` or their index.
 *
 * @throws ERR_CONFIG for a field that does not exist or a value that does not fit
 */
export function overrideRecipe(recipe: Recipe, fields: Readonly<Record<string, unknown>>): Recipe {
  const changed: unknown = structuredClone(recipe);
  for (const [path, value] of Object.entries(fields)) {
    const keys = path.split('.');
    const last = keys.pop() ?? '';
    const parent = keys.reduce((at, key) => childOf(at, key, path), changed);
    if (!isObject(parent)) throw noField(path);
    Reflect.set(parent, last, value);
  }
  return parseRecipe(changed);
}

function childOf(parent: unknown, key: string, path: string): unknown {
  if (!isObject(parent)) return missingField(path);
  if (Array.isArray(parent)) {
    const named: unknown = parent.find(
      (item: unknown) => isObject(item) && Reflect.get(item, 'name') === key,
    );
    return named ?? parent[Number(key)] ?? missingField(path);
  }
  return Object.hasOwn(parent, key) ? Reflect.get(parent, key) : missingField(path);
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null;
}

function missingField(path: string): never {
  throw noField(path);
}

function noField(path: string): SiglipError {
  return new SiglipError('ERR_CONFIG', `recipe: field must be one of a recipe, got ${path}`);
}

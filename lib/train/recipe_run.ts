// A recipe carried out: stage after stage, each a run of its own in a folder of its own, begun from where
// the stage before it ended. Interrupted, it goes on where it was.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Device } from '../array';
import { resolveDevice } from '../array';
import type { Batch, Stream } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType } from '../graph';
import { adaptModel } from '../model';
import { publishTogether } from '../weights';
import type { Selection } from './curation';
import { superBatch } from './curation';
import type { Inheritance } from './inherit';
import { inheritCheckpoint } from './inherit';
import type { StepMetrics } from './metrics';
import { checkpointReference, folderReference } from './open_reference';
import type { OptimizerConfig } from './optimizer';
import type { Recipe, Stage } from './recipe';
import { parseRecipe, stageModel, stageOf, trainsSelfDistillation } from './recipe';
import type { Reference } from './reference';
import { stageObjective } from './stage_objective';
import type { TrainerConfig } from './trainer';
import { Trainer } from './trainer';

/** How a recipe is carried out. */
export interface RecipeRunOptions extends Pick<
  TrainerConfig,
  'checkpointEvery' | 'keepCheckpoints' | 'notFinite' | 'ranks'
> {
  /** `recipe.json` and a folder for every stage are kept there. */
  readonly folder: string;
  /** (3, 256): the value of each byte of each colour. */
  readonly pixelTable: Float32Array;
  readonly device?: 'auto' | Device;
  readonly precision?: ComputeDType;
  /** Compute blocks again in the backward instead of keeping their inside. Default false. */
  readonly checkpointActivations?: boolean;
  /** The stages to carry out, with those they go on from. Default all. */
  readonly stages?: readonly string[];
  /** The batches of a stage; `batchParts` says what they must bring. The run closes them. */
  readonly openStream: (stage: Stage) => Promise<Stream<Batch>>;
  readonly onStep?: (stage: Stage, metrics: StepMetrics) => void;
  /** Called with what a curated step chooses to train on. */
  readonly onSelection?: (stage: Stage, selection: Selection) => void;
  /**
   * Called when a stage has ended, with its trainer still open: to save and look at its model, on rank 0
   * where ranks have parts of it alone.
   */
  readonly onStageEnd?: (stage: Stage, trainer: Trainer) => Promise<void>;
  /** Ends the run after the current step, with a checkpoint. */
  readonly signal?: AbortSignal | undefined;
}

const RECIPE_FILE = 'recipe.json';
/** In the folder of a stage that has ended. */
const END_FILE = 'ended.json';

/** The folder of a stage's run. */
export function stageFolder(folder: string, stage: Pick<Stage, 'name'>): string {
  return join(folder, stage.name);
}

/** Updates that a stage takes in all, with full batches. */
export function stageUpdates({ totalSteps }: Recipe, { start, end, stretch }: Stage): number {
  return Math.ceil((end - start) * totalSteps * stretch - 1e-9);
}

/**
 * Carries out a recipe, or what is left of it. Every stage that ends is marked in its folder and not
 * repeated.
 *
 * @returns whether all stages asked for have ended.
 * @throws ERR_CONFIG when the folder holds a run of another recipe; what `Trainer` throws
 */
export async function runRecipe(recipe: Recipe, options: RecipeRunOptions): Promise<boolean> {
  if (isFirst(options)) await claimFolder(recipe, options.folder);
  for (const stage of stagesOf(recipe, options.stages)) {
    if (hasEnded(options.folder, stage)) continue;
    if (!(await runStage(recipe, stage, options))) return false;
  }
  return true;
}

/** The stages of those names and all that they go on from, in the recipe's order. */
export function stagesOf(recipe: Recipe, names?: readonly string[]): Stage[] {
  if (names === undefined) return [...recipe.stages];
  const wanted = new Set<string>();
  for (const name of names) {
    for (let stage: Stage | undefined = stageOf(recipe, name); stage !== undefined;) {
      wanted.add(stage.name);
      stage = stage.after === undefined ? undefined : stageOf(recipe, stage.after);
    }
  }
  return recipe.stages.filter(({ name }) => wanted.has(name));
}

async function writeJson(folder: string, name: string, content: unknown): Promise<void> {
  await publishTogether(folder, async (files) => {
    await files.writeJson(name, content);
    return [];
  });
}

// What a folder was begun with is what it goes on with.
async function claimFolder(recipe: Recipe, folder: string): Promise<void> {
  const path = join(folder, RECIPE_FILE);
  if (!existsSync(path)) {
    await writeJson(folder, RECIPE_FILE, recipe);
    return;
  }
  const known = parseRecipe(JSON.parse(await readFile(path, 'utf8')), path);
  if (JSON.stringify(known) === JSON.stringify(recipe)) return;
  throw new SiglipError(
    'ERR_CONFIG',
    `train: ${path} must hold the recipe that is run, got ${known.name} with other fields\n` +
      'to do: use another run folder, or the options the run was started with',
  );
}

async function runStage(recipe: Recipe, stage: Stage, options: RecipeRunOptions): Promise<boolean> {
  const stream = await options.openStream(stage);
  try {
    const reference = await openReference(recipe, stage, options);
    try {
      return await trainStage(recipe, stage, options, stream, reference);
    } finally {
      reference?.dispose();
    }
  } finally {
    await stream.close();
  }
}

async function trainStage(
  recipe: Recipe,
  stage: Stage,
  options: RecipeRunOptions,
  stream: Stream<Batch>,
  reference: Reference | undefined,
): Promise<boolean> {
  const { folder, pixelTable, checkpointActivations, signal } = options;
  const { onStep, onSelection, onStageEnd } = options;
  const trainer = await Trainer.start(
    {
      objective: stageObjective(recipe, stage, { pixelTable, checkpoint: checkpointActivations }),
      folder: stageFolder(folder, stage),
      ...scheduleOf(recipe, stage),
      seed: recipe.seed,
      initialLogits: recipe.initialLogits,
      microBatch: stageMicroBatch(recipe, stage),
      curation: stage.curation && { ...stage.curation, reference },
      ...(stage.after === undefined ? {} : { inherit: () => inherited(recipe, stage, folder) }),
      ...definedOf(options),
    },
    stream,
  );
  try {
    const ended = await trainer.train({
      ...(signal === undefined ? {} : { signal }),
      onStep: (metrics) => onStep?.(stage, metrics),
      onSelection: (selection) => onSelection?.(stage, selection),
    });
    if (!ended) return false;
    await trainer.gather();
    await onStageEnd?.(stage, trainer);
    if (isFirst(options)) {
      await writeJson(stageFolder(folder, stage), END_FILE, { step: trainer.step });
    }
    await options.ranks?.comm.barrier();
    return true;
  } finally {
    trainer.dispose();
  }
}

/** Pairs that a stage's stream gives at a time: of a curated stage, those to choose from. */
export function streamBatch(recipe: Recipe, { batch = recipe.batch, curation }: Stage): number {
  return curation === undefined ? batch : superBatch(batch, curation.filterRatio);
}

// Stages whose batches cannot be cut run them whole.
function stageMicroBatch(recipe: Recipe, stage: Stage): number | undefined {
  const { batch = recipe.batch } = stage;
  const { microBatch = batch } = recipe;
  const cut = stage.lengths === undefined && !trainsSelfDistillation(stage);
  return cut ? Math.min(microBatch, batch) : undefined;
}

async function openReference(
  recipe: Recipe,
  stage: Stage,
  { folder, pixelTable, device: wanted = 'auto', precision = 'float32', ranks }: RecipeRunOptions,
): Promise<Reference | undefined> {
  const { curation } = stage;
  if (curation?.reference === undefined || curation.selection === 'uniform') return undefined;
  const { reference: name } = curation;
  const { device } = resolveDevice(wanted);
  const { batch = recipe.batch } = stage;
  // Over ranks it looks at a part of the super-batch.
  const part = Math.floor(streamBatch(recipe, stage) / (ranks?.comm.size ?? 1));
  const atOnce = Math.min(stageMicroBatch(recipe, stage) ?? batch, part);
  const options = { batch: atOnce, device, precision };
  const known = recipe.stages.find((one) => one.name === name);
  if (known === undefined) return folderReference(name, options);
  const checkpoints = join(stageFolder(folder, known), 'checkpoints');
  return checkpointReference(checkpoints, stageModel(recipe, known), pixelTable, options);
}

/** Whether this process writes the files. */
function isFirst({ ranks }: RecipeRunOptions): boolean {
  return (ranks?.comm.rank ?? 0) === 0;
}

function definedOf(options: RecipeRunOptions): Partial<TrainerConfig> {
  const { device, precision, checkpointEvery, keepCheckpoints, notFinite, ranks } = options;
  return {
    ranks,
    ...(device === undefined ? {} : { device }),
    ...(precision === undefined ? {} : { precision }),
    ...(checkpointEvery === undefined ? {} : { checkpointEvery }),
    ...(keepCheckpoints === undefined ? {} : { keepCheckpoints }),
    ...(notFinite === undefined ? {} : { notFinite }),
  };
}

function scheduleOf(
  recipe: Recipe,
  stage: Stage,
): Pick<TrainerConfig, 'schedule' | 'range' | 'optimizer'> {
  const { totalSteps, warmupSteps } = recipe;
  const optimizer: OptimizerConfig = { ...recipe.optimizer, ...definedFields(stage.optimizer) };
  const { start, end, stretch, constant } = stage;
  if (constant !== undefined) {
    const steps = stageUpdates(recipe, stage);
    return {
      schedule: { totalSteps: steps, warmupSteps: constant.warmupSteps, shape: 'constant' },
      optimizer: { ...optimizer, learningRate: constant.learningRate },
    };
  }
  return {
    schedule: { totalSteps, warmupSteps },
    range: { start: start * totalSteps, end: end * totalSteps, stretch },
    optimizer,
  };
}

function definedFields<T extends object>(fields: T): { [K in keyof T]: NonNullable<T[K]> } {
  const defined = Object.entries(fields).filter(([, value]) => value !== undefined);
  return Object.fromEntries(defined) as { [K in keyof T]: NonNullable<T[K]> };
}

/** What a stage takes over: the last checkpoint of the one before it, in its own shape. */
async function inherited(recipe: Recipe, stage: Stage, folder: string): Promise<Inheritance> {
  const before = stageOf(recipe, stage.after ?? '');
  const checkpoints = join(stageFolder(folder, before), 'checkpoints');
  if (stage.resolution === undefined) return inheritCheckpoint(checkpoints);
  return inheritCheckpoint(checkpoints, adaptModel(stageModel(recipe, before), stage.resolution));
}

/** Whether a stage of a run has ended. */
export function hasEnded(folder: string, stage: Stage): boolean {
  return existsSync(join(stageFolder(folder, stage), END_FILE));
}

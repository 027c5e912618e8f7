// A training run on one's own data: a mixture of corpora, a recipe, a tokenizer.
import { existsSync } from 'node:fs';
import { appendFile, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Device } from '../array';
import type { Batch, CorpusStageOptions, DataNotice, Mixture, Stream } from '../data';
import { openCorpusStage, readMixture } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType } from '../graph';
import { normalizationTable } from '../image';
import { loadTokenizer } from '../text';
import type { RanksConfig, Recipe, Stage } from '../train';
import {
  batchParts,
  hasEnded,
  naflexLengthOptions,
  oneGpuRecipe,
  overrideRecipe,
  parseRecipe,
  publishedRecipe,
  rowsOfRank,
  runRecipe,
  stageModel,
  stagesOf,
  streamBatch,
} from '../train';
import { defaultPreprocessor } from '../weights';
import { parseJson } from '../weights/json_file';
import { RunWatcher } from './run_watcher';
import { modelFolder, saveStage } from './save_stage';

export interface CorpusTrainingOptions {
  /** The mixture's JSON file. */
  readonly data: string;
  /** `siglip2`, `one-gpu` or a JSON file. */
  readonly recipe: string;
  /** Size of the model, `B/16`; of a named recipe. */
  readonly model: string;
  /** Folder with the tokenizer. */
  readonly tokenizer: string;
  /** Fields of the recipe by their paths; see overrideRecipe. */
  readonly fields: Readonly<Record<string, unknown>>;
  readonly stages?: readonly string[] | undefined;
  readonly folder: string;
  /** Threads that decode images. */
  readonly workers: number;
  readonly checkpointEvery: number;
  readonly device: 'auto' | Device;
  readonly precision: ComputeDType;
  readonly checkpointActivations: boolean;
  readonly notFinite?: 'stop' | 'skip' | undefined;
  readonly ranks?: RanksConfig | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface CorpusTraining {
  /** Model folders of the stages that have ended. */
  readonly folders: readonly string[];
  /** False when the signal ended the run before the last step. */
  readonly finished: boolean;
}

/** Trains with a progress line and a page in the run folder; a folder with checkpoints is continued. */
export async function trainOnCorpus(options: CorpusTrainingOptions): Promise<CorpusTraining> {
  const { folder, ranks, tokenizer } = options;
  const isFirst = (ranks?.comm.rank ?? 0) === 0;
  const mixture = await readMixture(options.data);
  const recipe = await recipeOf(options);
  if (isFirst) await mkdir(folder, { recursive: true });
  const stages = stagesOf(recipe, options.stages);
  const watcher = new RunWatcher(recipe, folder, stages);
  const finished = await runRecipe(recipe, {
    folder,
    pixelTable: normalizationTable(defaultPreprocessor(recipe.model)),
    device: options.device,
    precision: options.precision,
    checkpointEvery: options.checkpointEvery,
    checkpointActivations: options.checkpointActivations,
    ...(options.notFinite === undefined ? {} : { notFinite: options.notFinite }),
    ...(options.stages === undefined ? {} : { stages: options.stages }),
    ranks,
    openStream: (stage) => openStage(recipe, stage, mixture, options),
    onStep: (stage, metrics) => {
      if (isFirst) watcher.step(stage, metrics);
    },
    onSelection: (stage, selection) => {
      if (isFirst) watcher.select(stage, selection);
    },
    onStageEnd: async (stage, trainer) => {
      if (!isFirst) return;
      await saveStage(recipe, stage, trainer, modelFolder(folder, recipe, stage), tokenizer);
      await watcher.end(stage);
    },
    signal: options.signal,
  });
  const ended = stages.filter((stage) => hasEnded(folder, stage));
  return { folders: ended.map((stage) => modelFolder(folder, recipe, stage)), finished };
}

async function recipeOf(options: CorpusTrainingOptions): Promise<Recipe> {
  const tokenizer = await loadTokenizer(options.tokenizer);
  if (tokenizer === undefined) {
    throw new SiglipError(
      'ERR_TOKENIZER',
      `train: --tokenizer must be a folder with a tokenizer, got ${options.tokenizer}`,
    );
  }
  // As many ids as the tokenizer has, whatever the size's own table holds.
  const vocabulary = { 'model.text.vocabulary': tokenizer.vocabulary };
  return overrideRecipe(await namedRecipe(options), { ...vocabulary, ...options.fields });
}

async function namedRecipe({ recipe, model }: CorpusTrainingOptions): Promise<Recipe> {
  if (recipe === 'siglip2') return publishedRecipe(model);
  if (recipe === 'one-gpu') return oneGpuRecipe(model);
  if (existsSync(recipe)) {
    return parseRecipe(parseJson(recipe, await readFile(recipe, 'utf8'), 'ERR_CONFIG'), recipe);
  }
  throw new SiglipError(
    'ERR_ARGUMENT',
    `train: --recipe must be siglip2, one-gpu or a JSON file with --data, got ${recipe}`,
  );
}

async function openStage(
  recipe: Recipe,
  stage: Stage,
  mixture: Mixture,
  { tokenizer, workers, folder, ranks }: CorpusTrainingOptions,
): Promise<Stream<Batch>> {
  const model = stageModel(recipe, stage);
  const { vision } = model;
  const preprocessor = defaultPreprocessor(model);
  const batch = streamBatch(recipe, stage);
  const { rank, size } = ranks?.comm ?? { rank: 0, size: 1 };
  const [from, to] = rowsOfRank(batch, rank, size);
  const options: CorpusStageOptions = {
    mixture,
    batch: to - from,
    rank,
    ranks: size,
    tokenizer,
    tokens: model.text.length,
    workers,
    // Every stage sees the examples in an order of its own.
    seed: recipe.seed + recipe.stages.indexOf(stage),
    parts: batchParts(recipe, stage),
    size: vision.layout === 'fixed' ? vision.imageSize : undefined,
    naflex:
      preprocessor.layout === 'naflex' && stage.lengths !== undefined
        ? { lengths: naflexLengthOptions(recipe, stage), preprocessor }
        : undefined,
  };
  return openCorpusStage(options, {
    onNotice: (notice) => {
      void report(join(folder, 'data.log'), stage, notice);
    },
  });
}

// Pairs that are passed over and workers that are replaced, a line each.
async function report(path: string, stage: Stage, notice: DataNotice): Promise<void> {
  const line = JSON.stringify({ time: new Date().toISOString(), stage: stage.name, ...notice });
  await appendFile(path, `${line}\n`);
  if (notice.kind === 'lost worker') {
    process.stderr.write(`${notice.worker} was replaced: ${notice.reason}\n`);
  }
}

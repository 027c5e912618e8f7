// `siglip2 train`: a small two-tower model on emoji, saved in Hugging Face layout.
import { Command, Option } from 'commander';
import type { Device } from '../array';
import { emojiPreset } from '../data';
import { expectDevice } from '../embed/options';
import { SiglipError } from '../errors';
import type { ComputeDType } from '../graph';
import type { EmojiRecipe } from './emoji_recipe';
import { emojiRecipe } from './emoji_recipe';
import type { EmojiTraining } from './emoji_training';
import { trainOnEmoji } from './emoji_training';
import { integer } from './integer';
import { DEVICE_HELP } from './model';
import type { Ranks, RanksFlags } from './ranks';
import { overRanks, withRanksFlags } from './ranks';

/** Options that `train` and `demo` share, as the command line gives them. */
export interface TrainFlags {
  readonly preset: string;
  readonly output: string;
  readonly steps?: string;
  readonly batch?: string;
  readonly learningRate?: string;
  readonly seed: string;
  readonly checkpointEvery: string;
  readonly tokenizer?: string;
  readonly device: 'auto' | Device;
  readonly precision: ComputeDType;
}

/** Adds the options of a training run to a command. */
export function withTrainFlags(command: Command, output: string): Command {
  return command
    .option('-p, --preset <name>', 'data and recipe: animals-food or full', 'animals-food')
    .option('-o, --output <folder>', 'run folder; one with checkpoints is continued', output)
    .option('--steps <n>', 'optimizer steps; default the recipe’s')
    .option('--batch <n>', 'pairs per step; default the recipe’s')
    .option('--learning-rate <x>', 'default the recipe’s')
    .option('--seed <n>', 'seed of weights and batches', '0')
    .option('--checkpoint-every <n>', 'steps between checkpoints', '1000')
    .option('--tokenizer <folder>', 'folder with the Gemma tokenizer; default the installed one')
    .option('--device <device>', DEVICE_HELP, 'auto')
    .addOption(
      new Option('--precision <precision>', 'of activations; bfloat16 needs a GPU')
        .choices(['float32', 'bfloat16'])
        .default('float32'),
    );
}

/** The command. */
export function trainCommand(): Command {
  const command = new Command('train').description(
    'train a small SigLIP 2 on drawings and names of emoji, under mpirun or srun on several ranks; ' +
      'interrupt to stop with a checkpoint',
  );
  return withRanksFlags(withTrainFlags(command, 'runs/train')).action(
    async (flags: TrainFlags & RanksFlags) => {
      await overRanks(flags, async (ranks) => {
        const { folder, finished } = await runTraining(flags, ranks);
        if ((ranks?.comm.rank ?? 0) === 0) process.stdout.write(finished ? `${folder}\n` : '');
      });
    },
  );
}

/**
 * Trains as the flags say; Ctrl-C, or a launcher's SIGTERM to any rank, ends the run after the current
 * step, with a checkpoint.
 */
export async function runTraining(flags: TrainFlags, ranks?: Ranks): Promise<EmojiTraining> {
  const preset = emojiPreset(flags.preset);
  const interrupt = new AbortController();
  const stop = (): void => {
    interrupt.abort();
  };
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  try {
    const training = await trainOnEmoji({
      preset,
      recipe: overridden(emojiRecipe(preset), flags),
      folder: flags.output,
      seed: integer('seed', flags.seed, 0),
      checkpointEvery: integer('checkpoint-every', flags.checkpointEvery, 0),
      tokenizer: flags.tokenizer,
      device:
        flags.device === 'auto' && ranks !== undefined
          ? ranks.device
          : expectDevice('train', '--device', flags.device),
      ranks,
      precision: flags.precision,
      signal: interrupt.signal,
    });
    if (!training.finished && (ranks?.comm.rank ?? 0) === 0) {
      process.stderr.write(`stopped; the same command continues from ${flags.output}\n`);
    }
    return training;
  } finally {
    process.removeListener('SIGINT', stop);
    process.removeListener('SIGTERM', stop);
  }
}

function overridden(recipe: EmojiRecipe, flags: TrainFlags): EmojiRecipe {
  const rate = flags.learningRate === undefined ? undefined : Number(flags.learningRate);
  if (rate !== undefined && !(rate > 0 && rate < Infinity)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `train: --learning-rate must be a positive number, got ${String(flags.learningRate)}`,
    );
  }
  return {
    ...recipe,
    steps: flags.steps === undefined ? recipe.steps : integer('steps', flags.steps, 1),
    batch: flags.batch === undefined ? recipe.batch : integer('batch', flags.batch, 1),
    optimizer: { ...recipe.optimizer, learningRate: rate ?? recipe.optimizer.learningRate },
  };
}

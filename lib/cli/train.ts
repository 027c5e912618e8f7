// `siglip2 train`: a small two-tower model on emoji, saved in Hugging Face layout.
import { Command, Option } from 'commander';
import type { Device } from '../array';
import { emojiPreset } from '../data';
import { expectDevice } from '../embed/options';
import { SiglipError } from '../errors';
import type { ComputeDType } from '../graph';
import type { EmojiRecipeChanges } from './emoji_recipe';
import { emojiRecipes } from './emoji_recipe';
import type { EmojiTraining } from './emoji_training';
import { trainOnEmoji } from './emoji_training';
import { integer } from './integer';
import { DEVICE_HELP } from './model';

/** Options that `train` and `demo` share, as the command line gives them. */
export interface TrainFlags {
  readonly preset: string;
  readonly recipe: string;
  readonly set?: Readonly<Record<string, unknown>>;
  readonly stages?: string;
  readonly notFinite?: 'stop' | 'skip';
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
    'train a small SigLIP 2 on drawings and names of emoji; interrupt to stop with a checkpoint',
  );
  return withTrainFlags(command, 'runs/train')
    .addOption(
      new Option(
        '--recipe <name>',
        'towers: the sigmoid loss alone; complete: every stage and loss',
      )
        .choices([...emojiRecipes])
        .default('towers'),
    )
    .option('--stages <names>', 'stages to carry out, by commas; default all')
    .option('--set <path=value>', 'a field of the recipe, such as stages.B.losses.local=0', collect)
    .addOption(
      new Option('--not-finite <policy>', 'what becomes of a step whose loss is not finite')
        .choices(['stop', 'skip'])
        .default('stop'),
    )
    .action(async (flags: TrainFlags) => {
      const { stages } = await runTraining(flags);
      for (const { folder } of stages) process.stdout.write(`${folder}\n`);
    });
}

// `path=value`, the value as JSON where it is, else as it stands.
function collect(
  text: string,
  before: Readonly<Record<string, unknown>> | undefined,
): Record<string, unknown> {
  const at = text.indexOf('=');
  if (at < 1) {
    throw new SiglipError('ERR_ARGUMENT', `train: --set must be <path>=<value>, got ${text}`);
  }
  const written = text.slice(at + 1);
  let value: unknown = written;
  try {
    value = JSON.parse(written);
  } catch {
    // A word.
  }
  return { ...before, [text.slice(0, at)]: value };
}

/** Trains as the flags say; Ctrl-C ends the run after the current step, with a checkpoint. */
export async function runTraining(flags: TrainFlags): Promise<EmojiTraining> {
  const preset = emojiPreset(flags.preset);
  const interrupt = new AbortController();
  const stop = (): void => {
    interrupt.abort();
  };
  process.once('SIGINT', stop);
  try {
    const training = await trainOnEmoji({
      preset,
      recipe: flags.recipe,
      changes: changesOf(flags),
      fields: flags.set,
      stages: flags.stages?.split(','),
      folder: flags.output,
      notFinite: flags.notFinite,
      checkpointEvery: integer('checkpoint-every', flags.checkpointEvery, 0),
      tokenizer: flags.tokenizer,
      device: expectDevice('train', '--device', flags.device),
      precision: flags.precision,
      signal: interrupt.signal,
    });
    if (!training.finished) {
      process.stderr.write(`stopped; the same command continues from ${flags.output}\n`);
    }
    return training;
  } finally {
    process.removeListener('SIGINT', stop);
  }
}

function changesOf(flags: TrainFlags): EmojiRecipeChanges {
  const learningRate = flags.learningRate === undefined ? undefined : Number(flags.learningRate);
  if (learningRate !== undefined && !(learningRate > 0 && learningRate < Infinity)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `train: --learning-rate must be a positive number, got ${String(flags.learningRate)}`,
    );
  }
  return {
    learningRate,
    steps: flags.steps === undefined ? undefined : integer('steps', flags.steps, 1),
    batch: flags.batch === undefined ? undefined : integer('batch', flags.batch, 1),
    seed: integer('seed', flags.seed, 0),
  };
}

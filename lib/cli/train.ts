// `siglip2 train`: a small two-tower model on emoji, saved in Hugging Face layout.
import { Command, Option } from 'commander';
import type { Device } from '../array';
import { emojiPreset, emojiPresets } from '../data';
import { expectDevice } from '../embed/options';
import { SiglipError } from '../errors';
import type { ComputeDType } from '../graph';
import { trainOnCorpus } from './corpus_training';
import type { EmojiRecipeChanges } from './emoji_recipe';
import type { EmojiTraining } from './emoji_training';
import { trainOnEmoji } from './emoji_training';
import { integer } from './integer';
import { DEVICE_HELP } from './model';
import type { Ranks, RanksFlags } from './ranks';
import { overRanks, withRanksFlags } from './ranks';
import { scoreLossOption, scoreOption } from './score_flags';

/** Options that `train` and `demo` share, as the command line gives them. */
export interface TrainFlags {
  readonly preset: string;
  readonly recipe?: string;
  readonly data?: string;
  readonly model?: string;
  readonly workers?: string;
  readonly checkpointActivations?: boolean;
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
  readonly microBatch?: string;
  readonly teacher?: string;
  readonly filterRatio?: string;
  readonly score?: Curation['score'];
  readonly scoreLoss?: Curation['scoreLoss'];
  readonly selection?: Curation['selection'];
  readonly scope?: Curation['scope'];
}

type Curation = NonNullable<EmojiRecipeChanges['curation']>;

/** Adds the options of a training run to a command. */
export function withTrainFlags(command: Command, output: string): Command {
  return command
    .option(
      '-p, --preset <name>',
      `data and recipe: ${Object.keys(emojiPresets).join(', ')}`,
      'animals-food',
    )
    .option('-o, --output <folder>', 'run folder; one with checkpoints is continued', output)
    .option('--steps <n>', 'optimizer steps; default the recipe’s')
    .option('--batch <n>', 'pairs per step; default the recipe’s')
    .option(
      '--micro-batch <n>',
      'pairs per run of the towers; the loss takes the whole batch all the same',
    )
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
    'train SigLIP 2, on one’s own data or a small one on emoji, under mpirun or srun on several ranks; ' +
      'interrupt to stop with a checkpoint',
  );
  return withRanksFlags(withTrainFlags(command, 'runs/train'))
    .option(
      '--recipe <name>',
      'on emoji: towers (the sigmoid loss alone), complete (every stage and loss) or ablation; ' +
        'with --data: siglip2 (as published), one-gpu or a JSON file',
    )
    .option('--data <file>', 'a mixture of one’s own data instead of emoji')
    .option('--model <size>', 'with --data: B/32, B/16, L/16, So400m/16 or g-opt/16', 'B/16')
    .option('--workers <n>', 'with --data: threads that decode images', '2')
    .option('--checkpoint-activations', 'compute blocks again in the backward: less memory, slower')
    .option('--stages <names>', 'stages to carry out, by commas; default all')
    .option('--set <path=value>', 'a field of the recipe, such as stages.B.losses.local=0', collect)
    .addOption(
      new Option('--not-finite <policy>', 'what becomes of a step whose loss is not finite')
        .choices(['stop', 'skip'])
        .default('stop'),
    )
    .option(
      '--teacher <folder>',
      'towers: a model whose judgement selects batches out of larger ones',
    )
    .option('--filter-ratio <f>', 'share of the larger batch that is dropped', '0.5')
    .addOption(scoreOption())
    .addOption(scoreLossOption())
    .addOption(
      new Option('--selection <selection>', 'together, each pair by itself, or at random')
        .choices(['joint', 'independent', 'uniform'])
        .default('joint'),
    )
    .addOption(
      new Option(
        '--scope <scope>',
        'over ranks: select from the pairs of all, or each from its own',
      )
        .choices(['global', 'local'])
        .default('global'),
    )
    .action(async (flags: TrainFlags & RanksFlags) => {
      await overRanks(flags, async (ranks) => {
        const folders =
          flags.data === undefined
            ? (await runTraining(flags, ranks)).stages.map(({ folder }) => folder)
            : await runOwnData(flags.data, flags, ranks);
        if ((ranks?.comm.rank ?? 0) > 0) return;
        for (const folder of folders) process.stdout.write(`${folder}\n`);
      });
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

/**
 * Trains as the flags say; Ctrl-C, or a launcher's SIGTERM to any rank, ends the run after the current
 * step, with a checkpoint.
 */
export async function runTraining(flags: TrainFlags, ranks?: Ranks): Promise<EmojiTraining> {
  const preset = emojiPreset(flags.preset);
  const training = await interruptible((signal) =>
    trainOnEmoji({
      preset,
      recipe: flags.recipe ?? 'towers',
      changes: changesOf(flags),
      fields: flags.set,
      tokenizer: flags.tokenizer,
      signal,
      ...sharedOf(flags, ranks),
    }),
  );
  tellStopped(training.finished, flags, ranks);
  return training;
}

async function runOwnData(
  data: string,
  flags: TrainFlags,
  ranks: Ranks | undefined,
): Promise<readonly string[]> {
  if (flags.tokenizer === undefined) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      'train: --tokenizer must be given with --data, got none\nto do: name the folder of a model, or of its tokenizer',
    );
  }
  const { tokenizer } = flags;
  const seed = integer('seed', flags.seed, 0);
  const number = (name: 'steps' | 'batch', text: string | undefined): object =>
    text === undefined ? {} : { [name === 'steps' ? 'totalSteps' : name]: integer(name, text, 1) };
  const { folders, finished } = await interruptible((signal) =>
    trainOnCorpus({
      data,
      recipe: flags.recipe ?? 'siglip2',
      model: flags.model ?? 'B/16',
      tokenizer,
      fields: {
        seed,
        ...number('steps', flags.steps),
        ...number('batch', flags.batch),
        ...flags.set,
      },
      workers: integer('workers', flags.workers ?? '2', 0),
      checkpointActivations: flags.checkpointActivations ?? false,
      signal,
      ...sharedOf(flags, ranks),
    }),
  );
  tellStopped(finished, flags, ranks);
  return folders;
}

function sharedOf(flags: TrainFlags, ranks: Ranks | undefined) {
  return {
    stages: flags.stages?.split(','),
    folder: flags.output,
    notFinite: flags.notFinite,
    checkpointEvery: integer('checkpoint-every', flags.checkpointEvery, 0),
    device: ranks?.device ?? expectDevice('train', '--device', flags.device),
    ranks,
    precision: flags.precision,
  };
}

async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const interrupt = new AbortController();
  const stop = (): void => {
    interrupt.abort();
  };
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  try {
    return await work(interrupt.signal);
  } finally {
    process.removeListener('SIGINT', stop);
    process.removeListener('SIGTERM', stop);
  }
}

function tellStopped(finished: boolean, flags: TrainFlags, ranks: Ranks | undefined): void {
  if (!finished && (ranks?.comm.rank ?? 0) === 0) {
    process.stderr.write(`stopped; the same command continues from ${flags.output}\n`);
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
    microBatch:
      flags.microBatch === undefined ? undefined : integer('micro-batch', flags.microBatch, 1),
    curation: curationOf(flags),
  };
}

function curationOf(flags: TrainFlags): Curation | undefined {
  const { teacher, filterRatio, score, scoreLoss, selection, scope } = flags;
  if (teacher === undefined && selection !== 'uniform') return undefined;
  return {
    reference: teacher,
    filterRatio: Number(filterRatio),
    score,
    scoreLoss,
    selection,
    scope,
  };
}

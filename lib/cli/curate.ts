// `siglip2 curate`: the rows of a data set that are worth training on.
import { Command, Option } from 'commander';
import type { Device } from '../array';
import { resolveDevice } from '../array';
import type { CuratedPart, ScoredFile } from '../bulk';
import { curateEmbeddings } from '../bulk';
import { expectDevice } from '../embed/options';
import { SiglipError } from '../errors';
import { scoreWeights } from '../ops';
import type { CurationConfig } from '../train';
import { openCheckpoint } from '../weights';
import { integer } from './integer';
import { DEVICE_HELP } from './model';
import { withOutput } from './output';
import { Progress } from './progress';

type Score = NonNullable<CurationConfig['score']>;

interface Options {
  readonly learner: string;
  readonly learnerLogits: string;
  readonly reference: string;
  readonly referenceLogits: string;
  readonly superBatch: string;
  readonly filterRatio: string;
  readonly score: Score;
  readonly chunks: string;
  readonly gain: string;
  readonly seed: string;
  readonly output?: string;
  readonly device: 'auto' | Device;
}

const LOGITS_HELP = 'model folder, or scale and bias of its logits: 112.7,-16.6';

/** The command. */
export function curateCommand(): Command {
  return new Command('curate')
    .description(
      'select the rows of a data set that a learner can learn most from, as JSON lines\n' +
        'Embeddings are safetensors with image and text, made by: siglip2 embed --what both -o a.safetensors',
    )
    .requiredOption('--learner <file>', 'embeddings by the model to be trained')
    .requiredOption('--learner-logits <logits>', LOGITS_HELP)
    .requiredOption('--reference <file>', 'embeddings of the same rows by a model that is trusted')
    .requiredOption('--reference-logits <logits>', LOGITS_HELP)
    .option('--super-batch <n>', 'consecutive rows that are compared with each other', '65536')
    .option('--filter-ratio <f>', 'share of them that is dropped', '0.5')
    .addOption(
      new Option('--score <score>', 'what a pair is selected for')
        .choices(Object.keys(scoreWeights))
        .default('learnability' satisfies Score),
    )
    .option('--chunks <n>', 'of a joint selection; 1 selects every pair by itself', '16')
    .option('--gain <x>', 'sharpness of the choice', '1')
    .option('--seed <n>', 'of the random draws', '0')
    .option('-o, --output <file>', 'write there instead of to standard output, when all is done')
    .option('--device <device>', DEVICE_HELP, 'auto')
    .action(curate);
}

async function curate(options: Options): Promise<void> {
  const gain = Number(options.gain);
  const filterRatio = Number(options.filterRatio);
  if (!Number.isFinite(gain)) {
    throw new SiglipError('ERR_ARGUMENT', `--gain must be a number, got ${options.gain}`);
  }
  const parts = curateEmbeddings({
    learner: await scored('learner', options.learner, options.learnerLogits),
    reference: await scored('reference', options.reference, options.referenceLogits),
    superBatch: integer('super-batch', options.superBatch, 1),
    filterRatio,
    score: options.score,
    chunks: integer('chunks', options.chunks, 1),
    gain,
    seed: integer('seed', options.seed, 0),
    device: resolveDevice(expectDevice('curate', '--device', options.device)).device,
  });
  let progress: Progress | undefined;
  let selected = 0;
  await withOutput(options.output, async (write) => {
    for await (const part of parts) {
      progress ??= new Progress({ total: part.total, unit: 'rows' });
      await write(linesOf(part));
      selected += part.rows.length;
      progress.update(part.done, `${String(selected)} selected`);
    }
  });
}

function linesOf({ superBatch, rows }: CuratedPart): string {
  return rows
    .map(({ row, id, score }) => `${JSON.stringify({ row, id, score, superBatch })}\n`)
    .join('');
}

async function scored(who: string, path: string, logits: string): Promise<ScoredFile> {
  const numbers = /^([^,]+),([^,]+)$/.exec(logits);
  const [scale, bias] = numbers === null ? [NaN, NaN] : [Number(numbers[1]), Number(numbers[2])];
  if (scale > 0 && Number.isFinite(scale) && Number.isFinite(bias)) {
    return { path, logitScale: Math.log(scale), logitBias: bias };
  }
  if (numbers !== null) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `--${who}-logits must be a model folder or scale,bias with a positive scale, got ${logits}`,
    );
  }
  const checkpoint = await openCheckpoint(logits, { towers: 'text' });
  try {
    const [logitScale, logitBias] = await Promise.all(
      [checkpoint.parameters.logitScale, checkpoint.parameters.logitBias].map(async (source) => {
        using array = await source.open();
        return (await array.read())[0];
      }),
    );
    return { path, logitScale, logitBias };
  } finally {
    checkpoint.dispose();
  }
}

// `siglip2 curate`: the rows of a data set that are worth training on.
import { Command, Option } from 'commander';
import { basename, dirname } from 'node:path';
import type { Device } from '../array';
import { resolveDevice } from '../array';
import type {
  Candidates,
  CurateOptions,
  CurationPart,
  CurationSummary,
  RowPlace,
  ScoredFile,
  ScoringModel,
} from '../bulk';
import {
  copyRows,
  corpusCandidates,
  curate,
  curateToFile,
  embeddingCandidates,
  modelFingerprint,
  modelLogits,
  scoringModel,
  selectedLine,
} from '../bulk';
import type { Source } from '../corpus';
import { openCorpus } from '../corpus';
import { emojiPreset, emojiPresets, emojiSource } from '../data';
import type { Siglip2 } from '../embed';
import { expectDevice } from '../embed/options';
import { SiglipError } from '../errors';
import type { Precision, ScoreLoss } from '../ops';
import { precisions } from '../ops';
import type { CurationConfig } from '../train';
import { publishTogether } from '../weights';
import { renderCurationReport } from './curation_report';
import { FailureLog } from './failure_log';
import { integer } from './integer';
import { DEVICE_HELP, loadModel, MODEL_HELP, modelFolder } from './model';
import { withOutput } from './output';
import { Progress } from './progress';
import type { RecordFlags } from './record_flags';
import { recordOptions, recordSettings, withRecordFlags } from './record_flags';
import { scoreLossOption, scoreOption } from './score_flags';

interface Options extends RecordFlags {
  readonly learner: string;
  readonly learnerLogits?: string;
  readonly reference: string;
  readonly referenceLogits?: string;
  readonly emoji?: string;
  readonly superBatch: string;
  readonly filterRatio: string;
  readonly score: NonNullable<CurationConfig['score']>;
  readonly scoreLoss: ScoreLoss;
  readonly chunks: string;
  readonly gain: string;
  readonly seed: string;
  readonly batch: string;
  readonly precision: Precision;
  readonly output?: string;
  readonly copy?: string;
  readonly keep: readonly string[];
  readonly report?: string;
  readonly restart?: boolean;
  readonly device: 'auto' | Device;
}

const LOGITS_HELP = 'of embeddings: their model’s folder, or scale and bias: 112.7,-16.6';

/** The command. */
export function curateCommand(): Command {
  const command = new Command('curate')
    .description(
      'select the rows of a data set that a learner can learn most from, as JSON lines\n' +
        'Both models look at the inputs; without inputs both are embeddings of the same rows, safetensors\n' +
        'with image and text, made by: siglip2 embed --what both -o a.safetensors',
    )
    .argument(
      '[inputs...]',
      'pairs: .jsonl, .tar (WebDataset), .parquet; patterns like a-{00..99}.tar',
    )
    .requiredOption('--learner <model>', `the model to be trained: ${MODEL_HELP}; or embeddings`)
    .option('--learner-logits <logits>', LOGITS_HELP)
    .requiredOption('--reference <model>', 'likewise a model that is trusted')
    .option('--reference-logits <logits>', LOGITS_HELP)
    .option('--emoji <preset>', `emoji as inputs: ${Object.keys(emojiPresets).join(', ')}`);
  return withRecordFlags(command)
    .option('--super-batch <n>', 'consecutive rows that are compared with each other', '65536')
    .option('--filter-ratio <f>', 'share of them that is dropped', '0.5')
    .addOption(scoreOption())
    .addOption(scoreLossOption())
    .option('--chunks <n>', 'of a joint selection; 1 selects every pair by itself', '16')
    .option('--gain <x>', 'sharpness of the choice', '1')
    .option('--seed <n>', 'of the random draws', '0')
    .option('-b, --batch <n>', 'images or texts at once', '16')
    .addOption(
      new Option('--precision <precision>', 'in what models compute; int8 on the CPU only')
        .choices(precisions)
        .default('float32' satisfies Precision),
    )
    .option('-o, --output <file>', 'write there, restartable, instead of to standard output')
    .option('--copy <file>', 'the selected pairs themselves as JSON lines')
    .option('--keep <field...>', 'further fields of records for the copy', [])
    .option('--report <file>', 'a page about what is selected and what is dropped, as HTML')
    .option('--restart', 'throw away what an interrupted run has done')
    .option('--device <device>', DEVICE_HELP, 'auto')
    .action(curateInputs);
}

async function curateInputs(inputs: readonly string[], options: Options): Promise<void> {
  for (const name of ['copy', 'report'] as const) {
    if (options[name] === undefined || options.output !== undefined) continue;
    throw new SiglipError('ERR_ARGUMENT', `curate: --${name} must come with --output, got none`);
  }
  const selection = selectionOf(options);
  if (inputs.length === 0 && options.emoji === undefined) {
    if (options.copy !== undefined) {
      throw new SiglipError('ERR_ARGUMENT', 'curate: --copy must come with inputs, got none');
    }
    const [learner, reference] = await Promise.all([
      scoredFile('learner', options.learner, options.learnerLogits),
      scoredFile('reference', options.reference, options.referenceLogits),
    ]);
    await write(await embeddingCandidates(learner, reference), [], selection, options);
    return;
  }
  for (const name of ['learner', 'reference'] as const) {
    if (options[`${name}Logits`] === undefined) continue;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `curate: --${name}-logits must come with embeddings, got a model: it has its own`,
    );
  }
  const models: Siglip2[] = [];
  try {
    const sources = await sourcesOf(inputs, options);
    await write(await modelCandidates(sources, options, models), sources, selection, options);
  } finally {
    for (const model of models) model.dispose();
  }
}

function selectionOf(options: Options): CurateOptions {
  const gain = Number(options.gain);
  if (!Number.isFinite(gain)) {
    throw new SiglipError('ERR_ARGUMENT', `--gain must be a number, got ${options.gain}`);
  }
  return {
    superBatch: integer('super-batch', options.superBatch, 1),
    filterRatio: Number(options.filterRatio),
    score: options.score,
    scoreLoss: options.scoreLoss,
    chunks: integer('chunks', options.chunks, 1),
    gain,
    seed: integer('seed', options.seed, 0),
    device: resolveDevice(expectDevice('curate', '--device', options.device)).device,
  };
}

async function sourcesOf(inputs: readonly string[], options: Options): Promise<Source[]> {
  const records =
    inputs.length === 0
      ? []
      : await openCorpus({ inputs, what: 'both', keep: options.keep, ...recordOptions(options) });
  return options.emoji === undefined
    ? records
    : [...records, await emojiSource(emojiPreset(options.emoji))];
}

async function modelCandidates(
  sources: readonly Source[],
  options: Options,
  loaded: Siglip2[],
): Promise<Candidates> {
  const { precision } = options;
  const [learner, reference] = [
    await modelFolder(options.learner),
    await modelFolder(options.reference),
  ];
  const load = async (folder: string): Promise<ScoringModel> => {
    const model = await loadModel({ model: folder, precision, device: options.device });
    loaded.push(model);
    return scoringModel(model, folder);
  };
  return corpusCandidates({
    sources,
    batch: integer('batch', options.batch, 1),
    models: async () => ({ learner: await load(learner), reference: await load(reference) }),
    settings: {
      learner: await modelFingerprint(learner),
      reference: await modelFingerprint(reference),
      precision,
      ...recordSettings(options),
    },
  });
}

async function write(
  candidates: Candidates,
  sources: readonly Source[],
  selection: CurateOptions,
  options: Options,
): Promise<void> {
  const { output } = options;
  const failures = new FailureLog();
  if (output === undefined) {
    await withOutput(undefined, async (writeText) => {
      for await (const part of curate(candidates, selection)) {
        for (const failure of part.failures) failures.add(failure);
        for (const row of part.rows) {
          if (!row.selected) continue;
          const line = selectedLine(row, part.superBatch, candidates.sources);
          await writeText(`${JSON.stringify(line)}\n`);
        }
      }
    });
    return;
  }
  const stopping = new AbortController();
  let stoppedBy = '';
  const stop = (signal: NodeJS.Signals): void => {
    stoppedBy = signal;
    process.stderr.write(
      `siglip2: ${signal}: stopping after this super-batch; once more stops now\n`,
    );
    stopping.abort();
  };
  process.once('SIGINT', stop).once('SIGTERM', stop);
  try {
    let progress: Progress | undefined;
    const summary = await curateToFile({
      ...selection,
      candidates,
      output,
      restart: options.restart,
      signal: stopping.signal,
      onFailure: (failure) => {
        failures.add(failure);
      },
      onProgress: ({ done, before, total, estimated, selected, finished }) => {
        progress ??= new Progress({ total, unit: 'rows', from: before });
        // The last rows that are read are still to be selected from.
        if (done >= total && !finished) return;
        progress.setTotal(total, estimated);
        progress.update(done, `${String(selected)} selected`);
      },
      beside: async (whole, parts) => {
        if (options.copy !== undefined) {
          await copyRows(options.copy, sources, await placesOf(parts()));
        }
        if (options.report !== undefined) await report(options.report, whole, sources, options);
      },
    });
    tell(summary, stoppedBy);
  } finally {
    process.off('SIGINT', stop).off('SIGTERM', stop);
  }
}

async function placesOf(parts: AsyncIterable<CurationPart>): Promise<RowPlace[]> {
  const places: RowPlace[] = [];
  for await (const { rows } of parts) places.push(...rows);
  return places;
}

async function report(
  path: string,
  summary: CurationSummary,
  sources: readonly Source[],
  options: Options,
): Promise<void> {
  const page = await renderCurationReport({
    summary,
    sources,
    settings: {
      learner: options.learner,
      reference: options.reference,
      'super-batch': options.superBatch,
      'filter ratio': options.filterRatio,
      score: options.score,
      'score loss': options.scoreLoss,
      chunks: options.chunks,
      gain: options.gain,
      seed: options.seed,
    },
  });
  await publishTogether(dirname(path), async (files) => {
    await files.write(basename(path), (file) => file.writeFile(page));
    return [];
  });
}

function tell(summary: CurationSummary, stoppedBy: string): void {
  const { finished, selected, dropped, failures, failuresFile, output } = summary;
  if (!finished) {
    throw new SiglipError(
      'ERR_ABORTED',
      `curate: stopped by ${stoppedBy} after ${String(summary.superBatches)} super-batches, kept in ${output}.parts\n` +
        'to do: the same command continues from there.',
    );
  }
  const total = selected.count + dropped.count;
  const mean = ({ count, sums }: CurationSummary['selected']): string =>
    (sums.score / count).toPrecision(3);
  process.stderr.write(
    `siglip2: ${String(selected.count)} of ${String(total)} rows selected; mean score ${mean(selected)}, of those dropped ${mean(dropped)}\n`,
  );
  if (failuresFile !== undefined) {
    process.stderr.write(
      `siglip2: passed over ${String(failures)} of ${String(total + failures)} rows, which could not be read; ${failuresFile} says why\n`,
    );
  }
}

async function scoredFile(
  who: 'learner' | 'reference',
  path: string,
  logits: string | undefined,
): Promise<ScoredFile> {
  const numbers = /^([^,]+),([^,]+)$/.exec(logits ?? '');
  const [scale, bias] = numbers === null ? [NaN, NaN] : [Number(numbers[1]), Number(numbers[2])];
  if (scale > 0 && Number.isFinite(scale) && Number.isFinite(bias)) {
    return { path, logitScale: Math.log(scale), logitBias: bias };
  }
  if (numbers !== null || logits === undefined) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `curate: --${who}-logits must be a model folder or scale,bias with a positive scale, got ${logits ?? 'none'}\n` +
        'to do: give them with embeddings; or name inputs, for models to look at.',
    );
  }
  return { path, ...(await modelLogits(logits)) };
}

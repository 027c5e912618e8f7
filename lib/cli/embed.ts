// `siglip2 embed`: vectors of images and texts, a few to standard output or a corpus to a file.
import { Command, Option } from 'commander';
import { availableParallelism } from 'node:os';
import type { BulkProgress, BulkSummary, Shard } from '../bulk';
import {
  bulkModel,
  embedCorpus,
  embedRows,
  modelFingerprint,
  outputFormat,
  outputFormats,
  parseShard,
  towersOf,
  WHOLE,
} from '../bulk';
import type { Source, What } from '../corpus';
import { openCorpus } from '../corpus';
import type { Siglip2 } from '../embed';
import { SiglipError } from '../errors';
import { FailureLog } from './failure_log';
import { integer } from './integer';
import type { ModelOptions } from './model';
import { loadModel, modelFolder, withModel } from './model';
import { withOutput } from './output';
import { Progress } from './progress';
import type { RecordFlags } from './record_flags';
import { recordOptions, recordSettings, withRecordFlags } from './record_flags';

interface Options extends ModelOptions, RecordFlags {
  readonly text: readonly string[];
  readonly list: readonly string[];
  readonly what: What;
  readonly include: readonly string[];
  readonly exclude: readonly string[];
  readonly output?: string;
  readonly format?: string;
  readonly dtype: 'float32' | 'float16';
  readonly raw?: boolean;
  readonly maxPatches?: string;
  readonly batch: string;
  readonly partRows: string;
  readonly shard?: string;
  readonly shards?: string;
  readonly maxFailures?: string;
  readonly restart?: boolean;
  readonly retry?: boolean;
  readonly json?: boolean;
}

/** The command. */
export function embedCommand(): Command {
  const command = new Command('embed')
    .description('embed images and texts, from a few files to a whole corpus')
    .argument(
      '[inputs...]',
      'image files, folders of them, .jsonl, .tar (WebDataset), .parquet; patterns like a-{00..99}.tar',
    );
  withModel(command)
    .option('-t, --text <text...>', 'texts to embed', [])
    .option('--list <file...>', 'files that list image paths, one a line', [])
    .addOption(
      new Option('--what <what>', 'what to embed of records')
        .choices(['image', 'text', 'both'])
        .default('image'),
    );
  return withRecordFlags(command)
    .option('--include <pattern...>', 'files below a folder to take; default all images', [])
    .option('--exclude <pattern...>', 'files below a folder to leave out', [])
    .option('-o, --output <file>', 'write there, restartable, instead of to standard output')
    .option('--format <format>', `${outputFormats.join(', ')}; default by the output’s name`)
    .addOption(
      new Option('--dtype <dtype>', 'element type of stored embeddings')
        .choices(['float32', 'float16'])
        .default('float32'),
    )
    .option('-b, --batch <n>', 'images or texts at once', '16')
    .option('--max-patches <n>', 'most patches of a NaFlex image; default the checkpoint’s')
    .option('--raw', 'do not bring the embeddings to unit length')
    .option('--part-rows <n>', 'rows between two points of restart', '1024')
    .option('--shard <i/n>', 'embed one of n shards; auto asks Slurm or Kubernetes')
    .option('--shards <n>', 'number of shards, where --shard auto cannot know it')
    .option('--max-failures <n>', 'failed rows that are accepted; one more stops the run')
    .option('--restart', 'throw away what an interrupted run has done')
    .option('--retry', 'try failed rows of an interrupted or finished run again')
    .option('--json', 'a summary as JSON on standard output')
    .action(embed);
}

async function embed(inputs: readonly string[], options: Options): Promise<void> {
  const batch = integer('batch', options.batch, 1);
  const partRows = integer('part-rows', options.partRows, 1);
  const shard = shardOf(options);
  const limit =
    options.maxFailures === undefined ? undefined : integer('max-failures', options.maxFailures, 0);
  if (options.maxPatches !== undefined) integer('max-patches', options.maxPatches, 1);
  const sources = await openCorpus({
    inputs,
    lists: options.list,
    texts: options.text,
    what: options.what,
    ...recordOptions(options),
    include: options.include,
    exclude: options.exclude,
  });
  const run = { sources, batch, limit };
  if (options.output === undefined) await toStandardOutput(run, options);
  else await toFile({ ...run, partRows, shard, output: options.output }, options);
}

function shardOf({ shard, shards, output }: Options): Shard {
  if (shard === undefined) return WHOLE;
  const parsed = parseShard(
    shard,
    process.env,
    shards === undefined ? undefined : integer('shards', shards, 1),
  );
  if (output !== undefined) return parsed;
  throw new SiglipError('ERR_ARGUMENT', 'embed: --shard must come with --output, got none');
}

function bulkOptions({ raw, maxPatches }: Pick<Options, 'raw' | 'maxPatches'>): {
  normalize: boolean;
  maxPatches?: number;
} {
  return {
    normalize: raw !== true,
    ...(maxPatches === undefined ? {} : { maxPatches: integer('max-patches', maxPatches, 1) }),
  };
}

// libvips decodes on libuv's pool of four; more would only hold more pixels.
const decodesAtOnce = Math.min(4, availableParallelism() + 1);

async function toStandardOutput(
  {
    sources,
    batch,
    limit = Infinity,
  }: { sources: Source[]; batch: number; limit?: number | undefined },
  options: Options,
): Promise<void> {
  for (const [name, given] of [
    ['json', options.json === true],
    ['dtype', options.dtype !== 'float32'],
    ['format', options.format !== undefined && options.format !== 'jsonl'],
  ] as const) {
    if (!given) continue;
    throw new SiglipError('ERR_ARGUMENT', `embed: --${name} must come with --output, got none`);
  }
  const model = await loadModel(options, { towers: towersOf(sources) });
  const failures = new FailureLog();
  let done = 0;
  try {
    const bulk = bulkModel(model, bulkOptions(options));
    const total = sources.reduce<number | undefined>(
      (sum, { length }) => (sum === undefined || length === undefined ? undefined : sum + length),
      0,
    );
    const progress = new Progress({ total, unit: 'inputs' });
    await withOutput(undefined, async (write) => {
      for (const source of sources) {
        const form = { batch, blockRows: Infinity, concurrency: decodesAtOnce };
        for await (const step of embedRows(source, () => true, bulk, form)) {
          for (const { id, vectors } of step.rows) {
            const [first, second] = vectors.map((vector) => [...vector]);
            const row =
              second === undefined
                ? { [source.idKey]: id, embedding: first }
                : { id, image_embedding: first, text_embedding: second };
            await write(`${JSON.stringify(row)}\n`);
          }
          for (const failure of step.failures) failures.add(failure);
          done += step.rows.length + step.failures.length;
          if (failures.count > limit) throw tooMany(failures.count, limit, '');
          if (step.rows.length + step.failures.length > 0) progress.update(done);
        }
      }
      progress.finish(done);
    });
  } finally {
    model.dispose();
  }
  if (failures.count > 0 && options.maxFailures === undefined)
    throw someFailed(failures.count, done);
}

interface FileRun {
  readonly sources: Source[];
  readonly batch: number;
  readonly partRows: number;
  readonly limit: number | undefined;
  readonly shard: Shard;
  readonly output: string;
}

async function toFile(run: FileRun, options: Options): Promise<void> {
  const { sources, batch, partRows, limit, shard, output } = run;
  const failures = new FailureLog();
  const folder = await modelFolder(options.model);
  const stopping = new AbortController();
  let stoppedBy = '';
  const stop = (signal: NodeJS.Signals): void => {
    stoppedBy = signal;
    process.stderr.write(`siglip2: ${signal}: stopping after this batch; once more stops now\n`);
    stopping.abort();
  };
  let model: Siglip2 | undefined;
  const view = new ProgressView();
  process.once('SIGINT', stop).once('SIGTERM', stop);
  try {
    const summary = await embedCorpus({
      sources,
      model: async () => {
        model = await loadModel({ ...options, model: folder }, { towers: towersOf(sources) });
        return bulkModel(model, bulkOptions(options));
      },
      modelFingerprint: await modelFingerprint(folder),
      output,
      format: outputFormat(output, options.format),
      dtype: options.dtype,
      batch,
      partRows,
      concurrency: decodesAtOnce,
      shard,
      ...(limit === undefined ? {} : { maxFailures: limit }),
      restart: options.restart === true,
      retry: options.retry === true,
      settings: settingsOf(options),
      signal: stopping.signal,
      onProgress: (progress) => {
        view.update(progress);
      },
      onFailure: (failure) => {
        failures.add(failure);
      },
    });
    if (summary.finished) view.finish(summary);
    if (options.json === true) process.stdout.write(`${JSON.stringify(summary)}\n`);
    report(summary, { stoppedBy, limit, accepted: limit !== undefined });
  } finally {
    process.off('SIGINT', stop).off('SIGTERM', stop);
    model?.dispose();
  }
}

function settingsOf(options: Options): Record<string, string> {
  const settings: Record<string, string> = { normalize: String(options.raw !== true) };
  if (options.maxPatches !== undefined) settings['max patches'] = options.maxPatches;
  if (options.precision !== 'float32') settings['precision'] = options.precision;
  return { ...settings, ...recordSettings(options) };
}

/** One bar whose end may move while rows are counted. */
class ProgressView {
  private progress: Progress | undefined;

  update({ done, before, total, estimated, failures }: BulkProgress): void {
    this.progress ??= new Progress({ total, unit: 'rows', from: before });
    this.progress.setTotal(total, estimated);
    this.progress.update(done, detailOf(failures));
  }

  finish({ rows, failures }: BulkSummary): void {
    this.progress?.finish(rows + failures, detailOf(failures));
  }
}

function detailOf(failures: number): string {
  return failures === 0 ? '' : `${String(failures)} failed`;
}

function report(
  summary: BulkSummary,
  {
    stoppedBy,
    limit,
    accepted,
  }: { stoppedBy: string; limit: number | undefined; accepted: boolean },
): void {
  const { finished, stopped, rows, failures, failuresFile, journal, outputs, processed } = summary;
  const where = failuresFile === undefined ? '' : `, named in ${failuresFile}`;
  if (!finished) {
    if (stopped === 'failures') throw tooMany(failures, limit ?? 0, where);
    throw new SiglipError(
      'ERR_ABORTED',
      `embed: stopped by ${stoppedBy} after ${String(rows + failures)} rows, kept in ${journal}\n` +
        'to do: the same command continues from there.',
    );
  }
  if (processed === 0) process.stderr.write(`siglip2: ${outputs.join(', ')}: complete already\n`);
  if (failures > 0 && !accepted) throw someFailed(failures, rows + failures, where);
  if (limit !== undefined && failures > limit) throw tooMany(failures, limit, where);
}

function someFailed(failures: number, rows: number, where = ''): SiglipError {
  return new SiglipError(
    'ERR_DATA',
    `embed: all rows must be embedded, got ${String(failures)} of ${String(rows)} that failed${where}; the others are written\n` +
      'to do: --max-failures <n> says how many are acceptable.',
  );
}

function tooMany(failures: number, limit: number, where: string): SiglipError {
  return new SiglipError(
    'ERR_DATA',
    `embed: at most ${String(limit)} rows may fail, got ${String(failures)}${where}\n` +
      'to do: repair them and give --retry, or raise --max-failures; the same command continues.',
  );
}

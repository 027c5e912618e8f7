// A corpus to one file of embeddings, restartable at any moment.
import { readFile, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { z } from 'zod';
import { SiglipError } from '../errors';
import type { BatchOptions, BulkModel, FailedRow } from './batches';
import { embedRows } from './batches';
import { digest } from '../corpus/fingerprint';
import { Journal } from './journal';
import type { Manifest } from './journal';
import type { OutputFormat, OutputPaths } from './output';
import { assemble, outputPaths } from './output';
import { writeFailures } from './failure_file';
import type { Columns, PartForm, VectorDtype } from './part';
import { PartBuilder, PartFile } from './part';
import type { Source } from '../corpus/row';
import type { Shard } from './shard';
import { owns, shardName, WHOLE } from './shard';

/** How a corpus is embedded. */
export interface EmbedCorpusOptions {
  readonly sources: readonly Source[];
  /** Called when there is something to embed. */
  readonly model: () => Promise<BulkModel>;
  /** What the model is, for the comparison with an earlier start: see `modelFingerprint`. */
  readonly modelFingerprint: string;
  /** Path of the output. The journal is a folder beside it. */
  readonly output: string;
  readonly format: OutputFormat;
  /** Default `'float32'`. */
  readonly dtype?: VectorDtype;
  /** Rows the model takes at once. Default 16. */
  readonly batch?: number;
  /** Rows of a part, what a crash can cost. Default 1024; one number for all shards. */
  readonly partRows?: number;
  /** Images decoded at once. Default 4. */
  readonly concurrency?: number;
  /** Which rows are embedded. Default all; else the output is a folder for `mergeShards`. */
  readonly shard?: Shard;
  /** More failures than this stop the run. Default: none do. */
  readonly maxFailures?: number;
  /** Throws away what an earlier start has done. */
  readonly restart?: boolean;
  /** Tries rows that failed again. */
  readonly retry?: boolean;
  /** Whatever else decides what the vectors are (normalisation, patch budget, fields). */
  readonly settings?: Readonly<Record<string, string>>;
  /** Ends the run after the batch it is at; what is done stays. */
  readonly signal?: AbortSignal;
  /** Called when the model is loaded, and after every batch. */
  readonly onProgress?: (progress: BulkProgress) => void;
  readonly onFailure?: (failure: FailedRow & { readonly source: string }) => void;
}

/** How far a run is. */
export interface BulkProgress {
  /** Rows dealt with, those of earlier starts included. */
  readonly done: number;
  /** Of `done`, those of earlier starts. */
  readonly before: number;
  /** All rows of this shard, where known or to be estimated. */
  readonly total: number | undefined;
  /** Whether `total` is an estimate. */
  readonly estimated: boolean;
  readonly failures: number;
}

/** What a run came to. */
export interface BulkSummary {
  readonly finished: boolean;
  /** Why it is not finished. */
  readonly stopped?: 'signal' | 'failures';
  /** Rows with an embedding so far, those of earlier starts included. */
  readonly rows: number;
  readonly failures: number;
  /** Rows dealt with by this start. */
  readonly processed: number;
  readonly seconds: number;
  /** Files, or the folder of a shard; empty when not finished. */
  readonly outputs: readonly string[];
  readonly failuresFile?: string;
  /** The journal, where the run goes on. */
  readonly journal: string;
}

const RECEIPT = z.object({
  fingerprint: z.string(),
  rows: z.number(),
  failures: z.number(),
  files: z.array(z.string()),
});

/** The folder that a run keeps its state in. */
export function journalFolder(output: string, shard: Shard = WHOLE): string {
  return shard.count === 1 ? `${output}.parts` : `${output}.shard-${shardName(shard)}`;
}

/**
 * Embeds a corpus. A run that was interrupted, by a signal or by `kill -9`, is continued by the same
 * call, and its output is the one of a run without interruption, byte for byte.
 *
 * Without shards the output appears under its name when it is complete, and the journal goes. A shard
 * leaves its journal for {@link mergeShards}.
 *
 * @throws SiglipError ERR_CONFIG when inputs or options are not those the journal was begun with;
 * ERR_FILE, and what the model and the sources throw. Rows that fail throw nothing.
 */
export async function embedCorpus(options: EmbedCorpusOptions): Promise<BulkSummary> {
  const { output, format, shard = WHOLE, restart = false, retry = false } = options;
  const started = performance.now();
  const manifest = manifestOf(options);
  const folder = journalFolder(output, shard);
  const paths = outputPaths(output, format, manifest.columns);
  if (restart) await rm(folder, { recursive: true, force: true });
  else if (shard.count === 1 && !retry) {
    const receipt = await completed(paths, fingerprintOf(manifest, format));
    if (receipt !== undefined) {
      await rm(folder, { recursive: true, force: true });
      return {
        finished: true,
        rows: receipt.rows,
        failures: receipt.failures,
        processed: 0,
        seconds: (performance.now() - started) / 1000,
        outputs: filesOf(paths),
        ...(receipt.failures > 0 ? { failuresFile: paths.failures } : {}),
        journal: folder,
      };
    }
  }
  const journal = await Journal.open(folder, manifest);
  try {
    if (retry) await journal.dropFailed();
    const run = new Run(options, journal);
    const stopped = await run.all();
    const { rows, failures } = run;
    const summary = { rows, failures, processed: run.processed, journal: folder };
    const seconds = (): number => (performance.now() - started) / 1000;
    if (stopped !== undefined || shard.count > 1) {
      const failuresFile = shard.count === 1 ? paths.failures : join(folder, 'failures.jsonl');
      await writeFailures(failuresFile, journal.failures());
      return {
        ...summary,
        finished: stopped === undefined,
        ...(stopped === undefined ? {} : { stopped }),
        ...(failures > 0 ? { failuresFile } : {}),
        seconds: seconds(),
        outputs: stopped === undefined ? [folder] : [],
      };
    }
    await assemble({
      parts: journal.parts(),
      sources: manifest.sources,
      form: await run.form(),
      format,
      output,
      scratch: folder,
      receipt: receiptOf(manifest, format, filesOf(paths)),
    });
    await journal.remove();
    return {
      ...summary,
      finished: true,
      ...(failures > 0 ? { failuresFile: paths.failures } : {}),
      seconds: seconds(),
      outputs: filesOf(paths),
    };
  } finally {
    await journal.release();
  }
}

function filesOf({ vectors, ids }: OutputPaths): string[] {
  return [...vectors, ...(ids === undefined ? [] : [ids])];
}

/** What is written beside an output; `rows` and `failures` are added when they are known. */
export function receiptOf(
  manifest: Manifest,
  format: OutputFormat,
  files: readonly string[],
): object {
  return {
    fingerprint: fingerprintOf(manifest, format),
    format,
    dtype: manifest.dtype,
    columns: manifest.columns,
    files: files.map((file) => basename(file)),
    settings: manifest.settings,
  };
}

/** What makes two outputs the same. */
export function fingerprintOf(manifest: Manifest, format: OutputFormat): string {
  return digest([format, JSON.stringify(manifest.settings)]);
}

async function completed(
  paths: OutputPaths,
  fingerprint: string,
): Promise<z.output<typeof RECEIPT> | undefined> {
  try {
    const receipt = RECEIPT.parse(JSON.parse(await readFile(paths.receipt, 'utf8')));
    if (receipt.fingerprint !== fingerprint) return undefined;
    for (const file of receipt.files) await stat(join(dirname(paths.receipt), file));
    return receipt;
  } catch {
    // None, another one, or one whose files are gone.
    return undefined;
  }
}

function manifestOf(options: EmbedCorpusOptions): Manifest {
  const { sources, dtype = 'float32', shard = WHOLE } = options;
  const { batch, blockRows } = batchOptions(options);
  const columns: Columns = sources.some(({ what }) => what === 'both')
    ? ['image', 'text']
    : ['embedding'];
  const settings: Record<string, string> = {
    model: options.modelFingerprint,
    dtype,
    batch: String(batch),
    'part rows': String(blockRows),
    columns: columns.join(', '),
    ...options.settings,
  };
  sources.forEach(({ name, fingerprint, what }, i) => {
    settings[`input ${String(i + 1)}, ${name}, ${what}`] = fingerprint;
  });
  return {
    version: 1,
    settings,
    columns: [...columns],
    dtype,
    blockRows,
    sources: sources.map(({ name, idKey }) => ({ name, idKey })),
    shard: { index: shard.index, count: shard.count },
  };
}

function batchOptions({
  batch = 16,
  partRows = 1024,
  concurrency = 4,
}: EmbedCorpusOptions): BatchOptions {
  for (const [name, value] of Object.entries({ batch, partRows, concurrency })) {
    if (Number.isSafeInteger(value) && value >= 1) continue;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `embedCorpus: ${name} must be a positive integer, got ${String(value)}`,
    );
  }
  return { batch, blockRows: partRows, concurrency };
}

// One start of a run.
class Run {
  /** Rows with an embedding. */
  rows = 0;
  failures = 0;
  processed = 0;
  private before = 0;
  private readonly batches: BatchOptions;
  private readonly shard: Shard;
  private readonly total: number | undefined;
  private loaded: BulkModel | undefined;
  private hasBegun = false;
  private bytesDone = 0;

  constructor(
    private readonly options: EmbedCorpusOptions,
    private readonly journal: Journal,
  ) {
    this.batches = batchOptions(options);
    this.shard = options.shard ?? WHOLE;
    this.total = this.knownTotal();
  }

  /** Everything there is to do; why it stopped, if it did. */
  async all(): Promise<'signal' | 'failures' | undefined> {
    for (const { path } of this.journal.parts()) await this.count(path);
    for (const [s, source] of this.options.sources.entries()) {
      if (!this.ownsAny(s)) continue;
      const stopped = this.stopReason() ?? (await this.source(s, source));
      if (stopped !== undefined) return stopped;
      this.bytesDone += source.bytes;
    }
    return this.stopReason() === 'failures' ? 'failures' : undefined;
  }

  /** The form of the parts, from one of them or from the model. */
  async form(): Promise<PartForm> {
    const { columns, dtype } = this.journal.manifest;
    const [part] = this.journal.parts();
    let width: number;
    if (part === undefined) {
      width = (await this.model()).width;
    } else {
      using file = PartFile.open(part.path);
      width = file.width;
    }
    return { columns, width, dtype };
  }

  private async source(s: number, source: Source): Promise<'signal' | 'failures' | undefined> {
    const { journal, batches } = this;
    const { blockRows } = batches;
    const owned = (block: number): boolean => this.owns(s, block);
    const known = journal.rowsOf(s);
    if (known !== undefined && this.isComplete(s, known)) return undefined;
    const builders = await journal.unfinished(s);
    for (const builder of builders.values()) this.resume(builder);
    const wanted = (index: number): boolean => {
      const block = Math.floor(index / blockRows);
      if (!owned(block) || journal.has(s, block)) return false;
      return index >= (builders.get(block)?.next ?? 0);
    };
    // Rows that are not wanted still count for the length of the source.
    let length = source.length ?? 0;
    const seen = (index: number): boolean => {
      length = Math.max(length, index + 1);
      return wanted(index);
    };
    const form = async (): Promise<PartForm> => {
      const { columns, dtype } = journal.manifest;
      return { columns, width: (await this.model()).width, dtype };
    };
    const model = await this.model();
    if (!this.hasBegun) this.progress(source, undefined);
    this.hasBegun = true;
    for await (const step of embedRows(source, seen, model, batches)) {
      let builder = builders.get(step.block);
      if (builder === undefined) {
        builder = new PartBuilder(step.block * blockRows);
        builders.set(step.block, builder);
      }
      builder.add(step);
      this.advance(step, source);
      if (step.last) {
        await journal.finish(s, step.block, builder, await form());
        builders.delete(step.block);
      }
      const stopped = this.stopReason();
      if (stopped !== undefined) {
        if (!step.last) await journal.suspend(s, step.block, builder, await form());
        return stopped;
      }
    }
    // What an earlier start had left unfinished and no row came for was complete.
    for (const [block, builder] of builders) await journal.finish(s, block, builder, await form());
    await journal.end(s, length);
    return undefined;
  }

  private isComplete(s: number, rows: number): boolean {
    const blocks = Math.ceil(rows / this.batches.blockRows);
    for (let block = 0; block < blocks; block++) {
      if (this.owns(s, block) && !this.journal.has(s, block)) return false;
    }
    return true;
  }

  private owns(s: number, block: number): boolean {
    return owns(this.shard, this.options.sources.length, s, block);
  }

  private ownsAny(s: number): boolean {
    const { sources } = this.options;
    return sources.length < this.shard.count || this.owns(s, 0);
  }

  private stopReason(): 'signal' | 'failures' | undefined {
    const { maxFailures = Infinity, signal } = this.options;
    if (this.failures > maxFailures) return 'failures';
    return signal?.aborted === true ? 'signal' : undefined;
  }

  private async count(path: string): Promise<void> {
    using part = PartFile.open(path);
    const failures = (await part.failures()).length;
    this.rows += part.rows;
    this.failures += failures;
    this.before += part.rows + failures;
  }

  private resume(builder: PartBuilder): void {
    const { rows, failures } = builder.counts();
    this.rows += rows;
    this.failures += failures;
    this.before += rows + failures;
  }

  private advance(
    {
      rows,
      failures,
      through,
    }: Parameters<PartBuilder['add']>[0] & { through: number | undefined },
    source: Source,
  ): void {
    this.rows += rows.length;
    this.failures += failures.length;
    this.processed += rows.length + failures.length;
    for (const failure of failures) {
      this.options.onFailure?.({ source: source.name, ...failure });
    }
    if (rows.length + failures.length > 0) this.progress(source, through);
  }

  private progress(source: Source, through: number | undefined): void {
    const done = this.rows + this.failures;
    this.options.onProgress?.({
      done,
      before: this.before,
      total: this.total ?? this.estimate(done, source, through),
      estimated: this.total === undefined,
      failures: this.failures,
    });
  }

  private async model(): Promise<BulkModel> {
    this.loaded ??= await this.options.model();
    return this.loaded;
  }

  private knownTotal(): number | undefined {
    const { blockRows } = this.batches;
    let total = 0;
    for (const [s, { length }] of this.options.sources.entries()) {
      if (!this.ownsAny(s)) continue;
      if (length === undefined) return undefined;
      const blocks = Math.ceil(length / blockRows);
      for (let block = 0; block < blocks; block++) {
        if (this.owns(s, block)) total += Math.min(blockRows, length - block * blockRows);
      }
    }
    return total;
  }

  // Rows by bytes: sources of records are read from front to back.
  private estimate(done: number, source: Source, through: number | undefined): number | undefined {
    const mine = this.options.sources.filter((_, s) => this.ownsAny(s));
    const all = mine.reduce((sum, { bytes }) => sum + bytes, 0);
    const read = this.bytesDone + source.bytes * (through ?? 0);
    return read > 0 ? Math.max(done, Math.round((done * all) / read)) : undefined;
  }
}

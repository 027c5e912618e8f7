// A selection to a file, restartable at any moment.
import { rm } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import { publishTogether } from '../weights';
import type { FailedRow } from './batches';
import type { Candidates, ReadSoFar } from './candidates';
import type { CuratedPart, CuratedRow, CurateOptions } from './curate';
import { BEGINNING, curate } from './curate';
import type { CurationGroup, CurationPart, KeptRow } from './curation_journal';
import { CurationJournal } from './curation_journal';

export interface CurateToFileOptions extends Omit<CurateOptions, 'onRead'> {
  readonly candidates: Candidates;
  /** Path of the output, JSON lines. The journal is the folder `<output>.parts` beside it. */
  readonly output: string;
  /** Throw away what an earlier start has done. Default false. */
  readonly restart?: boolean | undefined;
  /** Ends the run after the current super-batch. */
  readonly signal?: AbortSignal | undefined;
  /** Called when all is selected, before the output appears: for what is to be written beside it. */
  readonly beside?:
    | ((summary: CurationSummary, parts: () => AsyncIterable<CurationPart>) => Promise<void>)
    | undefined;
  readonly onProgress?: ((progress: CurationProgress) => void) | undefined;
  readonly onFailure?: ((failure: FailedRow) => void) | undefined;
}

/** How far a selection is. */
export interface CurationProgress {
  /** Rows dealt with, those of earlier starts included. */
  readonly done: number;
  /** Of earlier starts. */
  readonly before: number;
  readonly total: number;
  /** Whether the total is a guess by the bytes read. */
  readonly estimated: boolean;
  readonly selected: number;
  /** All rows are read, and selected from. */
  readonly finished: boolean;
}

/** What a selection came to. */
export interface CurationSummary {
  /** False when the signal ended it; the same call continues. */
  readonly finished: boolean;
  readonly output: string;
  /** Rows that were passed over are named there, if any. */
  readonly failuresFile: string | undefined;
  readonly failures: number;
  readonly superBatches: number;
  readonly selected: CurationGroup;
  readonly dropped: CurationGroup;
  /** (super-batches): mean score of each and of what was selected of it. */
  readonly scores: readonly { readonly score: number; readonly selectedScore: number }[];
}

/** Scores that a part keeps, and rows at each end of a group. */
const RANKED = 1024;
const EXTREMES = 12;

/**
 * Selects as {@link curate} does and writes a line for every selected row: id, source, row, score, the
 * losses of its pair and the super-batch. The output appears when it is complete, and the journal goes. A
 * selection that was interrupted is continued by the same call, to the same bytes.
 *
 * @throws ERR_CONFIG for a journal begun with other inputs or options; ERR_FILE; what {@link curate}
 * throws
 */
export async function curateToFile(options: CurateToFileOptions): Promise<CurationSummary> {
  const { candidates, output, signal } = options;
  const folder = `${output}.parts`;
  if (options.restart === true) await rm(folder, { recursive: true, force: true });
  const journal = await CurationJournal.open(folder, settingsOf(options));
  // One for all parts, so that every score that is kept stands for as many.
  const stride = Math.ceil(options.superBatch / RANKED);
  const tally = new Tally();
  let position = BEGINNING;
  const take = (part: CurationPart): void => {
    tally.add(part);
    position = { superBatch: part.superBatch + 1, place: part.next };
  };
  for await (const part of journal.parts()) take(part);
  const before = tally.rows;
  const report = (done: number, total: number, finished: boolean): void => {
    const estimated = candidates.total === undefined && !finished;
    const { count: selected } = tally.selected;
    options.onProgress?.({ done, before, total, estimated, selected, finished });
  };
  const onRead = ({ rows, through }: ReadSoFar): void => {
    const done = tally.rows + rows;
    report(done, candidates.total ?? Math.round(done / through), false);
  };
  let stopped = signal?.aborted === true;
  if (!stopped) {
    for await (const whole of curate(candidates, { ...options, onRead }, position)) {
      const part = partOf(whole, stride);
      await journal.add(part);
      take(part);
      for (const failure of whole.failures) options.onFailure?.(failure);
      onRead({ rows: 0, through: whole.through });
      stopped = signal?.aborted === true;
      if (stopped) break;
    }
  }
  const failuresFile = failuresPath(output);
  const summary = {
    finished: !stopped,
    output,
    failures: tally.failures,
    failuresFile: tally.failures === 0 ? undefined : failuresFile,
    superBatches: position.superBatch,
    selected: tally.selected,
    dropped: tally.dropped,
    scores: tally.scores,
  };
  if (stopped) {
    await journal.release();
    return summary;
  }
  report(tally.rows, tally.rows, true);
  await options.beside?.(summary, () => journal.parts());
  const { sources } = candidates;
  await publishTogether(dirname(output), async (files) => {
    if (tally.failures > 0) {
      await files.write(basename(failuresFile), async (file) => {
        for await (const { failures } of journal.parts()) {
          const lines = failures.map(({ source, index, ...rest }) => ({
            source: sources[source],
            row: index,
            ...rest,
          }));
          await file.write(jsonLines(lines));
        }
      });
    }
    await files.write(basename(output), async (file) => {
      for await (const { superBatch, rows } of journal.parts()) {
        await file.write(jsonLines(rows.map((row) => selectedLine(row, superBatch, sources))));
      }
    });
    return tally.failures > 0 ? [] : [basename(failuresFile)];
  });
  await journal.remove();
  return summary;
}

/** A selected row as the output has it. */
export function selectedLine(
  { source, row, id, score, learnerLoss, referenceLoss }: KeptRow,
  superBatch: number,
  sources: readonly string[],
): object {
  return { id, source: sources[source], row, score, learnerLoss, referenceLoss, superBatch };
}

function failuresPath(output: string): string {
  return join(dirname(output), `${basename(output, extname(output))}.failures.jsonl`);
}

function settingsOf({
  candidates,
  superBatch,
  filterRatio,
  score = 'learnability',
  scoreLoss = 'sigmoid',
  chunks = 16,
  gain = 1,
  seed = 0,
}: CurateToFileOptions): Record<string, string> {
  const options = { superBatch, filterRatio, score, scoreLoss, chunks, gain, seed };
  const settings = Object.entries(options).map(([name, value]) => [name, String(value)] as const);
  return { ...Object.fromEntries(settings), ...candidates.settings };
}

function jsonLines(records: readonly object[]): string {
  return records.map((record) => `${JSON.stringify(record)}\n`).join('');
}

function partOf(
  { superBatch, next, through, rows, failures }: CuratedPart,
  stride: number,
): CurationPart {
  const selected = rows.filter((row) => row.selected).map(keptRow);
  return {
    superBatch,
    next,
    through,
    failures: [...failures],
    rows: selected,
    selected: groupOf(selected, stride),
    dropped: groupOf(rows.filter((row) => !row.selected).map(keptRow), stride),
  };
}

function keptRow({ source, row, id, score, learnerLoss, referenceLoss }: CuratedRow): KeptRow {
  return { source, row, id, score, learnerLoss, referenceLoss };
}

function groupOf(rows: readonly KeptRow[], stride: number): CurationGroup {
  const ordered = rows
    .filter(({ score }) => Number.isFinite(score))
    .sort((a, b) => a.score - b.score);
  const sum = (value: (row: KeptRow) => number): number =>
    ordered.reduce((total, row) => total + value(row), 0);
  return {
    count: rows.length,
    sums: {
      score: sum((row) => row.score),
      learnerLoss: sum((row) => row.learnerLoss),
      referenceLoss: sum((row) => row.referenceLoss),
    },
    ranked: Array.from(
      { length: Math.floor(ordered.length / stride) },
      (_, i) => ordered[i * stride + Math.floor(stride / 2)].score,
    ),
    highest: ordered.slice(-EXTREMES).reverse(),
    lowest: ordered.slice(0, EXTREMES),
  };
}

// Numbers of all parts so far.
class Tally {
  selected: CurationGroup = groupOf([], 1);
  dropped: CurationGroup = groupOf([], 1);
  failures = 0;
  readonly scores: { readonly score: number; readonly selectedScore: number }[] = [];

  /** Failed ones included. */
  get rows(): number {
    return this.selected.count + this.dropped.count + this.failures;
  }

  add({ selected, dropped, failures }: CurationPart): void {
    this.selected = merged(this.selected, selected);
    this.dropped = merged(this.dropped, dropped);
    this.failures += failures.length;
    const score = (selected.sums.score + dropped.sums.score) / (selected.count + dropped.count);
    this.scores.push({ score, selectedScore: selected.sums.score / selected.count });
  }
}

function merged(a: CurationGroup, b: CurationGroup): CurationGroup {
  const ordered = (rows: KeptRow[], sign: number): KeptRow[] =>
    rows.sort((x, y) => sign * (x.score - y.score)).slice(0, EXTREMES);
  return {
    count: a.count + b.count,
    sums: {
      score: a.sums.score + b.sums.score,
      learnerLoss: a.sums.learnerLoss + b.sums.learnerLoss,
      referenceLoss: a.sums.referenceLoss + b.sums.referenceLoss,
    },
    ranked: [...a.ranked, ...b.ranked],
    highest: ordered([...a.highest, ...b.highest], -1),
    lowest: ordered([...a.lowest, ...b.lowest], 1),
  };
}

// The training log: one JSON object a line, appended as the run goes.
import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import type { CurationMetrics } from './curation';

/** One line of the log. Norms are global L2 norms over all parameters. */
export interface StepMetrics {
  /** Zero-based. */
  readonly step: number;
  /** Before the update of this step. */
  readonly loss: number;
  /** What the loss is the weighted sum of, where there is more than one. */
  readonly terms?: Readonly<Record<string, number>>;
  /** Before clipping. */
  readonly gradientNorm: number;
  readonly updateNorm: number;
  /** After the update. */
  readonly parameterNorm: number;
  /** Schedule multiplier times the base learning rate. */
  readonly learningRate: number;
  /** exp(t) and b after the update. */
  readonly logitScale: number;
  readonly logitBias: number;
  /** Image–text pairs trained on so far, this step included. */
  readonly pairsSeen: number;
  readonly pairsPerSecond: number;
  /** Share of the step's time that was spent waiting for its batch. */
  readonly dataShare: number;
  /** The loss or a norm was not finite: no weight was changed. */
  readonly skipped?: boolean;
  /** How the batch was chosen, in a run with active curation. */
  readonly curation?: CurationMetrics;
}

/** An append-only file of JSON lines. */
export class MetricsLog {
  private readonly file: number;

  /** @throws the file system's error when the file cannot be opened. */
  constructor(path: string) {
    this.file = openSync(path, 'a');
  }

  append(record: object): void {
    writeSync(this.file, `${JSON.stringify(record)}\n`);
  }

  /** Writes to the disk what was appended and closes the file. */
  close(): void {
    fsyncSync(this.file);
    closeSync(this.file);
  }
}

/** The steps of a log; a last line that a crash cut short is left out. */
export function readMetrics(path: string): StepMetrics[] {
  return existsSync(path) ? completeLines(path).map((line) => JSON.parse(line) as StepMetrics) : [];
}

/** Drops the lines of `step` and later: a resumed run writes them again. */
export function keepMetricsBefore(path: string, step: number): void {
  if (!existsSync(path)) return;
  const kept = completeLines(path).filter((line) => (JSON.parse(line) as StepMetrics).step < step);
  const temporary = `${path}.tmp`;
  writeFileSync(temporary, kept.map((line) => `${line}\n`).join(''), { flush: true });
  renameSync(temporary, path);
}

function completeLines(path: string): string[] {
  const text = readFileSync(path, 'utf8');
  return text
    .slice(0, text.lastIndexOf('\n') + 1)
    .split('\n')
    .filter((line) => line !== '');
}

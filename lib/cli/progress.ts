// One line that tells how far a long job is: share done, rate, time left. On a terminal it is
// redrawn in place; elsewhere (a log, CI) a new line appears every few seconds.
import type { WriteStream } from 'node:tty';

export interface ProgressOptions {
  /** Undefined when nobody knows yet. */
  readonly total: number | undefined;
  /** What is counted: `steps`, `images`. */
  readonly unit: string;
  /** What was done before, by an earlier run; it does not count for the rate. Default 0. */
  readonly from?: number;
  /** How a number is shown. Default: the number, and three digits for the rate. */
  readonly format?: (value: number) => string;
  /** Default: standard error, so that standard output stays clean. */
  readonly stream?: NodeJS.WritableStream;
}

const barWidth = 24;
const redrawMs = 100;
const logEveryMs = 10_000;

export class Progress {
  private readonly started = performance.now();
  private readonly stream: NodeJS.WritableStream;
  private readonly live: boolean;
  private last: number;
  private lineLength = 0;
  private total: number | undefined;
  private estimated = false;

  constructor(private readonly options: ProgressOptions) {
    this.total = options.total;
    this.stream = options.stream ?? process.stderr;
    this.live = (this.stream as Partial<WriteStream>).isTTY === true;
    // A log gets its first line when there is a rate to tell, a terminal at once.
    this.last = this.live ? -Infinity : this.started;
  }

  /** Moves the end; an estimated one is shown as such and is not the end for sure. */
  setTotal(total: number | undefined, estimated = false): void {
    this.total = total;
    this.estimated = estimated;
  }

  /** Says that there is no more than `done`, which an estimate or no total could not know. */
  finish(done: number, detail = ''): void {
    if (this.total === done && !this.estimated) return;
    this.setTotal(done);
    this.update(done, detail);
  }

  /** Shows that `done` of the total are done; `detail` is free text behind the numbers. */
  update(done: number, detail = ''): void {
    const now = performance.now();
    const finished = this.total !== undefined && !this.estimated && done >= this.total;
    if (!finished && now - this.last < (this.live ? redrawMs : logEveryMs)) return;
    this.last = now;
    const line = this.line(done, now, detail);
    if (this.live) {
      this.stream.write(`\r${line.padEnd(this.lineLength)}`);
      this.lineLength = line.length;
      if (finished) this.stream.write('\n');
    } else {
      this.stream.write(`${line}\n`);
    }
  }

  private line(done: number, now: number, detail: string): string {
    const { unit, format, from = 0 } = this.options;
    const { total, estimated } = this;
    const shown = format ?? String;
    const seconds = (now - this.started) / 1000;
    const rate = seconds > 0 ? (done - from) / seconds : 0;
    const speed = `${format?.(rate) ?? digits(rate)}/s`;
    const end = detail === '' ? '' : `  ${detail}`;
    const counted = (count: string): string => `${count} ${unit}`.trimEnd();
    if (total === undefined) return `${counted(shown(done))}  ${speed}${end}`;
    const share = total === 0 ? 1 : Math.min(done / total, 1);
    const filled = Math.round(share * barWidth);
    const bar = '█'.repeat(filled) + '░'.repeat(barWidth - filled);
    const percent = `${String(Math.floor(share * 100))}%`.padStart(4);
    const counts = counted(`${shown(done)}/${estimated ? '~' : ''}${shown(total)}`);
    const finished = share >= 1 && !estimated;
    const left = finished ? seconds : rate > 0 ? Math.max(0, total - done) / rate : NaN;
    return `${bar}${percent} ${counts}  ${speed}  ${finished ? 'took' : 'left'} ${duration(left)}${end}`;
  }
}

// Three digits, without an exponent.
function digits(rate: number): string {
  return rate < 999.5 ? rate.toPrecision(3) : rate.toFixed(0);
}

/** Seconds as `1:05` or `1:02:03`. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '–';
  const whole = Math.round(seconds);
  const two = (n: number): string => String(n).padStart(2, '0');
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h > 0 ? `${String(h)}:${two(m)}:${two(s)}` : `${String(m)}:${two(s)}`;
}

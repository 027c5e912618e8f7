// Bytes of several files that grow at once, told as one number and a rate.
import type { DownloadProgress } from './environment';

const EVERY_MS = 100;
const WINDOW_MS = 5_000;

/** Adds up the files of one download. */
export class DownloadMeter {
  private readonly bytesOf = new Map<string, number>();
  // Of the last few seconds, oldest first.
  private readonly samples: { readonly at: number; readonly bytes: number }[] = [];
  // Arrived over the network since the start; what lay here already has no rate.
  private arrived = 0;
  private told = -Infinity;

  /**
   * @param total - bytes of all files
   * @param here - bytes of the files that are not fetched because they are here
   */
  constructor(
    private readonly total: number,
    private readonly here: number,
    private readonly tell: ((progress: DownloadProgress) => void) | undefined,
  ) {}

  /** Notes that `bytes` of a file are here; `done`: all of them. */
  update(file: string, bytes: number, done = false): void {
    const before = this.bytesOf.get(file);
    this.bytesOf.set(file, bytes);
    if (before !== undefined) this.arrived += Math.max(bytes - before, 0);
    const now = performance.now();
    if (this.tell === undefined || (!done && now - this.told < EVERY_MS)) return;
    this.told = now;
    const sum = [...this.bytesOf.values()].reduce((a, b) => a + b, this.here);
    this.tell({ file, bytes: sum, total: this.total, rate: this.rate(now) });
  }

  private rate(now: number): number {
    this.samples.push({ at: now, bytes: this.arrived });
    while (this.samples.length > 2 && now - this.samples[0].at > WINDOW_MS) this.samples.shift();
    const [{ at, bytes }] = this.samples;
    return now > at ? (1000 * (this.arrived - bytes)) / (now - at) : 0;
  }
}

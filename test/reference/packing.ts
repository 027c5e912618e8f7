// A packed batch, sequences one after the other without padding, is defined by the padded one it equals.
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

/**
 * The way from rows (T, D) of segments (S + 1 starts) to (S, longest, D) with a mask of the rows that
 * are real, and back.
 */
export class Packing {
  private readonly longest: number;

  constructor(private readonly segments: NdArray) {
    this.longest = Math.max(1, ...this.lengths);
  }

  private get lengths(): number[] {
    const starts = [...this.segments.data];
    return starts.slice(1).map((end, s) => end - starts[s]);
  }

  get mask(): NdArray {
    const mask = zeros([this.lengths.length, this.longest]);
    this.lengths.forEach((n, s) => mask.data.fill(1, s * this.longest, s * this.longest + n));
    return mask;
  }

  pad(rows: NdArray): NdArray {
    const [, D] = rows.shape;
    const padded = zeros([this.lengths.length, this.longest, D]);
    this.lengths.forEach((n, s) => {
      const start = this.segments.data[s] * D;
      padded.data.set(rows.data.subarray(start, start + n * D), s * this.longest * D);
    });
    return padded;
  }

  /** Rows that belong to no segment become zero. */
  pack(padded: NdArray, rows: number): NdArray {
    const [, , D] = padded.shape;
    const packed = zeros([rows, D]);
    this.lengths.forEach((n, s) => {
      const start = s * this.longest * D;
      packed.data.set(padded.data.subarray(start, start + n * D), this.segments.data[s] * D);
    });
    return packed;
  }
}

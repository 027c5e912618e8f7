// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). A draw is a pure function of (seed, stream, position), so streams never
// influence each other, any position can be reached at once, and three numbers are the whole state.
import { createHash } from 'node:crypto';
import { SiglipError } from '../errors';

// Bound once: looking `Math` up on the global object for every word costs more than the arithmetic
// where the global object is a vm context.
const { abs, cos, floor, imul, log, sin, sqrt } = Math;
const TWO_PI = 2 * Math.PI;

const TWO_32 = 4294967296;
const PER_WORD = 1 / TWO_32;
const ROUNDS = 10;

// Multipliers and Weyl increments of the key, as published.
const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9;
const WEYL_1 = 0xbb67ae85;

/**
 * Upper 32 bits of a · b. The double product is off by at most 2^10 and so is its difference from
 * the exact lower word, so adding one half and truncating gives the upper word exactly.
 */
function upperProduct(a: number, b: number, lower: number): number {
  return ((a * b - (lower >>> 0)) * PER_WORD + 0.5) | 0;
}

/**
 * One block of the generator: four 32-bit words from a 128-bit counter (c0 lowest) and a 64-bit key,
 * written to `out` (4 words). The same on every platform.
 */
export function philoxBlock(
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  k0: number,
  k1: number,
  out: Uint32Array,
): void {
  for (let round = 0; round < ROUNDS; round++) {
    const low0 = imul(MULTIPLIER_0, c0);
    const low1 = imul(MULTIPLIER_1, c2);
    const high0 = upperProduct(MULTIPLIER_0, c0 >>> 0, low0);
    const high1 = upperProduct(MULTIPLIER_1, c2 >>> 0, low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + WEYL_0) | 0;
    k1 = (k1 + WEYL_1) | 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

function words(who: string, what: string, value: number): [number, number] {
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `${who}: ${what} must be an integer from 0 to 2^53 - 1, got ${String(value)}`,
    );
  }
  return [value >>> 0, floor(value / TWO_32)];
}

/**
 * A stream of random numbers. Two streams of one seed are independent; the same seed, stream and
 * position always give the same numbers.
 *
 * @example
 * const random = new Philox4x32(42, 'augmentation');
 * random.uniform();     // [0, 1)
 * random.integer(10);   // 0..9
 */
export class Philox4x32 {
  private readonly key0: number;
  private readonly key1: number;
  private readonly stream0: number;
  private readonly stream1: number;
  private readonly block = new Uint32Array(4);
  private blockIndex = -1;
  private next = 0;

  /**
   * @param seed integer from 0 to 2^53 − 1
   * @param stream a number of the same range or any string, default 0
   * @throws ERR_ARGUMENT when either is out of range
   */
  constructor(
    readonly seed: number,
    readonly stream: number | string = 0,
  ) {
    [this.key0, this.key1] = words('Philox4x32', 'seed', seed);
    if (typeof stream === 'number') {
      [this.stream0, this.stream1] = words('Philox4x32', 'stream', stream);
    } else {
      const digest = createHash('sha256').update(stream).digest();
      this.stream0 = digest.readUInt32LE(0);
      this.stream1 = digest.readUInt32LE(4);
    }
  }

  /** Number of 32-bit words drawn so far: with seed and stream, the whole state. */
  get position(): number {
    return this.next;
  }

  /** Continues at any position, at no cost. */
  set position(value: number) {
    words('Philox4x32', 'position', value);
    this.next = value;
  }

  /** A uniform integer in [0, 2^32). Draws one word. */
  uint32(): number {
    const index = floor(this.next / 4);
    if (index !== this.blockIndex) {
      const high = floor(index / TWO_32);
      philoxBlock(index >>> 0, high, this.stream0, this.stream1, this.key0, this.key1, this.block);
      this.blockIndex = index;
    }
    const word = this.block[this.next - 4 * index];
    this.next++;
    return word;
  }

  /** A uniform number in [low, high), default [0, 1), of 32 random bits. Draws one word. */
  uniform(low = 0, high = 1): number {
    return low + (high - low) * (this.uint32() * PER_WORD);
  }

  /** A normal number, default mean 0 and standard deviation 1 (Box–Muller). Draws two words. */
  normal(mean = 0, deviation = 1): number {
    const radius = sqrt(-2 * log((this.uint32() + 0.5) * PER_WORD));
    return mean + deviation * radius * cos(TWO_PI * this.uint32() * PER_WORD);
  }

  /**
   * A uniform integer in [0, n), n from 1 to 2^32, without bias: words at the end of the range that
   * would favour small results are drawn again.
   */
  integer(n: number): number {
    if (!Number.isInteger(n) || n < 1 || n > TWO_32) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `Philox4x32.integer: n must be an integer from 1 to 2^32, got ${String(n)}`,
      );
    }
    const limit = TWO_32 - (TWO_32 % n);
    let word = this.uint32();
    while (word >= limit) word = this.uint32();
    return word % n;
  }

  /** Overwrites `out` with uniform numbers in [low, high). */
  fillUniform(out: Float32Array, low: number, high: number): void {
    for (let i = 0; i < out.length; i++) out[i] = this.uniform(low, high);
  }

  /** Overwrites `out` with normal numbers of mean 0; both numbers of a Box–Muller pair are used. */
  fillNormal(out: Float32Array, deviation: number): void {
    for (let i = 0; i < out.length; i += 2) {
      const radius = deviation * sqrt(-2 * log((this.uint32() + 0.5) * PER_WORD));
      const angle = TWO_PI * this.uint32() * PER_WORD;
      out[i] = radius * cos(angle);
      if (i + 1 < out.length) out[i + 1] = radius * sin(angle);
    }
  }

  /**
   * Overwrites `out` with normal numbers of mean 0 truncated to ±`bound` standard deviations, by
   * drawing again. `deviation` is that of the normal before truncation.
   */
  fillTruncatedNormal(out: Float32Array, deviation: number, bound: number): void {
    for (let i = 0; i < out.length; i++) {
      let value = this.normal();
      while (abs(value) > bound) value = this.normal();
      out[i] = deviation * value;
    }
  }
}

// Random test values, the same on every run: mulberry32 for uniform numbers, Box–Muller for normal
// ones. Every value is a float32, so that the product starts from exactly what the reference has.
import type { NdArray } from './nd_array';
import { elements, ndArray } from './nd_array';

/** A seeded source of numbers. */
export class Random {
  private state: number;

  constructor(seed: number) {
    this.state = seed >>> 0;
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }

  /** Uniform in {0, …, n − 1}. */
  integer(n: number): number {
    return Math.floor(this.uniform() * n);
  }

  /** Normal, mean 0, standard deviation 1. */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** An array of one draw each, rounded to float32. */
  array(shape: readonly number[], draw: (random: this) => number): NdArray {
    return ndArray(
      shape,
      Array.from({ length: elements(shape) }, () => Math.fround(draw(this))),
    );
  }
}

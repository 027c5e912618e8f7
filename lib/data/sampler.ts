// Which examples form the next batch: shuffled epochs that flow into each other, without two
// examples of one concept in a batch, or without more than a given number.
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import type { StreamState } from './stream';

/** Where a {@link ConceptSampler} stands. */
export interface SamplerState {
  /** Passes through all examples begun before the present one. */
  readonly epoch: number;
  /** Examples taken from the present permutation. */
  readonly position: number;
  /** Examples passed over because their concept was in the batch already; served first. */
  readonly deferred: readonly number[];
}

/**
 * Draws batches of examples with distinct concepts. Every epoch is a new permutation of all
 * examples, a function of the seed and the epoch alone. An example whose concept is already in the
 * batch waits for the next batch; one that still waits when its turn comes again is not queued
 * twice, which keeps the queue shorter than the source however uneven the concepts are.
 *
 * @example
 * const sampler = new ConceptSampler(source.concepts, 128, 42);
 * const indices = sampler.next(); // 128 examples
 */
export class ConceptSampler {
  private epoch = 0;
  private position = 0;
  private deferred: number[] = [];
  private permutation: Int32Array;

  /**
   * @param concepts concept of each example
   * @param batch examples per batch, at most `perConcept` times the number of distinct concepts
   * @param seed integer from 0 to 2^53 − 1
   * @param perConcept examples of one concept that may meet in a batch, default 1
   * @throws ERR_ARGUMENT
   */
  constructor(
    private readonly concepts: Int32Array,
    readonly batch: number,
    private readonly seed: number,
    private readonly perConcept = 1,
  ) {
    const distinct = new Set(concepts).size;
    if (!Number.isInteger(perConcept) || perConcept < 1) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `ConceptSampler: perConcept must be a positive integer, got ${String(perConcept)}`,
      );
    }
    if (!Number.isInteger(batch) || batch < 1 || batch > distinct * perConcept) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `ConceptSampler: batch must be an integer from 1 to the number of concepts ` +
          `${String(distinct)}${perConcept === 1 ? '' : ` times ${String(perConcept)}`}, got ${String(batch)}`,
      );
    }
    this.permutation = this.permute(0);
  }

  /**
   * Indices of the examples of the next batch.
   *
   * @param size examples of it, at most and by default those of a batch
   */
  next(size = this.batch): Int32Array {
    const taken = new Map<number, number>();
    const batch = new Int32Array(size);
    let count = 0;
    const take = (index: number): boolean => {
      const concept = this.concepts[index];
      const met = taken.get(concept) ?? 0;
      if (count === size || met === this.perConcept) return false;
      taken.set(concept, met + 1);
      batch[count++] = index;
      return true;
    };
    this.deferred = this.deferred.filter((index) => !take(index));
    const waiting = new Set(this.deferred);
    while (count < size) {
      if (this.position === this.permutation.length) {
        this.epoch++;
        this.position = 0;
        this.permutation = this.permute(this.epoch);
      }
      const index = this.permutation[this.position++];
      if (waiting.has(index) || take(index)) continue;
      waiting.add(index);
      this.deferred.push(index);
    }
    return batch;
  }

  /** Where the sampler stands; plain JSON. */
  state(): SamplerState {
    return { epoch: this.epoch, position: this.position, deferred: [...this.deferred] };
  }

  /**
   * Continues from a state of a sampler with the same concepts, batch and seed.
   *
   * @throws ERR_DATA when the state cannot be of this sampler
   */
  restore(state: SamplerState): void {
    const { epoch, position } = state;
    const deferred: unknown = state.deferred;
    const length = this.concepts.length;
    const isIndex = (value: unknown, limit: number): boolean =>
      Number.isInteger(value) && (value as number) >= 0 && (value as number) < limit;
    if (
      !isIndex(epoch, Number.MAX_SAFE_INTEGER) ||
      !isIndex(position, length + 1) ||
      !Array.isArray(deferred) ||
      !deferred.every((index) => isIndex(index, length))
    ) {
      throw new SiglipError(
        'ERR_DATA',
        `ConceptSampler.restore: state must be of a sampler of ${String(length)} examples, ` +
          `got ${JSON.stringify(state)}`,
      );
    }
    this.epoch = epoch;
    this.position = position;
    this.deferred = [...(deferred as number[])];
    this.permutation = this.permute(epoch);
  }

  private permute(epoch: number): Int32Array {
    const random = new Philox4x32(this.seed, `shuffle ${String(epoch)}`);
    const order = Int32Array.from(this.concepts.keys());
    for (let i = order.length - 1; i > 0; i--) {
      const j = random.integer(i + 1);
      const swapped = order[i];
      order[i] = order[j];
      order[j] = swapped;
    }
    return order;
  }
}

/** Where a stream of batches stands that draws them from a sampler: batches given, and the sampler's state. */
export function samplerStreamState(step: number, sampler: ConceptSampler): StreamState {
  const { epoch, position, deferred } = sampler.state();
  return { step, epoch, position, deferred };
}

/**
 * Restores the sampler of such a stream.
 *
 * @returns the number of batches given before
 * @throws ERR_DATA when the state is not of such a stream
 */
export function restoreSamplerStream(
  who: string,
  state: StreamState,
  sampler: ConceptSampler,
): number {
  const { step, ...rest } = (state ?? {}) as unknown as SamplerState & { step: number };
  if (!Number.isSafeInteger(step) || step < 0) {
    throw new SiglipError(
      'ERR_DATA',
      `${who}.restore: state must be of a stream of batches, got ${JSON.stringify(state)}`,
    );
  }
  sampler.restore(rest);
  return step;
}

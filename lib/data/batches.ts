// Batches of training pairs from a source.
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import type { PackedBatch } from '../image';
import type { CaptionBatch } from '../text';
import { augment, checkAugment, type AugmentOptions } from './augment';
import { PairSource, type PairTable } from './pair_table';
import type { BatchViews } from './parts';
import { ConceptSampler, restoreSamplerStream, samplerStreamState } from './sampler';
import type { Example, Source } from './source';
import type { Stream, StreamState } from './stream';

/** Images and texts that belong together, row by row. */
export interface Batch {
  /** Number of this batch since the start of the stream, from 0. */
  readonly step: number;
  /** RGB, (B, S, S, 3). */
  readonly images: Uint8Array;
  /** Pixels per side, S. */
  readonly size: number;
  /** One text per image, (B). */
  readonly texts: readonly string[];
  /** Token ids, (B, T), when the source has them. */
  readonly tokens: Int32Array | undefined;
  /** Concept of each image, (B): all different, but for {@link BatchOptions.perConcept}. */
  readonly concepts: Int32Array;
  /** Which example of the source each is, (B). */
  readonly examples: Int32Array;
  /** The images as patches within a budget, for NaFlex; `images` is empty then, and `size` 0. */
  readonly packed?: PackedImages | undefined;
  /** For the captioning decoder, where a stage trains it. */
  readonly targets?: CaptionBatch | undefined;
  /** For self-distillation, where a stage has it. */
  readonly views?: BatchViews | undefined;
}

/** Images of any shape as patches. */
export interface PackedImages extends PackedBatch {
  /** The budget: most patches of an image. */
  readonly length: number;
}

/** How batches are drawn. */
export interface BatchOptions {
  /** Pairs per batch, at most `perConcept` times the number of concepts of the source. */
  readonly batch: number;
  /**
   * Images of one concept that may meet in a batch, default 1. More are false negatives of each other
   * for the sigmoid loss: the price of a batch larger than the number of concepts.
   */
  readonly perConcept?: number | undefined;
  /** Integer from 0 to 2^53 − 1, default 0. */
  readonly seed?: number | undefined;
  /** Pixels per side of the images given out, default: as the source has them. */
  readonly size?: number | undefined;
  /** Random changes to the images, default none. */
  readonly augment?: AugmentOptions | undefined;
  /**
   * Rows [from, to) of every batch that are given out: the part of one rank. The batches, and with them
   * the states of the stream, are the same whatever is given out. Default all.
   */
  readonly rows?: readonly [from: number, to: number] | undefined;
}

/** Where the random words for changing an example begin, however many reading it took. */
const AUGMENT_POSITION = 1024;

/**
 * Endless stream of batches: which examples, with which text and which changes follows from the
 * seed, the batch's number and the place in the batch. Close it to release the source's readers.
 *
 * @example
 * const batches = new BatchStream(new PairSource(table), { batch: 128, seed: 1 });
 * const { images, tokens } = await batches.next();
 */
export class BatchStream implements Stream<Batch> {
  private readonly sampler: ConceptSampler;
  private readonly options: BatchOptions;
  private step = 0;

  /** @throws ERR_ARGUMENT when an option is out of its range */
  constructor(
    private readonly source: Source,
    options: BatchOptions,
  ) {
    const { batch, seed = 0, size, perConcept } = options;
    if (size !== undefined && (!Number.isInteger(size) || size < 1)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `BatchStream: size must be a positive integer, got ${String(size)}`,
      );
    }
    const [from, to] = options.rows ?? [0, batch];
    if (![from, to].every(Number.isInteger) || from < 0 || from >= to || to > batch) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `BatchStream: rows must be a range of a batch of ${String(batch)}, got ${String(from)} to ${String(to)}`,
      );
    }
    checkAugment(options.augment ?? {});
    this.options = options;
    this.sampler = new ConceptSampler(source.concepts, batch, seed, perConcept);
  }

  async next(): Promise<Batch> {
    const { batch, seed = 0, augment: changes = {} } = this.options;
    const [from, to] = this.options.rows ?? [0, batch];
    const indices = this.sampler.next().subarray(from, to);
    const read = [...indices].map(async (index, row) => {
      const random = new Philox4x32(seed, this.step * batch + from + row);
      return { random, ...(await this.source.read(index, random)) };
    });
    const examples = await Promise.all(read);
    const size = this.options.size ?? examples[0].size;
    const bytes = size * size * 3;
    const images = new Uint8Array(indices.length * bytes);
    for (const [row, example] of examples.entries()) {
      example.random.position = AUGMENT_POSITION;
      const out = images.subarray(row * bytes, (row + 1) * bytes);
      augment(example.pixels, example.size, changes, example.random, out, size);
    }
    return {
      step: this.step++,
      images,
      size,
      texts: examples.map(({ text }) => text),
      tokens: tokenRows(this.source.name, examples),
      concepts: indices.map((index) => this.source.concepts[index]),
      examples: indices,
    };
  }

  state(): StreamState {
    return samplerStreamState(this.step, this.sampler);
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- what is thrown must be a rejection
  async restore(state: StreamState): Promise<void> {
    this.step = restoreSamplerStream('BatchStream', state, this.sampler);
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/**
 * Token ids of examples, (B, T); `undefined` when the source has none.
 *
 * @throws ERR_DATA when they are not of one length
 */
export function tokenRows(
  source: string,
  examples: readonly Pick<Example, 'tokens'>[],
): Int32Array | undefined {
  const length = examples[0]?.tokens?.length;
  if (length === undefined) return undefined;
  const tokens = new Int32Array(examples.length * length);
  for (const [row, { tokens: ids }] of examples.entries()) {
    if (ids?.length !== length) {
      throw new SiglipError(
        'ERR_DATA',
        `BatchStream: tokens of ${source} must have the length ${String(length)}, got ${String(ids?.length)}`,
      );
    }
    tokens.set(ids, row * length);
  }
  return tokens;
}

/**
 * What a worker thread needs to make the batches of a {@link PairTable}: the `input` of
 * {@link openPairBatches}.
 */
export interface PairBatchesInput {
  readonly table: PairTable;
  readonly options: BatchOptions;
}

/**
 * Batches of a table, in the form that `Prefetch` runs on a worker thread.
 *
 * @example
 * const batches = await Prefetch.open<Batch>({
 *   module: pairBatchesModule, factory: 'openPairBatches', input: { table, options },
 * });
 */
export function openPairBatches(input: PairBatchesInput): Stream<Batch> {
  return new BatchStream(new PairSource(input.table), input.options);
}

/** The file to give to `Prefetch` as `module` together with the factory `openPairBatches`. */
export const pairBatchesModule = __filename;

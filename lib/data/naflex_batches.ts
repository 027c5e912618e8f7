// Batches for NaFlex training: images in their own shapes, each resized to the budget of its batch.
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import type { ImageInput, NaflexProcessor } from '../image';
import type { Batch } from './batches';
import { tokenRows } from './batches';
import type { NaflexLengths } from './naflex_lengths';
import type { SamplerState } from './sampler';
import { ConceptSampler } from './sampler';
import type { Source } from './source';
import type { Stream, StreamState } from './stream';

/** An image of any shape with one of its texts. */
export interface NaflexExample {
  readonly image: ImageInput;
  readonly text: string;
  /** The text as token ids, padded to one length, when the source knows a tokenizer. */
  readonly tokens?: Int32Array | undefined;
}

/** As {@link Source}, of images of any shape. */
export interface NaflexSource extends Omit<Source, 'read'> {
  read(index: number, random: Philox4x32): NaflexExample | Promise<NaflexExample>;
}

/** A source of square images as one of any. */
export function squareImages(source: Source): NaflexSource {
  const { name, length, concepts } = source;
  return {
    name,
    length,
    concepts,
    read: async (index, random) => {
      const { pixels, size, text, tokens } = await source.read(index, random);
      return { image: { data: pixels, width: size, height: size, channels: 3 }, text, tokens };
    },
  };
}

/**
 * Endless stream of packed batches: length, examples and texts follow from the seeds and the batch's
 * number.
 */
export class NaflexBatchStream implements Stream<Batch> {
  private readonly sampler: ConceptSampler;
  private step = 0;

  /**
   * @param seed - integer from 0 to 2^53 − 1, default 0
   * @throws ERR_ARGUMENT when a batch is larger than the number of concepts
   */
  constructor(
    private readonly source: NaflexSource,
    private readonly processor: NaflexProcessor,
    private readonly lengths: NaflexLengths,
    private readonly seed = 0,
  ) {
    this.sampler = new ConceptSampler(source.concepts, lengths.fullBatch, seed);
  }

  async next(): Promise<Batch> {
    const { length, batch, rows } = this.lengths.at(this.step);
    const first = this.step * this.lengths.fullBatch;
    const indices = this.sampler.next(batch);
    const examples = await Promise.all(
      Array.from(indices, async (index, row) =>
        this.source.read(index, new Philox4x32(this.seed, first + row)),
      ),
    );
    const images = examples.map(({ image }) => image);
    const packed = await this.processor.pack(images, rows, { maxPatches: length });
    return {
      step: this.step++,
      images: new Uint8Array(),
      size: 0,
      texts: examples.map(({ text }) => text),
      tokens: tokenRows(this.source.name, examples),
      concepts: indices.map((index) => this.source.concepts[index]),
      packed: { length, ...packed },
    };
  }

  state(): StreamState {
    const { epoch, position, deferred } = this.sampler.state();
    return { step: this.step, epoch, position, deferred };
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- what is thrown must be a rejection
  async restore(state: StreamState): Promise<void> {
    const { step, ...sampler } = (state ?? {}) as unknown as SamplerState & { step: number };
    if (!Number.isSafeInteger(step) || step < 0) {
      throw new SiglipError(
        'ERR_DATA',
        `NaflexBatchStream.restore: state must be of a stream of batches, got ${JSON.stringify(state)}`,
      );
    }
    this.sampler.restore(sampler);
    this.step = step;
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

// Batches for NaFlex training: the images of another stream, each resized to the budget of its batch.
//
// A half batch takes half of the other stream's batch; its other half waits for the next half batch. So
// the pairs of a batch always come from one batch, and what kept them apart there, such as distinct
// concepts, still holds.
import { z } from 'zod';
import { SiglipError } from '../errors';
import type { NaflexProcessor, RawImage } from '../image';
import { checked } from '../weights/json_file';
import type { Batch } from './batches';
import type { CorpusBatch } from './corpus_batches';
import type { NaflexLengths } from './naflex_lengths';
import type { ComposedParts } from './parts';
import type { Stream, StreamState } from './stream';

/** A batch of square images, or of images in their own shapes where it has `originals`. */
export type WholeBatch = Pick<Batch, 'images' | 'size' | 'texts' | 'tokens'> &
  Partial<
    Pick<Batch, 'step' | 'concepts' | 'examples'> & Pick<CorpusBatch, 'originals' | 'regions'>
  >;

const STATE = z.strictObject(
  {
    step: z.int('a count').nonnegative('a count'),
    batches: z.custom<StreamState>(),
    waiting: z.custom<StreamState>().optional(),
  },
  'the position of a stream of NaFlex batches',
);

/**
 * Endless stream of packed batches, a function of the other stream and the lengths.
 *
 * @example
 * const whole = await openCorpusBatches({ mixture, batch: 64, size: 1, originals: 1024, tokenizer });
 * const batches = new NaflexBatchStream(whole, processor, new NaflexLengths({ batch: 64 }));
 */
export class NaflexBatchStream implements Stream<Batch> {
  private step = 0;
  /** A batch of which the second half is left, and the state of its stream before it. */
  private waiting: { readonly before: StreamState; readonly batch: WholeBatch } | undefined;

  /**
   * @param whole - batches of as many pairs as the lengths' full batch; closed with this stream
   * @param partsOf - gives what the pairs of a whole batch bring besides, from `first` to `end`
   */
  constructor(
    private readonly whole: Stream<WholeBatch>,
    private readonly processor: NaflexProcessor,
    private readonly lengths: NaflexLengths,
    private readonly partsOf: (
      whole: WholeBatch,
      first: number,
      end: number,
    ) => Promise<ComposedParts> = () => Promise.resolve({}),
  ) {}

  async next(): Promise<Batch> {
    const { length, batch, rows } = this.lengths.at(this.step);
    const { from, first } = await this.take(batch);
    const end = first + batch;
    const packed = await this.processor.pack(imagesOf(from).slice(first, end), rows, {
      maxPatches: length,
    });
    const ids = (from.tokens?.length ?? 0) / this.lengths.fullBatch;
    const numbered = Int32Array.from({ length: batch }, (_, i) => i);
    return {
      step: this.step++,
      images: new Uint8Array(),
      size: 0,
      texts: from.texts.slice(first, end),
      tokens: from.tokens?.slice(first * ids, end * ids),
      concepts: from.concepts?.slice(first, end) ?? numbered,
      examples: from.examples?.slice(first, end) ?? numbered,
      packed: { length, ...packed },
      ...(await this.partsOf(from, first, end)),
    };
  }

  state(): StreamState {
    const { step, waiting } = this;
    const batches = this.whole.state();
    return waiting === undefined ? { step, batches } : { step, batches, waiting: waiting.before };
  }

  async restore(state: StreamState): Promise<void> {
    const { step, batches, waiting } = checked(
      STATE,
      state,
      'NaflexBatchStream: state',
      'ERR_DATA',
    );
    this.waiting = undefined;
    if (waiting !== undefined) {
      await this.whole.restore(waiting);
      this.waiting = { before: waiting, batch: await this.nextWhole() };
    }
    await this.whole.restore(batches);
    this.step = step;
  }

  close(): Promise<void> {
    return this.whole.close();
  }

  private async take(pairs: number): Promise<{ from: WholeBatch; first: number }> {
    if (pairs === this.lengths.fullBatch) return { from: await this.nextWhole(), first: 0 };
    const { waiting } = this;
    if (waiting !== undefined) {
      this.waiting = undefined;
      return { from: waiting.batch, first: pairs };
    }
    const before = this.whole.state();
    const batch = await this.nextWhole();
    this.waiting = { before, batch };
    return { from: batch, first: 0 };
  }

  private async nextWhole(): Promise<WholeBatch> {
    const batch = await this.whole.next();
    const { fullBatch } = this.lengths;
    if (batch.texts.length === fullBatch) return batch;
    throw new SiglipError(
      'ERR_DATA',
      `NaflexBatchStream: batches must have the ${String(fullBatch)} pairs of the lengths' full batch, ` +
        `got ${String(batch.texts.length)}`,
    );
  }
}

function imagesOf({ images, size, texts, originals }: WholeBatch): readonly RawImage[] {
  if (originals !== undefined) return originals;
  const bytes = 3 * size * size;
  return texts.map((_, i) => ({
    data: images.subarray(i * bytes, (i + 1) * bytes),
    width: size,
    height: size,
    channels: 3,
  }));
}

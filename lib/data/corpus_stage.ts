// Batches for a stage of training from a mixture of corpora: those of the mixture, with the parts that the
// stage's losses ask for, and as patches where it is NaFlex.
import { Philox4x32 } from '../array/random';
import { NaflexProcessor } from '../image';
import { loadTokenizer } from '../text';
import type { Tokenizer } from '../text';
import type { NaflexPreprocessor } from '../weights';
import type { Batch } from './batches';
import type { CorpusBatch, CorpusBatchOptions, OpenCorpusBatches } from './corpus_batches';
import { openCorpusBatches } from './corpus_batches';
import type { WholeBatch } from './naflex_batches';
import { NaflexBatchStream } from './naflex_batches';
import type { NaflexLengthOptions } from './naflex_lengths';
import { NaflexLengths } from './naflex_lengths';
import type { BatchParts, ComposedParts } from './parts';
import { composeParts } from './parts';
import type { Stream, StreamState } from './stream';

/** What a stage's batches are. */
export interface CorpusStageOptions extends Omit<
  CorpusBatchOptions,
  'size' | 'originals' | 'seed'
> {
  readonly seed: number;
  readonly parts: BatchParts;
  /** A fixed resolution: pixels a side. */
  readonly size?: number | undefined;
  /** NaFlex: the lengths of the batches, and how patches are made. */
  readonly naflex?:
    | { readonly lengths: NaflexLengthOptions; readonly preprocessor: NaflexPreprocessor }
    | undefined;
}

/** Longer side in pixels that images are reduced to before views and patches are made of them. */
const ORIGINALS = 1024;

/**
 * Opens the batches of a stage. A region of an image, for the decoder's grounded targets, is drawn anew at
 * each visit.
 *
 * @throws what `openCorpusBatches` throws
 */
export async function openCorpusStage(
  { parts, naflex, size, ...options }: CorpusStageOptions,
  open: OpenCorpusBatches = {},
): Promise<Stream<Batch>> {
  const keeps = naflex !== undefined || parts.views !== undefined;
  const whole = await openCorpusBatches(
    { ...options, size: size ?? 1, originals: keeps ? ORIGINALS : undefined },
    open,
  );
  const tokenizer =
    parts.targets === undefined
      ? undefined
      : await loadTokenizer(
          options.tokenizer,
          options.lowercase === undefined ? {} : { lowercase: options.lowercase },
        );
  const composer = new Composer(parts, options.seed, tokenizer);
  if (naflex === undefined) return new CorpusStageStream(whole, composer);
  return new NaflexBatchStream(
    whole,
    new NaflexProcessor(naflex.preprocessor),
    new NaflexLengths(naflex.lengths),
    (batch, first, end) => composer.compose(batch, first, end),
  );
}

// Makes the parts of some pairs of a batch.
class Composer {
  constructor(
    private readonly parts: BatchParts,
    private readonly seed: number,
    private readonly tokenizer: Tokenizer | undefined,
  ) {}

  compose(whole: WholeBatch, first: number, end: number): Promise<ComposedParts> {
    const { step = 0, texts, originals, regions, images, size } = whole;
    const number = step * texts.length + first;
    const random = new Philox4x32(this.seed, 'region');
    const bytes = 3 * size * size;
    const examples = texts.slice(first, end).map((caption, i) => {
      const own = regions?.[first + i] ?? [];
      random.position = number + i;
      const region = own.length === 0 ? undefined : own[Math.floor(random.uniform() * own.length)];
      return {
        image: originals?.[first + i] ?? {
          data: images.subarray((first + i) * bytes, (first + i + 1) * bytes),
          width: size,
          height: size,
          channels: 3 as const,
        },
        caption,
        region: region && { box: region.box, caption: region.text },
      };
    });
    return composeParts(this.parts, examples, { seed: this.seed, first: number }, this.tokenizer);
  }
}

class CorpusStageStream implements Stream<Batch> {
  constructor(
    private readonly whole: Stream<CorpusBatch>,
    private readonly composer: Composer,
  ) {}

  async next(): Promise<Batch> {
    const batch = await this.whole.next();
    const { step, images, size, texts, tokens } = batch;
    const numbered = Int32Array.from({ length: texts.length }, (_, i) => i);
    return {
      step,
      images,
      size,
      texts,
      tokens,
      concepts: numbered,
      examples: numbered,
      ...(await this.composer.compose(batch, 0, texts.length)),
    };
  }

  state(): StreamState {
    return this.whole.state();
  }

  restore(state: StreamState): Promise<void> {
    return this.whole.restore(state);
  }

  close(): Promise<void> {
    return this.whole.close();
  }
}

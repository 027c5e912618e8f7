// Batches for a stage of training from a source in memory: images at the stage's resolution or as patches,
// token ids, and the parts that its losses ask for.
import { Philox4x32 } from '../array/random';
import { evenParts } from '../comm';
import { SiglipError } from '../errors';
import type { RgbImage } from '../image';
import { NaflexProcessor } from '../image';
import { packedRows } from '../model';
import type { Box, Tokenizer } from '../text';
import { loadTokenizer } from '../text';
import type { NaflexPreprocessor } from '../weights';
import type { AugmentOptions } from './augment';
import { augment, checkAugment } from './augment';
import type { Batch } from './batches';
import { tokenRows } from './batches';
import type { NaflexLengthOptions } from './naflex_lengths';
import { NaflexLengths } from './naflex_lengths';
import type { PairTable } from './pair_table';
import { PairSource } from './pair_table';
import type { BatchParts } from './parts';
import { composeParts } from './parts';
import type { Rank } from './row_stream';
import { ConceptSampler, restoreSamplerStream, samplerStreamState } from './sampler';
import type { Source } from './source';
import type { Stream, StreamState } from './stream';

/** What a stage's batches are. */
export interface StageBatchOptions extends Partial<Rank> {
  /** Pairs of a full batch, at most the number of concepts of the source. */
  readonly batch: number;
  /** See {@link BatchOptions.perConcept}. */
  readonly perConcept?: number | undefined;
  /** Integer from 0 to 2^53 − 1. */
  readonly seed: number;
  /** Random changes to the image that both towers and the decoder see. */
  readonly augment: AugmentOptions;
  readonly parts: BatchParts;
  /** A fixed resolution: pixels a side. */
  readonly size?: number | undefined;
  /** NaFlex: the lengths of the batches, and what makes patches. */
  readonly naflex?:
    { readonly lengths: NaflexLengths; readonly processor: NaflexProcessor } | undefined;
  /** For targets of the decoder. */
  readonly tokenizer?: Tokenizer | undefined;
}

/** Where the random words for changing an example begin, however many reading it took. */
const AUGMENT_POSITION = 1024;

interface Made {
  /** What the towers see. */
  readonly image: RgbImage;
  /** What views are cut from: the image of the source. */
  readonly original: RgbImage;
  readonly text: string;
  readonly tokens: Int32Array | undefined;
  /** Of what is not white in the image. */
  readonly box: Box;
}

/**
 * Endless stream of a stage's batches over drawings on white: everything follows from the seed and the
 * number of the batch. A rank gets its part of every batch; the states are those of one rank. The region of an image, for the decoder's grounded targets, is the box of its
 * drawing with its text; for NaFlex the image is cut down to it, so that shapes differ.
 */
export class StageBatchStream implements Stream<Batch> {
  private readonly sampler: ConceptSampler;
  private step = 0;

  /** @throws ERR_ARGUMENT when an option is out of its range */
  constructor(
    private readonly source: Source,
    private readonly options: StageBatchOptions,
  ) {
    const { batch, seed, size, naflex } = options;
    if ((size === undefined) === (naflex === undefined)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        'StageBatchStream: one of size and naflex must be given, got both or neither',
      );
    }
    checkAugment(options.augment);
    this.sampler = new ConceptSampler(source.concepts, batch, seed, options.perConcept);
  }

  async next(): Promise<Batch> {
    const { batch, seed, size, naflex, parts, tokenizer } = this.options;
    const form = naflex?.lengths.at(this.step);
    const { rank = 0, ranks = 1 } = this.options;
    const pairs = form?.batch ?? batch;
    const [from, to] = evenParts(pairs, ranks).slice(rank);
    const first = this.step * batch + from;
    const indices = this.sampler.next(pairs).subarray(from, to);
    const made = await Promise.all(
      Array.from(indices, (index, row) => this.make(index, new Philox4x32(seed, first + row))),
    );
    const composed = await composeParts(
      parts,
      made.map(({ original, text, box }) => ({
        image: original,
        caption: text,
        region: { box, caption: text },
      })),
      { seed, first },
      tokenizer,
    );
    const packed =
      naflex === undefined || form === undefined
        ? undefined
        : await naflex.processor.pack(
            made.map(({ image, box }) => cropped(image, box)),
            packedRows(indices.length * form.length),
            { maxPatches: form.length },
          );
    return {
      step: this.step++,
      images: packed === undefined ? concatenated(made) : new Uint8Array(),
      size: packed === undefined ? (size ?? 0) : 0,
      texts: made.map(({ text }) => text),
      tokens: tokenRows(this.source.name, made),
      concepts: indices.map((index) => this.source.concepts[index]),
      examples: indices,
      ...(packed === undefined || form === undefined
        ? {}
        : { packed: { length: form.length, ...packed } }),
      ...composed,
    };
  }

  private async make(index: number, random: Philox4x32): Promise<Made> {
    const { pixels, size, text, tokens } = await this.source.read(index, random);
    const side = this.options.size ?? size;
    const data = new Uint8Array(side * side * 3);
    random.position = AUGMENT_POSITION;
    augment(pixels, size, this.options.augment, random, data, side);
    const image = { data, width: side, height: side, channels: 3 } as const;
    const original = { data: pixels, width: size, height: size, channels: 3 } as const;
    return { image, original, text, tokens, box: drawnBox(image) };
  }

  state(): StreamState {
    return samplerStreamState(this.step, this.sampler);
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- what is thrown must be a rejection
  async restore(state: StreamState): Promise<void> {
    this.step = restoreSamplerStream('StageBatchStream', state, this.sampler);
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** What a worker thread needs to make a stage's batches: the `input` of {@link openStageBatches}. */
export interface StageBatchesInput extends Pick<
  StageBatchOptions,
  'batch' | 'perConcept' | 'rank' | 'ranks' | 'seed' | 'augment' | 'parts' | 'size'
> {
  readonly table: PairTable;
  readonly naflex?:
    | { readonly lengths: NaflexLengthOptions; readonly preprocessor: NaflexPreprocessor }
    | undefined;
  /** Folder of the tokenizer for targets of the decoder. */
  readonly tokenizerFolder?: string | undefined;
}

/** A stage's batches over a table, in the form that `Prefetch` runs on a worker thread. */
export async function openStageBatches(input: StageBatchesInput): Promise<Stream<Batch>> {
  const { table, naflex, tokenizerFolder, ...options } = input;
  return new StageBatchStream(new PairSource(table), {
    ...options,
    naflex: naflex && {
      lengths: new NaflexLengths(naflex.lengths),
      processor: new NaflexProcessor(naflex.preprocessor),
    },
    tokenizer: tokenizerFolder === undefined ? undefined : await loadTokenizer(tokenizerFolder),
  });
}

/** The file to give to `Prefetch` as `module` together with the factory `openStageBatches`. */
export const stageBatchesModule = __filename;

/** Colours this near to white are paper. */
const PAPER = 250;

/** The box of what is drawn on white, in fractions of the sides; the whole image where nothing is. */
export function drawnBox({ data, width, height }: RgbImage): Box {
  let [top, left, bottom, right] = [height, width, 0, 0];
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i += 3) {
      if (data[i] >= PAPER && data[i + 1] >= PAPER && data[i + 2] >= PAPER) continue;
      top = Math.min(top, row);
      bottom = Math.max(bottom, row + 1);
      left = Math.min(left, column);
      right = Math.max(right, column + 1);
    }
  }
  return bottom === 0 ? [0, 0, 1, 1] : [top / height, left / width, bottom / height, right / width];
}

function cropped({ data, width, height }: RgbImage, [ymin, xmin, ymax, xmax]: Box): RgbImage {
  const [top, left] = [Math.round(ymin * height), Math.round(xmin * width)];
  const [rows, columns] = [Math.round(ymax * height) - top, Math.round(xmax * width) - left];
  const out = new Uint8Array(rows * columns * 3);
  for (let row = 0; row < rows; row++) {
    const from = ((top + row) * width + left) * 3;
    out.set(data.subarray(from, from + columns * 3), row * columns * 3);
  }
  return { data: out, width: columns, height: rows, channels: 3 };
}

function concatenated(made: readonly Made[]): Uint8Array {
  const bytes = made[0].image.data.length;
  const out = new Uint8Array(made.length * bytes);
  made.forEach(({ image }, i) => {
    out.set(image.data, i * bytes);
  });
  return out;
}

// Batches of training pairs from a mixture of corpora.
//
// Rows are drawn, decoded by a pool of workers and taken in the order of the draws, so what is in a
// batch follows from the mixture and the seed, however many workers there are and however fast. An
// image that cannot be used is passed over: the next sound pair takes its place. All images of a batch
// are resized by one native call, since a call waits for whatever program the CPU runs.
import { z } from 'zod';
import { mapAhead } from '../corpus';
import type { RowFailure } from '../corpus';
import { SiglipError, type SiglipErrorCode } from '../errors';
import type { RgbImage } from '../image';
import type { Pixels, Placed } from '../image/pixels';
import { preparePixels, rgbOf } from '../image/pixels';
import type { Tokenizer } from '../text';
import { loadTokenizer } from '../text';
import { reasonOf } from '../weights/file_errors';
import { checked } from '../weights/json_file';
import type { DecodeTask } from './decode_task';
import { decodeTask, decodeTaskModule } from './decode_task';
import type { Region } from './pair_row';
import { relativeRegions } from './pair_row';
import type { DrawnPair, PairStreamOptions } from './pair_stream';
import { PairStream } from './pair_stream';
import { Prefetch } from './prefetch';
import type { Stream, StreamState } from './stream';
import { WorkerPool } from './worker_pool';

/** How batches of a mixture are made. All of it is plain, so that it can travel to a thread. */
export interface CorpusBatchOptions extends PairStreamOptions {
  /** Pairs per batch, B. */
  readonly batch: number;
  /** Pixels per side of the aligned image, S: every image is squashed to a square (no augmentation). */
  readonly size: number;
  /** Folder with the tokenizer. */
  readonly tokenizer: string;
  /** Tokens per text, T. Default 64. */
  readonly tokens?: number | undefined;
  /** Whether texts are lower-cased. Default true. */
  readonly lowercase?: boolean | undefined;
  /**
   * Keep the images as they are decoded, for views and for NaFlex; ones whose longer side is above
   * this many pixels are reduced to it. Default: they are not kept.
   */
  readonly originals?: number | undefined;
  /** Largest width · height of an image; more is skipped. Default that of `decodeImage`. */
  readonly maxPixels?: number | undefined;
  /** Threads that decode. Default 0: none besides the stream's own (whose decoder has threads). */
  readonly workers?: number | undefined;
  /** Node options of these threads. Default: those of the thread that opens the stream. */
  readonly execArgv?: readonly string[] | undefined;
}

/** Images and texts that belong together, row by row, of B sound pairs. */
export interface CorpusBatch {
  /** Number of this batch since the start of the stream, from 0. */
  readonly step: number;
  /** RGB, (B, S, S, 3). */
  readonly images: Uint8Array;
  /** Pixels per side, S. */
  readonly size: number;
  /** One text per image, (B). */
  readonly texts: readonly string[];
  /** Token ids, (B, T). */
  readonly tokens: Int32Array;
  /** Regions of each image, none where its row has none, (B). */
  readonly regions: readonly (readonly Region[])[];
  /** The images before they were squashed, (B), where they were asked for. */
  readonly originals: readonly RgbImage[] | undefined;
  /** Labels of the rows, (B). */
  readonly ids: readonly string[];
  /** The stream that each pair was drawn from, (B). */
  readonly streams: readonly string[];
  /** Language of each page, where rows say it, (B). */
  readonly languages: readonly (string | undefined)[];
  /** Whatever the attributes field of each row holds, (B). */
  readonly attributes: readonly unknown[];
  /** Pairs passed over since the start of the stream. */
  readonly skipped: number;
}

/** Something that went wrong and was dealt with. */
export type DataNotice =
  | {
      readonly kind: 'skipped';
      readonly stream: string;
      readonly source: string;
      /** Row of the source, from 0. */
      readonly row: number;
      readonly id: string;
      readonly code: SiglipErrorCode;
      readonly reason: string;
    }
  | {
      readonly kind: 'lost worker';
      readonly worker: string;
      readonly reason: string;
    };

interface Decoded {
  readonly drawn: DrawnPair;
  readonly pixels: Pixels | undefined;
  readonly failure: RowFailure | undefined;
}

/** Most bytes of decoded pixels that wait to be resized; more are resized at once. */
const WAITING_BYTES = 64 << 20;

/** Most decoded images that wait for the batch they will be in, besides those in the making. */
const WAITING_IMAGES = 16;

/** Pairs in a row that may be unusable before something else must be wrong. */
const MAX_SKIPPED_IN_A_ROW = 1000;

/** libvips decodes on libuv's pool of four. */
const DECODES_AT_ONCE = 4;

const STATE = z.strictObject(
  {
    step: z.int('a count').nonnegative('a count'),
    skipped: z.int('a count').nonnegative('a count'),
    pairs: z.custom<StreamState>(),
  },
  'the position of a stream of batches of a mixture',
);

/**
 * Endless batches of a mixture. Its state names an example and not a batch: it may be restored by a
 * stream with another batch or image size.
 *
 * Most programs want {@link openCorpusBatches}, which runs one on a thread of its own.
 */
export class CorpusBatchStream implements Stream<CorpusBatch> {
  private step = 0;
  private skipped = 0;
  private skippedInARow = 0;
  private position: StreamState;
  private decoded: AsyncGenerator<Decoded> | undefined;

  private constructor(
    private readonly options: CorpusBatchOptions,
    private readonly pairs: PairStream,
    private readonly tokenizer: Tokenizer,
    private readonly pool: WorkerPool<DecodeTask, Pixels | RowFailure> | undefined,
    private readonly onNotice: (notice: DataNotice) => void,
  ) {
    this.position = pairs.state();
  }

  /**
   * Opens the corpora, the tokenizer and the workers.
   *
   * @param onNotice - hears of every pair that is skipped and every worker that is replaced
   * @throws ERR_ARGUMENT, ERR_CONFIG; ERR_FILE, ERR_DATA, ERR_TOKENIZER for files that cannot be used
   */
  static async open(
    options: CorpusBatchOptions,
    onNotice: (notice: DataNotice) => void = () => undefined,
  ): Promise<CorpusBatchStream> {
    const { batch, size, tokens = 64, workers = 0, originals = 1 } = options;
    for (const [what, value, least] of [
      ['batch', batch, 1],
      ['size', size, 1],
      ['tokens', tokens, 1],
      ['originals', originals, 1],
      ['workers', workers, 0],
    ] as const) {
      if (Number.isSafeInteger(value) && value >= least) continue;
      throw new SiglipError(
        'ERR_ARGUMENT',
        `CorpusBatchStream: ${what} must be an integer, ${String(least)} or more, got ${String(value)}`,
      );
    }
    const pairs = await PairStream.open(options);
    const tokenizer = await loadTokenizer(options.tokenizer, {
      lowercase: options.lowercase ?? true,
      specialTokens: 'ignore',
    });
    if (tokenizer === undefined) {
      throw new SiglipError(
        'ERR_TOKENIZER',
        `CorpusBatchStream: ${options.tokenizer} must hold a tokenizer, got none`,
      );
    }
    const pool =
      workers === 0
        ? undefined
        : new WorkerPool<DecodeTask, Pixels | RowFailure>({
            module: decodeTaskModule,
            handler: 'decodeTask',
            workers,
            name: 'decoder',
            execArgv: options.execArgv,
            onLost: (worker, reason) => {
              onNotice({ kind: 'lost worker', worker, reason });
            },
          });
    return new CorpusBatchStream(options, pairs, tokenizer, pool, onNotice);
  }

  async next(): Promise<CorpusBatch> {
    const { batch, size, tokens = 64, originals } = this.options;
    const images = new Uint8Array(batch * size * size * 3);
    const drawn: DrawnPair[] = [];
    const regions: Region[][] = [];
    const kept: RgbImage[] = [];
    let waiting: Placed[] = [];
    let waitingBytes = 0;
    const resize = async (): Promise<void> => {
      const output = { layout: 'bytes' } as const;
      await preparePixels(waiting, { resample: 'bilinear', backend: 'pillow', output }, images);
      waiting = [];
      waitingBytes = 0;
    };
    this.decoded ??= this.decode();
    while (drawn.length < batch) {
      const item = (await this.decoded.next()) as IteratorYieldResult<Decoded>;
      const { drawn: pair, pixels, failure } = item.value;
      this.position = pair.state;
      if (pair.pair === undefined || pixels === undefined) {
        this.skip(pair, failure);
        continue;
      }
      this.skippedInARow = 0;
      const offset = drawn.length * size * size * 3;
      waiting.push({ pixels, width: size, height: size, offset });
      waitingBytes += pixels.data.byteLength;
      drawn.push(pair);
      regions.push(relativeRegions(pair.pair.regions, pair.pair.pixelBoxes ? pixels : undefined));
      if (originals !== undefined) kept.push(await original(pixels, originals));
      if (waitingBytes > WAITING_BYTES) await resize();
    }
    if (waiting.length > 0) await resize();
    const texts = drawn.map(({ pair }) => pair?.text ?? '');
    return {
      step: this.step++,
      images,
      size,
      texts,
      tokens: this.tokenizer.encode(texts, tokens),
      regions,
      originals: originals === undefined ? undefined : kept,
      ids: drawn.map(({ id }) => id),
      streams: drawn.map(({ stream }) => stream),
      languages: drawn.map(({ pair }) => pair?.language),
      attributes: drawn.map(({ pair }) => pair?.attributes),
      skipped: this.skipped,
    };
  }

  state(): StreamState {
    return { step: this.step, skipped: this.skipped, pairs: this.position };
  }

  async restore(state: StreamState): Promise<void> {
    const { step, skipped, pairs } = checked(STATE, state, 'CorpusBatchStream: state', 'ERR_DATA');
    await this.decoded?.return(undefined);
    this.decoded = undefined;
    await this.pairs.restore(pairs);
    this.position = this.pairs.state();
    this.step = step;
    this.skipped = skipped;
    this.skippedInARow = 0;
  }

  async close(): Promise<void> {
    const decoded = this.decoded?.return(undefined);
    await this.pool?.close();
    await decoded;
    await this.pairs.close();
  }

  private decode(): AsyncGenerator<Decoded> {
    const { batch, workers = 0 } = this.options;
    const concurrency = workers === 0 ? DECODES_AT_ONCE : 2 * workers;
    const ahead = concurrency + Math.min(batch, WAITING_IMAGES);
    return mapAhead(this.draws(), (drawn) => this.decoding(drawn), { concurrency, ahead });
  }

  private async *draws(): AsyncGenerator<DrawnPair> {
    for (;;) yield await this.pairs.next();
  }

  private async decoding(drawn: DrawnPair): Promise<Decoded> {
    const { pool } = this;
    if (drawn.pair === undefined) return { drawn, pixels: undefined, failure: drawn.failure };
    const task = { image: drawn.pair.image, maxPixels: this.options.maxPixels };
    const result = await (pool === undefined ? decodeTask(task) : decodeOnPool(pool, task));
    return 'reason' in result
      ? { drawn, pixels: undefined, failure: result }
      : { drawn, pixels: result, failure: undefined };
  }

  private skip(drawn: DrawnPair, failure: RowFailure | undefined): void {
    const { stream, source, row, id } = drawn;
    const { code, reason } = failure ?? { code: 'ERR_DATA', reason: 'nothing is known' };
    this.skipped++;
    this.onNotice({ kind: 'skipped', stream, source, row, id, code, reason });
    if (++this.skippedInARow < MAX_SKIPPED_IN_A_ROW) return;
    throw new SiglipError(
      'ERR_DATA',
      `CorpusBatchStream: one of ${String(MAX_SKIPPED_IN_A_ROW)} pairs in a row must be usable, got none\n` +
        `the last one, ${id} of ${source}: ${reason}`,
    );
  }
}

/** An image that worker threads die of is skipped like any other that cannot be used. */
async function decodeOnPool(
  pool: WorkerPool<DecodeTask, Pixels | RowFailure>,
  task: DecodeTask,
): Promise<Pixels | RowFailure> {
  try {
    return await pool.run(task);
  } catch (error) {
    if (error instanceof SiglipError && error.code === 'ERR_DATA') {
      return { code: error.code, reason: error.message };
    }
    throw error;
  }
}

/** RGB with its longer side at most so many pixels. */
function original(pixels: Pixels, most: number): Promise<RgbImage> {
  const { width, height } = pixels;
  const scale = Math.min(1, most / Math.max(width, height));
  if (scale === 1 && pixels.format === 'rgb') {
    return Promise.resolve({ data: pixels.data, width, height, channels: 3 });
  }
  const extent = (side: number): number => Math.max(1, Math.round(side * scale));
  return rgbOf(pixels, { width: extent(width), height: extent(height) });
}

/** What the thread of {@link openCorpusBatches} gives. */
type NotedBatch = CorpusBatch & { readonly notices: readonly DataNotice[] };

/** Batches with what there was to say since the one before, in the form that `Prefetch` runs. */
export async function openNotedBatches(options: CorpusBatchOptions): Promise<Stream<NotedBatch>> {
  let notices: DataNotice[] = [];
  const stream = await CorpusBatchStream.open(options, (notice) => {
    notices.push(notice);
  });
  return {
    async next() {
      const batch = await stream.next();
      const noted = { ...batch, notices };
      notices = [];
      return noted;
    },
    state: () => stream.state(),
    async restore(state) {
      await stream.restore(state);
      notices = [];
    },
    close: () => stream.close(),
  };
}

/** What {@link openCorpusBatches} takes besides the options of the stream. */
export interface OpenCorpusBatches {
  /** Hears of every pair that is skipped and every worker that is replaced, with the batch it led to. */
  readonly onNotice?: ((notice: DataNotice) => void) | undefined;
  /** Batches that may wait to be read. Default 4. */
  readonly ahead?: number | undefined;
}

/** Threads that may end one after another without a batch between them. */
const MAX_LOSSES = 3;

class CorpusBatches implements Stream<CorpusBatch> {
  private constructor(
    private readonly options: CorpusBatchOptions,
    private readonly settings: OpenCorpusBatches,
    private stream: Prefetch<NotedBatch>,
  ) {}

  static async open(
    options: CorpusBatchOptions,
    settings: OpenCorpusBatches,
  ): Promise<CorpusBatches> {
    return new CorpusBatches(options, settings, await prefetch(options, settings));
  }

  async next(): Promise<CorpusBatch> {
    for (let losses = 0; ;) {
      try {
        const { notices, ...batch } = await this.stream.next();
        for (const notice of notices) this.settings.onNotice?.(notice);
        return batch;
      } catch (error) {
        if (!this.stream.isLost || ++losses === MAX_LOSSES) throw error;
        await this.replace(error);
      }
    }
  }

  /** Another thread goes on behind the last batch that was read. */
  private async replace(error: unknown): Promise<void> {
    const state = this.stream.state();
    await this.stream.close();
    this.stream = await prefetch(this.options, this.settings);
    await this.stream.restore(state);
    this.settings.onNotice?.({ kind: 'lost worker', worker: NAME, reason: reasonOf(error) });
  }

  state(): StreamState {
    return this.stream.state();
  }

  restore(state: StreamState): Promise<void> {
    return this.stream.restore(state);
  }

  close(): Promise<void> {
    return this.stream.close();
  }
}

/** What errors and notices call the thread that makes batches. */
const NAME = 'corpus batches';

function prefetch(
  options: CorpusBatchOptions,
  { ahead }: OpenCorpusBatches,
): Promise<Prefetch<NotedBatch>> {
  return Prefetch.open<NotedBatch>({
    module: __filename,
    factory: 'openNotedBatches',
    input: options,
    name: NAME,
    ahead,
    execArgv: options.execArgv,
  });
}

/**
 * Batches of a mixture, made ahead of time on a thread of their own, which has `workers` threads that
 * decode under it. They are those of {@link CorpusBatchStream}; a thread that dies is replaced.
 *
 * @example
 * const mixture = await readMixture('data/mixture.json');
 * const batches = await openCorpusBatches(
 *   { mixture, batch: 256, size: 256, tokenizer: 'model', workers: 2 },
 *   { onNotice: (notice) => log(notice) },
 * );
 * const { images, tokens } = await batches.next();
 */
export function openCorpusBatches(
  options: CorpusBatchOptions,
  settings: OpenCorpusBatches = {},
): Promise<Stream<CorpusBatch>> {
  return CorpusBatches.open(options, settings);
}

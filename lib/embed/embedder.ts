// The object a server holds: it gathers what concurrent calls bring into batches for one model.
import { SiglipError } from '../errors';
import { expectNotAborted } from '../weights';
import { AbortListeners } from './abort_listeners';
import type { PreparedImage } from './collate';
import type { EmbedImage } from './image_input';
import { imageBytes } from './image_input';
import type { LaneInput, LaneStats } from './lane';
import { Lane } from './lane';
import {
  expectBoolean,
  expectEntries,
  expectInteger,
  expectMilliseconds,
  expectOneOf,
  expectSignal,
  shown,
} from './options';
import type { LoadOptions } from './siglip2';
import { Siglip2 } from './siglip2';
import type { EmbedText } from './text_input';
import { textBytes } from './text_input';

/** Limits of an {@link Embedder}. Images and texts have a queue each, both of these limits. */
export interface EmbedderOptions {
  /**
   * Most inputs run at once. Default 8. Beyond the smaller of 32 and 6 + width / 32 a head sums in
   * another order, so that bits may differ (by about 1e-7) from those of a smaller batch.
   */
  readonly maxBatch?: number;
  /**
   * Most milliseconds an input that is ready waits, while the device is idle, for others that are
   * being prepared. Default 5. An idle device waits for nothing else; a busy one takes next what has
   * gathered meanwhile.
   */
  readonly maxDelay?: number;
  /** Most inputs accepted and not yet running. Default 1024. */
  readonly maxQueue?: number;
  /** Most bytes of such inputs: encoded images, pixels, texts; a path counts nothing. Default 2^28. */
  readonly maxQueueBytes?: number;
  /**
   * What a call does when the queue is full: `'wait'` (default) for its turn, which slows the caller
   * down, or `'reject'` with ERR_BUSY, which a server answers with 503.
   */
  readonly whenFull?: 'wait' | 'reject';
  /** Most images decoded at once. Default 4, as many as Node has threads for it. */
  readonly maxPreparing?: number;
}

/** How one text is embedded. */
export interface EmbedderCallOptions {
  /** Bring embeddings to unit length. Default true. */
  readonly normalize?: boolean;
  /** Ends the call at once with ERR_ABORTED; what has not begun to run is never run. */
  readonly signal?: AbortSignal;
}

/** How one image is embedded. */
export interface EmbedderImageOptions extends EmbedderCallOptions {
  /** Most patches of a NaFlex image. Default: what the checkpoint says, 256. */
  readonly maxPatches?: number;
}

/** What an {@link Embedder} is doing and has done. */
export interface EmbedderStats {
  readonly images: LaneStats;
  readonly texts: LaneStats;
  readonly closed: boolean;
}

/** How an {@link Embedder} is closed. */
export interface CloseOptions {
  /** What becomes of queued calls. Default `'finish'`; `'reject'` ends them with ERR_DISPOSED. */
  readonly queued?: 'finish' | 'reject';
}

/**
 * Gathers concurrent calls into batches. Inputs of one shape that are ready when the device is free go
 * together, the oldest first; images and texts take turns. A failure is that of one input alone, and
 * an embedding has the same bits whatever batch it was computed in (see `maxBatch`).
 *
 * @example
 * const embedder = await Embedder.load('./siglip2-base-patch16-224', { whenFull: 'reject' });
 * server.on('request', async (request, response) => {
 *   response.end(JSON.stringify([...(await embedder.embedText(await body(request)))]));
 * });
 * process.once('SIGTERM', () => void embedder.close());
 */
export class Embedder {
  private readonly images: Lane<PreparedImage>;
  private readonly texts: Lane<Int32Array>;
  private readonly listeners = new AbortListeners();
  private readonly maxDelay: number;
  private ownsModel = false;
  private closed = false;
  private lastRun: object | undefined;
  /** The batch on the device. */
  private current: Promise<void> | undefined;
  private immediate: NodeJS.Immediate | undefined;
  private timer: NodeJS.Timeout | undefined;

  /**
   * @param model - stays the caller's to dispose, after this is closed.
   * @throws ERR_ARGUMENT for an option outside of its domain
   */
  constructor(
    readonly model: Siglip2,
    options: EmbedderOptions = {},
  ) {
    if (!(model instanceof Siglip2)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `Embedder: model must be a Siglip2, got ${shown(model)}`,
      );
    }
    const who = 'Embedder';
    const maxBatch = expectInteger(who, 'maxBatch', options.maxBatch, 8);
    const shared = {
      maxBatch,
      maxQueue: expectInteger(who, 'maxQueue', options.maxQueue, 1024),
      maxQueueBytes: expectInteger(who, 'maxQueueBytes', options.maxQueueBytes, 2 ** 28),
      whenFull: expectOneOf(who, 'whenFull', options.whenFull, ['wait', 'reject']),
    };
    this.maxDelay = expectMilliseconds(who, 'maxDelay', options.maxDelay, 5);
    const maxPreparing = expectInteger(who, 'maxPreparing', options.maxPreparing, 4);
    const { stages } = model;
    const changed = (): void => {
      this.wake();
    };
    this.images = new Lane<PreparedImage>(
      {
        ...shared,
        maxPreparing,
        // NaFlex images are packed, so that those of any shape go together.
        shapeOf: () => '',
        run: async (images, normalize) => {
          stages.expectReady('embedImage', 'vision');
          return stages.embedImages(images, normalize);
        },
      },
      this.listeners,
      changed,
    );
    this.texts = new Lane<Int32Array>(
      {
        ...shared,
        maxPreparing: 2 * maxBatch,
        shapeOf: () => '',
        run: async (texts, normalize) => {
          stages.expectReady('embedText', 'text');
          return stages.embedTexts(texts, normalize);
        },
      },
      this.listeners,
      changed,
    );
  }

  /**
   * Loads a model that is disposed when the embedder is closed.
   *
   * @throws as `Siglip2.load`
   */
  static async load(
    source: string,
    options: LoadOptions & EmbedderOptions = {},
  ): Promise<Embedder> {
    const model = await Siglip2.load(source, options);
    try {
      const embedder = new Embedder(model, options);
      embedder.ownsModel = true;
      return embedder;
    } catch (error) {
      model.dispose();
      throw error;
    }
  }

  /**
   * The embedding of one image.
   *
   * @returns `config.embedding` floats of memory of their own
   * @throws as `Siglip2.embedImages`; ERR_BUSY by the option `whenFull`; ERR_ARGUMENT for an input
   * larger than `maxQueueBytes`; ERR_ABORTED, ERR_DISPOSED
   */
  async embedImage(image: EmbedImage, options: EmbedderImageOptions = {}): Promise<Float32Array> {
    const who = 'embedImage';
    const input = this.imageInput(who, options);
    const [promise] = this.images.add(who, [input(image, who, options.signal)]);
    return promise;
  }

  /** As {@link embedImage} for each of a list; the first failure ends the call. */
  async embedImages(
    images: readonly EmbedImage[],
    options: EmbedderImageOptions = {},
  ): Promise<Float32Array[]> {
    const who = 'embedImages';
    const input = this.imageInput(who, options);
    expectEntries(who, images);
    return this.together(options.signal, (signal) =>
      this.images.add(
        who,
        images.map((image, i) => input(image, `${who}: image ${String(i)}`, signal)),
      ),
    );
  }

  /**
   * The embedding of one text.
   *
   * @returns `config.embedding` floats of memory of their own
   * @throws as `Siglip2.embedTexts`; ERR_BUSY by the option `whenFull`; ERR_ARGUMENT for an input
   * larger than `maxQueueBytes`; ERR_ABORTED, ERR_DISPOSED
   */
  async embedText(text: EmbedText, options: EmbedderCallOptions = {}): Promise<Float32Array> {
    const who = 'embedText';
    const input = this.textInput(who, options);
    const [promise] = this.texts.add(who, [input(text, who, options.signal)]);
    return promise;
  }

  /** As {@link embedText} for each of a list; the first failure ends the call. */
  async embedTexts(
    texts: readonly EmbedText[],
    options: EmbedderCallOptions = {},
  ): Promise<Float32Array[]> {
    const who = 'embedTexts';
    const input = this.textInput(who, options);
    expectEntries(who, texts);
    return this.together(options.signal, (signal) =>
      this.texts.add(
        who,
        texts.map((text, i) => input(text, `${who}: text ${String(i)}`, signal)),
      ),
    );
  }

  /** Counts and times, for metrics. Cheap. */
  stats(): EmbedderStats {
    return { images: this.images.stats(), texts: this.texts.stats(), closed: this.closed };
  }

  /** Resolves when every call made so far has ended. Calls may still be made. */
  async drain(): Promise<void> {
    await Promise.allSettled([...this.images.pending(), ...this.texts.pending()]);
  }

  /**
   * Takes no more calls, waits for those there are, then frees a model that {@link load} loaded.
   * Idempotent.
   */
  async close(options: CloseOptions = {}): Promise<void> {
    const queued = expectOneOf('close', 'queued', options.queued, ['finish', 'reject']);
    this.closed = true;
    if (queued === 'reject') this.rejectQueued('close');
    await this.drain();
    await this.current;
    this.release();
  }

  /**
   * Frees a model that {@link load} loaded now. Queued calls end with ERR_DISPOSED; the batch on the
   * device comes to its end and its results arrive. Idempotent.
   */
  dispose(): void {
    this.closed = true;
    this.rejectQueued('dispose');
    this.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** {@link close}, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private imageInput(
    who: string,
    options: EmbedderImageOptions,
  ): (
    image: EmbedImage,
    entry: string,
    signal: AbortSignal | undefined,
  ) => LaneInput<PreparedImage> {
    const normalize = this.admit(who, 'vision', options);
    const { maxPatches } = options;
    if (maxPatches !== undefined) expectInteger(who, 'maxPatches', maxPatches, 1);
    const { stages } = this.model;
    return (image, entry, signal) => ({
      who: entry,
      prepare: () => stages.prepareImage(entry, image, { maxPatches, signal }),
      bytes: imageBytes(image),
      normalize,
      signal,
    });
  }

  private textInput(
    who: string,
    options: EmbedderCallOptions,
  ): (text: EmbedText, entry: string, signal: AbortSignal | undefined) => LaneInput<Int32Array> {
    const normalize = this.admit(who, 'text', options);
    const { stages } = this.model;
    return (text, entry, signal) => ({
      who: entry,
      prepare: () => Promise.resolve().then(() => stages.prepareText(entry, text)),
      bytes: textBytes(text),
      normalize,
      signal,
    });
  }

  // What every call is checked for; gives whether it normalises.
  private admit(who: string, tower: 'vision' | 'text', options: EmbedderCallOptions): boolean {
    if (this.closed) throw closedError(who);
    this.model.stages.expectReady(who, tower);
    expectSignal(who, options.signal);
    expectNotAborted(who, options.signal);
    return expectBoolean(who, 'normalize', options.normalize, true);
  }

  // One call of several inputs: when it fails or is aborted, the others leave the queue.
  private async together(
    signal: AbortSignal | undefined,
    add: (signal: AbortSignal) => Promise<Float32Array>[],
  ): Promise<Float32Array[]> {
    const stop = new AbortController();
    const unlisten =
      signal === undefined
        ? undefined
        : this.listeners.add(signal, () => {
            stop.abort(signal.reason);
          });
    try {
      return await Promise.all(add(stop.signal));
    } catch (error) {
      stop.abort(error);
      throw error;
    } finally {
      unlisten?.();
    }
  }

  // Looks for work in the next turn of the event loop, when calls made in this one have arrived.
  private wake(): void {
    if (this.current !== undefined) return;
    this.immediate ??= setImmediate(() => {
      this.immediate = undefined;
      this.runNext();
    });
  }

  private runNext(): void {
    clearTimeout(this.timer);
    if (this.current !== undefined) return;
    const now = performance.now();
    // In turns, so that a flood of one kind does not keep the other waiting for long.
    const { images, texts } = this;
    const lanes = this.lastRun === images ? [texts, images] : [images, texts];
    const lane = lanes.find((one) => one.isDue(now, this.maxDelay));
    if (lane !== undefined) {
      this.lastRun = lane;
      this.current = lane.runBatch().then(() => {
        this.current = undefined;
        this.wake();
      });
      return;
    }
    const due = Math.min(...lanes.map((one) => one.dueAt(this.maxDelay) ?? Infinity));
    if (due === Infinity) return;
    this.timer = setTimeout(
      () => {
        this.runNext();
      },
      Math.ceil(due - now),
    );
  }

  private rejectQueued(who: string): void {
    for (const lane of [this.images, this.texts]) {
      lane.rejectQueued(
        (entry) =>
          new SiglipError('ERR_DISPOSED', `${entry}: the embedder must be open, got ${who}()`),
      );
    }
  }

  private release(): void {
    clearTimeout(this.timer);
    clearImmediate(this.immediate);
    this.immediate = undefined;
    if (this.ownsModel) this.model.dispose();
  }
}

function closedError(who: string): SiglipError {
  return new SiglipError('ERR_DISPOSED', `${who}: the embedder must be open, got a closed one`);
}

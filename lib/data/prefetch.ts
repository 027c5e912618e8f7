// A stream made on a worker thread, ahead of whoever reads it.
//
// The worker holds as many credits as values may wait here, spends one per value and gets one back
// per value read: it works at full speed until `ahead` values wait, then stops. Each value comes
// with the state of the stream after it, so `state()` is that of the last value read, however far
// the worker has run ahead. `restore` starts a new generation; values of an older one are dropped.
import { extname, join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { SiglipError } from '../errors';
import type { Stream, StreamState } from './stream';
import { errorOfThread, type ThreadError } from './thread_messages';

/** What runs on the worker thread, and how far ahead. */
export interface PrefetchOptions {
  /** Absolute path of a module. */
  readonly module: string;
  /** Its export that makes the stream: `(input) => Stream | Promise<Stream>`. */
  readonly factory: string;
  /** Given to the factory; anything a structured clone takes. SharedArrayBuffers are not copied. */
  readonly input: unknown;
  /** Values that may wait to be read, 1 or more, default 4. */
  readonly ahead?: number | undefined;
  /** What errors call the worker, default: the factory's name. */
  readonly name?: string | undefined;
  /** Node options of the worker thread, default: those of this thread. */
  readonly execArgv?: readonly string[] | undefined;
}

/** Messages to the worker. */
export type PrefetchRequest =
  | { readonly kind: 'credit' }
  | { readonly kind: 'restore'; readonly generation: number; readonly state: StreamState };

/** Messages from the worker. */
export type PrefetchReply =
  | { readonly kind: 'ready'; readonly state: StreamState }
  | {
      readonly kind: 'value';
      readonly generation: number;
      readonly value: unknown;
      readonly state: StreamState;
    }
  | { readonly kind: 'restored'; readonly generation: number; readonly state: StreamState }
  | { readonly kind: 'rejected'; readonly generation: number; readonly error: ThreadError }
  | { readonly kind: 'failed'; readonly error: ThreadError };

/** What the worker thread is started with. */
export interface PrefetchWorkerData {
  readonly module: string;
  readonly factory: string;
  readonly input: unknown;
  readonly ahead: number;
}

interface Waiting {
  readonly resolve: () => void;
  readonly reject: (error: SiglipError) => void;
}

/**
 * A {@link Stream} whose values are made on a worker thread ahead of time. Values, their order and
 * its states are those of the stream it runs, whatever the timing.
 *
 * An open prefetch does not keep the process alive unless somebody waits for a value. When the
 * worker fails, what it finished before is still served, then every `next` rejects with its error.
 *
 * @example
 * const batches = await Prefetch.open<Batch>({
 *   module: pairBatchesModule, factory: 'openPairBatches', input: { table, options },
 * });
 * try {
 *   for (let step = 0; step < 100; step++) train(await batches.next());
 * } finally {
 *   await batches.close();
 * }
 */
export class Prefetch<T> implements Stream<T> {
  private readonly name: string;
  private readonly worker: Worker;
  private readonly queue: { readonly value: T; readonly state: StreamState }[] = [];
  private generation = 0;
  private position: StreamState = null;
  private failure: SiglipError | undefined;
  private ended = false;
  private closing: Promise<void> | undefined;
  /** Whoever waits for the next message: the one pending open, next or restore. */
  private waiting: Waiting | undefined;
  private ready = false;
  private restored = 0;
  private rejected: SiglipError | undefined;

  private constructor(options: PrefetchOptions) {
    this.name = options.name ?? options.factory;
    const { module, factory, input, ahead = 4 } = options;
    if (!Number.isInteger(ahead) || ahead < 1) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `Prefetch: ahead must be a positive integer, got ${String(ahead)}`,
      );
    }
    const workerData: PrefetchWorkerData = { module, factory, input, ahead };
    this.worker = new Worker(join(__dirname, `prefetch_worker${extname(__filename)}`), {
      workerData,
      name: this.name,
      ...(options.execArgv === undefined ? {} : { execArgv: [...options.execArgv] }),
    });
    this.worker.on('message', (reply: PrefetchReply) => {
      this.receive(reply);
    });
    this.worker.on('error', (error) => {
      const { code, message, stack } = error as NodeJS.ErrnoException;
      this.ended = true;
      this.fail({ code, message, stack });
    });
    this.worker.on('messageerror', (error) => {
      this.fail({ code: undefined, message: String(error), stack: undefined });
    });
    this.worker.on('exit', (code) => {
      if (this.closing !== undefined) return;
      this.ended = true;
      const message = `the thread ended with code ${String(code)}`;
      this.fail({ code: undefined, message, stack: undefined });
    });
  }

  /**
   * Starts the worker and waits until its stream stands.
   *
   * @throws ERR_ARGUMENT, or the error of the factory with the worker's name before it
   */
  static async open<T>(options: PrefetchOptions): Promise<Prefetch<T>> {
    const prefetch = new Prefetch<T>(options);
    try {
      await prefetch.until(() => prefetch.ready);
    } catch (error) {
      await prefetch.close();
      throw error;
    }
    return prefetch;
  }

  /**
   * @throws the worker's error, named; ERR_DISPOSED after `close`
   */
  async next(): Promise<T> {
    await this.until(() => this.queue.length > 0);
    const { value, state } = this.queue.shift() as { value: T; state: StreamState };
    this.position = state;
    if (this.failure === undefined) this.post({ kind: 'credit' });
    return value;
  }

  /**
   * Whether the thread itself ended (a crash, no memory left), and not the stream by an error: another
   * prefetch that restores `state()` goes on from here.
   */
  get isLost(): boolean {
    return this.ended;
  }

  /** State after the last value that `next` gave. */
  state(): StreamState {
    return this.position;
  }

  async restore(state: StreamState): Promise<void> {
    this.queue.length = 0;
    this.rejected = undefined;
    const generation = ++this.generation;
    if (this.closing === undefined) this.post({ kind: 'restore', generation, state });
    await this.until(() => this.restored === generation);
    // The await above assigns it; the compiler cannot know.
    const rejected = this.rejected as SiglipError | undefined;
    if (rejected !== undefined) throw rejected;
  }

  /** Ends the worker thread; a pending `next` rejects with ERR_DISPOSED. */
  close(): Promise<void> {
    this.closing ??= this.end();
    return this.closing;
  }

  private async end(): Promise<void> {
    this.queue.length = 0;
    this.waiting?.reject(this.disposed());
    this.waiting = undefined;
    // Ends the thread in the middle of whatever it does; its files and workers end with it.
    await this.worker.terminate();
  }

  private disposed(): SiglipError {
    return new SiglipError('ERR_DISPOSED', `Prefetch: ${this.name} must be open, got closed`);
  }

  private post(request: PrefetchRequest): void {
    this.worker.postMessage(request);
  }

  private receive(reply: PrefetchReply): void {
    switch (reply.kind) {
      case 'ready':
        this.ready = true;
        this.position = reply.state;
        break;
      case 'value':
        if (reply.generation !== this.generation) return;
        this.queue.push({ value: reply.value as T, state: reply.state });
        break;
      case 'restored':
        if (reply.generation !== this.generation) return;
        this.restored = reply.generation;
        this.position = reply.state;
        break;
      case 'rejected':
        if (reply.generation !== this.generation) return;
        this.restored = reply.generation;
        this.rejected = this.named(reply.error);
        break;
      case 'failed':
        this.fail(reply.error);
        return;
    }
    this.wake();
  }

  private named(error: ThreadError): SiglipError {
    return errorOfThread(`Prefetch: worker ${this.name} failed`, error);
  }

  private fail(error: ThreadError): void {
    this.failure ??= this.named(error);
    this.wake();
  }

  private wake(): void {
    const waiting = this.waiting;
    this.waiting = undefined;
    waiting?.resolve();
  }

  /** Waits until `reached()`, which only a message of the worker can bring about. */
  private async until(reached: () => boolean): Promise<void> {
    while (!reached()) {
      if (this.closing !== undefined) throw this.disposed();
      if (this.failure !== undefined) throw this.failure;
      if (this.waiting !== undefined) {
        throw new SiglipError(
          'ERR_ARGUMENT',
          `Prefetch: calls on ${this.name} must not overlap, got a second before the first ended`,
        );
      }
      this.worker.ref();
      await new Promise<void>((resolve, reject) => {
        this.waiting = { resolve, reject };
      });
    }
    if (this.closing !== undefined) throw this.disposed();
    this.worker.unref();
  }
}

// The queue of one kind of input on its way to the device: a bounded wait for room, preparation a few
// at a time and not far ahead of the device, then batches of what is ready.
import { SiglipError } from '../errors';
import type { AbortListeners } from './abort_listeners';

/** One input to embed. */
export interface LaneInput<Prepared> {
  /** Begins the messages of its errors. */
  readonly who: string;
  /** Called once, when its turn comes. Let go of afterwards, and with it the input. */
  readonly prepare: () => Promise<Prepared>;
  /** Memory the input keeps alive while it is queued. */
  readonly bytes: number;
  readonly normalize: boolean;
  readonly signal: AbortSignal | undefined;
}

export interface LaneOptions<Prepared> {
  /** Most inputs accepted and not yet running, and most bytes of them. */
  readonly maxQueue: number;
  readonly maxQueueBytes: number;
  readonly whenFull: 'wait' | 'reject';
  readonly maxBatch: number;
  /** Most preparations at once. */
  readonly maxPreparing: number;
  /** Inputs of one name may share a batch. */
  readonly shapeOf: (prepared: Prepared) => string;
  readonly run: (
    prepared: readonly Prepared[],
    normalize: boolean,
  ) => Promise<readonly Float32Array[]>;
}

/** Counts of one kind of input since the start, and what is there now. */
export interface LaneStats {
  /** Calls that wait for room, now. */
  readonly waiting: number;
  /** Accepted and not yet running, now. */
  readonly queued: number;
  /** Bytes of the inputs queued, now. */
  readonly queuedBytes: number;
  /** In the batch on the device, now. */
  readonly running: number;
  readonly completed: number;
  /** Ended in an error of their own or of their batch. */
  readonly failed: number;
  readonly aborted: number;
  /** Refused with ERR_BUSY. */
  readonly refused: number;
  readonly batches: number;
  /** Inputs per batch; 0 before the first. */
  readonly meanBatch: number;
  /** Sums since the start. */
  readonly milliseconds: {
    /** From acceptance to the begin of preparation, over inputs. */
    readonly queue: number;
    /** Preparation, over inputs. */
    readonly prepare: number;
    /** From being prepared to the begin of the batch, over inputs. */
    readonly ready: number;
    /** On the device, over batches. */
    readonly run: number;
  };
}

// Where an input is; one set a place.
type Place = 'waiting' | 'queued' | 'preparing' | 'ready' | 'running';

class Item<Prepared> {
  place: Place | undefined;
  /** When it came to its place. */
  since = 0;
  prepare: (() => Promise<Prepared>) | undefined;
  prepared: Prepared | undefined;
  group = '';
  unlisten: (() => void) | undefined;
  readonly promise: Promise<Float32Array>;
  resolve!: (embedding: Float32Array) => void;
  reject!: (error: unknown) => void;

  constructor(readonly input: Omit<LaneInput<Prepared>, 'prepare'>) {
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }
}

/** See the head of this file. */
export class Lane<Prepared> {
  private readonly places: Readonly<Record<Place, Set<Item<Prepared>>>> = {
    waiting: new Set(),
    queued: new Set(),
    preparing: new Set(),
    ready: new Set(),
    running: new Set(),
  };
  /** Preparations under way, those of aborted inputs included. */
  private preparations = 0;
  private queuedBytes = 0;
  private readonly counts = { completed: 0, failed: 0, aborted: 0, refused: 0 };
  private batches = 0;
  private batched = 0;
  private readonly milliseconds = { queue: 0, prepare: 0, ready: 0, run: 0 };

  /** @param changed - called when there may be something new to run */
  constructor(
    private readonly options: LaneOptions<Prepared>,
    private readonly listeners: AbortListeners,
    private readonly changed: () => void,
  ) {}

  /**
   * Accepts inputs, all or, with `whenFull: 'reject'`, none.
   *
   * @returns a promise of an embedding each
   * @throws ERR_BUSY; ERR_ARGUMENT for an input that would never fit
   */
  add(who: string, inputs: readonly LaneInput<Prepared>[]): Promise<Float32Array>[] {
    const { maxQueue, maxQueueBytes, whenFull } = this.options;
    for (const { bytes, who: entry } of inputs) {
      if (bytes <= maxQueueBytes) continue;
      throw new SiglipError(
        'ERR_ARGUMENT',
        `${entry}: input must have at most maxQueueBytes, ${String(maxQueueBytes)}, got ${String(bytes)} bytes`,
      );
    }
    if (whenFull === 'reject') {
      const bytes = inputs.reduce((sum, input) => sum + input.bytes, 0);
      const fits =
        this.queued + inputs.length <= maxQueue && this.queuedBytes + bytes <= maxQueueBytes;
      if (!fits) {
        this.counts.refused += inputs.length;
        throw new SiglipError(
          'ERR_BUSY',
          `${who}: queue must have room for ${String(inputs.length)} of ${String(bytes)} bytes, got ` +
            `${String(this.queued)} of at most ${String(maxQueue)} queued, ` +
            `${String(this.queuedBytes)} of ${String(maxQueueBytes)} bytes\nto do: try again later.`,
        );
      }
    }
    const promises = inputs.map((input) => this.accept(input));
    this.advance();
    return promises;
  }

  /** Whether a batch should begin now: full, or with nothing worth waiting for. */
  isDue(now: number, maxDelay: number): boolean {
    const due = this.dueAt(maxDelay);
    return due !== undefined && due <= now;
  }

  /** When the next batch is due as things are; undefined when nothing is ready. */
  dueAt(maxDelay: number): number | undefined {
    const [oldest] = this.places.ready;
    if (oldest === undefined) return undefined;
    const nothingComes = this.places.preparing.size === 0;
    return nothingComes || this.groupOf(oldest).length >= this.options.maxBatch
      ? oldest.since
      : oldest.since + maxDelay;
  }

  /** Runs one batch of what is ready, the oldest first. Never rejects: its inputs are told. */
  async runBatch(): Promise<void> {
    const [oldest] = this.places.ready;
    if (oldest === undefined) return;
    const group = this.groupOf(oldest);
    const batch = group.slice(0, batchSize(group.length, this.options.maxBatch));
    const begin = performance.now();
    const prepared: Prepared[] = [];
    for (const item of batch) {
      this.milliseconds.ready += begin - item.since;
      if (item.prepared !== undefined) prepared.push(item.prepared);
      item.prepared = undefined;
      this.move(item, 'running');
    }
    this.batches += 1;
    this.batched += batch.length;
    this.advance();
    try {
      const embeddings = await this.options.run(prepared, oldest.input.normalize);
      batch.forEach((item, i) => {
        this.complete(item, embeddings[i]);
      });
    } catch (error) {
      for (const item of batch) this.reject(item, error);
    }
    this.milliseconds.run += performance.now() - begin;
  }

  /** Rejects what is not running. */
  rejectQueued(reason: (who: string) => SiglipError): void {
    const { waiting, queued, preparing, ready } = this.places;
    for (const item of [...waiting, ...queued, ...preparing, ...ready]) {
      this.reject(item, reason(item.input.who));
    }
  }

  /** The promises of everything that has not ended. */
  pending(): Promise<Float32Array>[] {
    return Object.values(this.places).flatMap((items) => [...items].map(({ promise }) => promise));
  }

  stats(): LaneStats {
    const { waiting, running } = this.places;
    return {
      waiting: waiting.size,
      queued: this.queued,
      queuedBytes: this.queuedBytes,
      running: running.size,
      ...this.counts,
      batches: this.batches,
      meanBatch: this.batches === 0 ? 0 : this.batched / this.batches,
      milliseconds: { ...this.milliseconds },
    };
  }

  private get queued(): number {
    const { queued, preparing, ready } = this.places;
    return queued.size + preparing.size + ready.size;
  }

  private accept({ prepare, ...input }: LaneInput<Prepared>): Promise<Float32Array> {
    const item = new Item<Prepared>(input);
    item.prepare = prepare;
    this.move(item, 'waiting');
    const { signal, who } = input;
    if (signal !== undefined) {
      const abort = (): void => {
        this.reject(item, abortError(who, signal));
        this.advance();
        this.changed();
      };
      if (signal.aborted) abort();
      else item.unlisten = this.listeners.add(signal, abort);
    }
    return item.promise;
  }

  // Lets in what there is room for, in order of arrival, and prepares what is next.
  private advance(): void {
    const { maxQueue, maxQueueBytes, maxBatch, maxPreparing } = this.options;
    const { waiting, queued, preparing, ready } = this.places;
    for (const item of waiting) {
      const { bytes } = item.input;
      if (this.queued >= maxQueue || this.queuedBytes + bytes > maxQueueBytes) break;
      this.queuedBytes += bytes;
      this.move(item, 'queued');
    }
    // Twice a batch is enough to keep the device busy, and bounds the memory of prepared inputs.
    for (const item of queued) {
      if (this.preparations >= maxPreparing) break;
      if (preparing.size + ready.size >= 2 * maxBatch) break;
      void this.prepare(item);
    }
  }

  private async prepare(item: Item<Prepared>): Promise<void> {
    const begin = performance.now();
    this.milliseconds.queue += begin - item.since;
    this.move(item, 'preparing');
    const { prepare } = item;
    item.prepare = undefined;
    this.preparations += 1;
    try {
      const prepared = await prepare?.();
      // Unless it was aborted meanwhile.
      if (item.place === 'preparing' && prepared !== undefined) {
        item.prepared = prepared;
        item.group = `${String(item.input.normalize)} ${this.options.shapeOf(prepared)}`;
        this.move(item, 'ready');
      }
    } catch (error) {
      this.reject(item, error);
    }
    this.preparations -= 1;
    this.milliseconds.prepare += performance.now() - begin;
    this.advance();
    this.changed();
  }

  private groupOf(oldest: Item<Prepared>): Item<Prepared>[] {
    return [...this.places.ready].filter(({ group }) => group === oldest.group);
  }

  private move(item: Item<Prepared>, to: Place): void {
    this.leave(item, to === 'running');
    item.place = to;
    item.since = performance.now();
    this.places[to].add(item);
  }

  // Takes an item from its place; when it leaves the queue altogether, its bytes go, too.
  private leave(item: Item<Prepared>, forGood: boolean): void {
    const { place } = item;
    if (place === undefined) return;
    this.places[place].delete(item);
    const counted = place === 'queued' || place === 'preparing' || place === 'ready';
    if (counted && forGood) this.queuedBytes -= item.input.bytes;
  }

  private complete(item: Item<Prepared>, embedding: Float32Array): void {
    if (this.end(item)) {
      this.counts.completed += 1;
      item.resolve(embedding);
    }
  }

  private reject(item: Item<Prepared>, error: unknown): void {
    if (!this.end(item)) return;
    const aborted = item.input.signal?.aborted === true;
    this.counts[aborted ? 'aborted' : 'failed'] += 1;
    item.reject(error);
  }

  // False when it had ended before.
  private end(item: Item<Prepared>): boolean {
    if (item.place === undefined) return false;
    this.leave(item, true);
    item.place = undefined;
    item.prepare = undefined;
    item.prepared = undefined;
    item.unlisten?.();
    item.unlisten = undefined;
    return true;
  }
}

/**
 * Inputs of the next batch when so many are ready: all up to a power of two, or the most allowed. A
 * program is compiled per size, so that few sizes mean few programs; the rest goes into the next
 * batch, with what arrives meanwhile.
 */
export function batchSize(ready: number, maxBatch: number): number {
  return ready >= maxBatch ? maxBatch : 2 ** Math.floor(Math.log2(ready));
}

function abortError(who: string, signal: AbortSignal): SiglipError {
  return new SiglipError('ERR_ABORTED', `${who}: stopped by its signal`, { cause: signal.reason });
}

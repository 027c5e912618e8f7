// Work done ahead of whoever reads its results: in order, so many at a time, so many waiting.

export interface AheadOptions {
  /** Calls that run at once. */
  readonly concurrency: number;
  /** Results that may wait or be in the making. */
  readonly ahead: number;
}

/**
 * Maps a sequence by an asynchronous function whose calls overlap. Results come in the order of the
 * sequence whatever order the calls end in; the sequence is read no further than `ahead` items beyond
 * the result last taken, and closed when the reader stops.
 */
export async function* mapAhead<T, R>(
  items: AsyncIterable<T>,
  work: (item: T) => Promise<R>,
  { concurrency, ahead }: AheadOptions,
): AsyncGenerator<R, void, undefined> {
  const source = items[Symbol.asyncIterator]();
  const queue: Promise<R>[] = [];
  let running = 0;
  let ended = false;
  let stopped = false;
  let failure: { readonly error: unknown } | undefined;
  let wake: (() => void) | undefined;
  const changed = (): void => {
    wake?.();
    wake = undefined;
  };
  const change = (): Promise<void> =>
    new Promise((resolve) => {
      wake = resolve;
    });
  // Reads the sequence in the background: the one place that calls next().
  let room: (() => void) | undefined;
  const pump = async (): Promise<void> => {
    try {
      for (;;) {
        while (!stopped && (running >= concurrency || queue.length >= ahead)) {
          await new Promise<void>((resolve) => {
            room = resolve;
          });
        }
        if (stopped) return;
        const item = await source.next();
        if (item.done === true) return;
        running++;
        const result = work(item.value);
        const settled = (): void => {
          running--;
          room?.();
        };
        result.then(settled, settled);
        queue.push(result);
        changed();
      }
    } catch (error) {
      failure = { error };
    } finally {
      ended = true;
      changed();
    }
  };
  const pumping = pump();
  try {
    for (;;) {
      const result = queue.shift();
      if (result !== undefined) {
        room?.();
        yield await result;
      } else if (!ended) {
        await change();
      } else {
        if (failure !== undefined) throw failure.error;
        return;
      }
    }
  } finally {
    stopped = true;
    room?.();
    await pumping;
    await Promise.allSettled(queue);
    await source.return?.();
  }
}

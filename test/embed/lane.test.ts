// The queue of an Embedder with a device and a preparation that the test opens and closes by hand, so
// that every order of events can be made to happen.
import { SiglipError } from '../../lib/errors';
import { AbortListeners } from '../../lib/embed/abort_listeners';
import type { LaneOptions } from '../../lib/embed/lane';
import { Lane, batchSize } from '../../lib/embed/lane';

interface Gate {
  readonly promise: Promise<void>;
  open(): void;
}

function gate(): Gate {
  let open = (): void => undefined;
  const promise = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { promise, open };
}

const turn = (): Promise<void> =>
  new Promise((resolve) => {
    setImmediate(resolve);
  });

class Bench {
  readonly batches: (readonly string[])[] = [];
  readonly prepared: string[] = [];
  /** Closed preparations by name. */
  readonly closed = new Map<string, Gate>();
  readonly lane: Lane<string>;

  constructor(options: Partial<LaneOptions<string>> = {}) {
    this.lane = new Lane<string>(
      {
        maxQueue: 100,
        maxQueueBytes: 1000,
        whenFull: 'wait',
        maxBatch: 4,
        maxPreparing: 8,
        shapeOf: (name) => name[0],
        run: (names) => {
          this.batches.push(names);
          return Promise.resolve(names.map((name) => Float32Array.of(Number(name.slice(1)))));
        },
        ...options,
      },
      new AbortListeners(),
      () => undefined,
    );
  }

  add(
    names: readonly string[],
    more: { signal?: AbortSignal; bytes?: number } = {},
  ): Promise<string>[] {
    const promises = this.lane.add(
      'test',
      names.map((name) => ({
        who: name,
        normalize: true,
        bytes: more.bytes ?? 1,
        signal: more.signal,
        prepare: async () => {
          this.prepared.push(name);
          await this.closed.get(name)?.promise;
          if (name.endsWith('!')) throw new SiglipError('ERR_IMAGE', `${name}: broken`);
          return name;
        },
      })),
    );
    return promises.map((promise) =>
      promise.then(
        ([value]) => String(value),
        (error: unknown) => (error as SiglipError).code,
      ),
    );
  }

  async run(): Promise<void> {
    await turn();
    while (this.lane.isDue(Infinity, 0)) {
      await this.lane.runBatch();
      await turn();
    }
  }
}

test('sizes are powers of two and the maximum, so that few programs are compiled', () => {
  const sizes = (max: number): number[] =>
    [1, 2, 3, 4, 7, 8, 11, 12, 13].map((n) => batchSize(n, max));
  expect(sizes(12)).toEqual([1, 2, 2, 4, 4, 8, 8, 12, 12]);
  expect(sizes(1)).toEqual(Array(9).fill(1));
});

test('inputs of one shape go together, the oldest first, and every one gets its own result', async () => {
  const bench = new Bench();
  const results = bench.add(['a1', 'b2', 'a3', 'b4', 'b5', 'a6']);
  await bench.run();
  expect(bench.batches).toEqual([['a1', 'a3'], ['b2', 'b4'], ['b5'], ['a6']]);
  expect(await Promise.all(results)).toEqual(['1', '2', '3', '4', '5', '6']);
});

test('an input that cannot be prepared fails alone', async () => {
  const bench = new Bench();
  const results = bench.add(['a1', 'a2!', 'a3']);
  await bench.run();
  expect(await Promise.all(results)).toEqual(['1', 'ERR_IMAGE', '3']);
  expect(bench.batches).toEqual([['a1', 'a3']]);
  expect(bench.lane.stats()).toMatchObject({ completed: 2, failed: 1, batches: 1, queuedBytes: 0 });
});

test('a batch that fails is told to all of it, and the next one runs', async () => {
  let broken = true;
  const bench = new Bench({
    run: (names) =>
      broken
        ? Promise.reject(new SiglipError('ERR_OUT_OF_MEMORY', 'no room'))
        : Promise.resolve(names.map(() => Float32Array.of(7))),
  });
  const first = bench.add(['a1', 'a2']);
  await bench.run();
  expect(await Promise.all(first)).toEqual(['ERR_OUT_OF_MEMORY', 'ERR_OUT_OF_MEMORY']);
  broken = false;
  const second = bench.add(['a3']);
  await bench.run();
  expect(await Promise.all(second)).toEqual(['7']);
});

describe('a batch is due', () => {
  test('at once when nothing is being prepared, or when it is full', async () => {
    const bench = new Bench();
    void bench.add(['a1']);
    await turn();
    expect(bench.lane.isDue(performance.now(), 60_000)).toBe(true);
    const slow = gate();
    bench.closed.set('a5', slow);
    void bench.add(['a5', 'a2', 'a3', 'a4']);
    await turn();
    expect(bench.lane.isDue(performance.now(), 60_000)).toBe(true);
    slow.open();
  });

  test('not while others are being prepared, until the delay is over', async () => {
    const bench = new Bench();
    const slow = gate();
    bench.closed.set('a2', slow);
    void bench.add(['a1', 'a2']);
    await turn();
    expect(bench.lane.isDue(performance.now(), 60_000)).toBe(false);
    expect(bench.lane.isDue(performance.now() + 60_000, 60_000)).toBe(true);
    expect(bench.lane.isDue(performance.now(), 0)).toBe(true);
    slow.open();
    await turn();
    expect(bench.lane.isDue(performance.now(), 60_000)).toBe(true);
  });

  test('never when nothing is ready', () => {
    expect(new Bench().lane.dueAt(0)).toBeUndefined();
  });
});

describe('a full queue', () => {
  test('lets calls wait for their turn', async () => {
    const bench = new Bench({ maxQueue: 3 });
    const results = bench.add(['a1', 'a2', 'a3', 'a4', 'a5']);
    expect(bench.lane.stats()).toMatchObject({ queued: 3, waiting: 2 });
    await bench.run();
    expect(await Promise.all(results)).toEqual(['1', '2', '3', '4', '5']);
    expect(bench.lane.stats()).toMatchObject({ queued: 0, waiting: 0, running: 0, completed: 5 });
  });

  test('counts bytes, too, and passes nobody over', async () => {
    const bench = new Bench({ maxQueueBytes: 10 });
    const [first] = bench.add(['a1'], { bytes: 6 });
    const [second] = bench.add(['a2'], { bytes: 6 });
    const [third] = bench.add(['a3'], { bytes: 1 });
    expect(bench.lane.stats()).toMatchObject({ queued: 1, waiting: 2, queuedBytes: 6 });
    await bench.run();
    expect(await Promise.all([first, second, third])).toEqual(['1', '2', '3']);
    expect(bench.batches).toEqual([['a1'], ['a2', 'a3']]);
    expect(() => bench.add(['a4'], { bytes: 11 })).toThrow(/at most maxQueueBytes, 10, got 11/);
  });

  test('refuses whole calls when told to, with ERR_BUSY', async () => {
    const bench = new Bench({ maxQueue: 3, whenFull: 'reject' });
    const results = bench.add(['a1', 'a2']);
    expect(() => bench.add(['a3', 'a4'])).toThrow(/^test: queue must have room for 2 of 2 bytes/u);
    results.push(...bench.add(['a5']));
    expect(bench.lane.stats()).toMatchObject({ queued: 3, refused: 2 });
    await bench.run();
    expect(await Promise.all(results)).toEqual(['1', '2', '5']);
  });
});

describe('an aborted input', () => {
  test('leaves the queue at once, wherever it is, and is not computed', async () => {
    const bench = new Bench({ maxQueue: 3, maxPreparing: 1 });
    const slow = gate();
    bench.closed.set('a2', slow);
    const stop = new AbortController();
    const [kept] = bench.add(['a1']);
    await turn();
    const dropped = bench.add(['a2', 'a3', 'a4'], { signal: stop.signal });
    const [last] = bench.add(['a5']);
    await turn();
    expect(bench.lane.stats()).toMatchObject({ queued: 3, waiting: 2 });
    stop.abort();
    expect(await Promise.all(dropped)).toEqual(['ERR_ABORTED', 'ERR_ABORTED', 'ERR_ABORTED']);
    expect(bench.lane.stats()).toMatchObject({ queued: 2, waiting: 0, aborted: 3, queuedBytes: 2 });
    slow.open();
    await bench.run();
    expect(await Promise.all([kept, last])).toEqual(['1', '5']);
    expect(bench.batches.flat()).toEqual(['a1', 'a5']);
    expect(bench.prepared).toEqual(['a1', 'a2', 'a5']);
  });

  test('ends at once while its batch runs, which comes to its end', async () => {
    const device = gate();
    const bench = new Bench({
      run: async (names) => {
        await device.promise;
        return names.map((name) => Float32Array.of(Number(name.slice(1))));
      },
    });
    const stop = new AbortController();
    const [dropped] = bench.add(['a1'], { signal: stop.signal });
    const [kept] = bench.add(['a2']);
    await turn();
    const batch = bench.lane.runBatch();
    expect(bench.lane.stats().running).toBe(2);
    stop.abort();
    expect(await dropped).toBe('ERR_ABORTED');
    device.open();
    await batch;
    expect(await kept).toBe('2');
  });
});

test('preparation runs a few at a time and at most two batches ahead', async () => {
  let now = 0;
  let most = 0;
  const bench = new Bench({ maxPreparing: 2, maxBatch: 3 });
  const results = bench.lane.add(
    'test',
    Array.from({ length: 20 }, (_, i) => ({
      who: String(i),
      normalize: true,
      bytes: 0,
      signal: undefined,
      prepare: async () => {
        most = Math.max(most, ++now);
        await turn();
        now -= 1;
        bench.prepared.push(String(i));
        return `a${String(i)}`;
      },
    })),
  );
  for (let i = 0; i < 30; i++) await turn();
  expect([bench.prepared.length, most]).toEqual([6, 2]);
  while (bench.lane.stats().completed < 20) {
    await bench.lane.runBatch();
    for (let i = 0; i < 10; i++) await turn();
  }
  expect((await Promise.all(results)).map(([x]) => x)).toEqual(
    Array.from({ length: 20 }, (_, i) => i),
  );
  expect(most).toBe(2);
});

test('one listener per signal, gone with the last call', () => {
  const listeners = new AbortListeners();
  const stop = new AbortController();
  const calls: number[] = [];
  const added = jest.spyOn(stop.signal, 'addEventListener');
  const removed = jest.spyOn(stop.signal, 'removeEventListener');
  const undo = Array.from({ length: 50 }, (_, i) =>
    listeners.add(stop.signal, () => calls.push(i)),
  );
  expect(added).toHaveBeenCalledTimes(1);
  undo.forEach((one) => {
    one();
  });
  expect(removed).toHaveBeenCalledTimes(1);
  listeners.add(stop.signal, () => calls.push(1));
  listeners.add(stop.signal, () => calls.push(2))();
  stop.abort();
  expect(calls).toEqual([1]);
});

import { join } from 'node:path';
import { BatchStream, pairBatchesModule, type Batch } from '../../lib/data/batches';
import { PairSource, pairTable } from '../../lib/data/pair_table';
import { Prefetch, type PrefetchOptions } from '../../lib/data/prefetch';

const execArgv = ['--require', join(__dirname, '..', 'typescript.js')];

interface Counted {
  readonly count: number;
  readonly data: Float32Array;
}

function openCounter(
  input: object,
  options: Partial<PrefetchOptions> = {},
): Promise<Prefetch<Counted>> {
  const module = join(__dirname, 'streams.js');
  return Prefetch.open({ module, factory: 'openCounter', input, execArgv, ...options });
}

async function take(stream: Prefetch<Counted>, count: number): Promise<number[]> {
  const values: number[] = [];
  while (values.length < count) values.push((await stream.next()).count);
  return values;
}

const pause = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, milliseconds));

describe('Prefetch', () => {
  test('gives the values of the stream in order, whatever the timing', async () => {
    const stream = await openCounter({ waits: [3, 0, 0, 7] });
    const values: number[] = [];
    for (let i = 0; i < 12; i++) {
      const { count, data } = await stream.next();
      expect([...data]).toEqual([count + 1, count + 1.5]);
      values.push(count);
      if (i % 5 === 0) await pause(10);
    }
    expect(values).toEqual([...Array(12).keys()]);
    await stream.close();
  });

  test('stops when enough values wait, and goes on as they are read', async () => {
    const notes = new Int32Array(new SharedArrayBuffer(4));
    const stream = await openCounter({ notes }, { ahead: 3 });
    await pause(100);
    expect(notes[0]).toBe(3);
    await take(stream, 2);
    await pause(100);
    expect(notes[0]).toBe(5);
    await stream.close();
  });

  test('its state is that of the last value read, and restore continues there', async () => {
    const stream = await openCounter({});
    expect(stream.state()).toEqual({ count: 0 });
    await take(stream, 5);
    const state = stream.state();
    expect(state).toEqual({ count: 5 });
    expect(await take(stream, 3)).toEqual([5, 6, 7]);
    await stream.restore(state);
    expect(stream.state()).toEqual(state);
    expect(await take(stream, 20)).toEqual(Array.from({ length: 20 }, (_, i) => i + 5));
    await stream.close();
  });

  test('a state the stream refuses is an error of restore', async () => {
    const stream = await openCounter({});
    await expect(stream.restore('elsewhere')).rejects.toMatchObject({
      message: 'Prefetch: worker openCounter failed: no such state "elsewhere"',
    });
    await stream.restore({ count: 2 });
    expect(await take(stream, 2)).toEqual([2, 3]);
    await stream.close();
  });

  test('serves what was finished before a failure, then the failure with the name', async () => {
    const stream = await openCounter({ failAt: 2 }, { name: 'well' });
    expect(await take(stream, 2)).toEqual([0, 1]);
    const failure = { code: 'ERR_DATA', message: 'Prefetch: worker well failed: the well is dry' };
    await expect(stream.next()).rejects.toMatchObject(failure);
    await expect(stream.next()).rejects.toMatchObject(failure);
    await stream.close();
  });

  test('a thread that ends by itself is a failure', async () => {
    const stream = await openCounter({ exitAt: 1 });
    expect(await take(stream, 1)).toEqual([0]);
    await expect(stream.next()).rejects.toThrow(
      'Prefetch: worker openCounter failed: the thread ended with code 3',
    );
    await stream.close();
  });

  test('a factory that fails, or is not there, rejects open', async () => {
    await expect(openCounter({}, { factory: 'openNothing' })).rejects.toThrow(
      'Prefetch: worker openNothing failed: nothing to open',
    );
    await expect(openCounter({}, { factory: 'openNobody' })).rejects.toThrow(
      /must export the function openNobody, got undefined/,
    );
    await expect(openCounter({}, { ahead: 0 })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' });
  });

  test('close ends it: what waits and what comes later is an error', async () => {
    const stream = await openCounter({ waits: [10_000] });
    const pending = expect(stream.next()).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    await stream.close();
    await pending;
    await stream.close();
    await expect(stream.next()).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    await expect(stream.restore({ count: 0 })).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });

  test('two calls at once are an error of the second', async () => {
    const stream = await openCounter({ waits: [20] });
    const first = stream.next();
    await expect(stream.next()).rejects.toMatchObject({ code: 'ERR_ARGUMENT' });
    expect((await first).count).toBe(0);
    await stream.close();
  });

  test('batches of a table come out as they do without a worker', async () => {
    const table = pairTable({
      name: 'numbers',
      size: 4,
      pixels: Uint8Array.from({ length: 6 * 48 }, (_, i) => (i * 37) % 256),
      concepts: [0, 1, 2, 0, 1, 2],
      texts: [
        [{ text: 'nil', weight: 1 }],
        [{ text: 'one', weight: 1 }],
        [{ text: 'two', weight: 1 }],
      ],
      tokenize: (texts) => Int32Array.from(texts.flatMap((text) => [text.charCodeAt(0), 1])),
    });
    const options = { batch: 2, seed: 5, augment: { rotate: 30, gain: 0.5 } };
    const plain = new BatchStream(new PairSource(table), options);
    const ahead = await Prefetch.open<Batch>({
      module: pairBatchesModule,
      factory: 'openPairBatches',
      input: { table, options },
      execArgv,
    });
    for (let step = 0; step < 8; step++) {
      const [expected, batch] = [await plain.next(), await ahead.next()];
      // Plain values: a worker's typed arrays are of another realm, which Jest tells apart.
      const values = ({ images, tokens, concepts, ...rest }: Batch): object => ({
        ...rest,
        images: [...images],
        tokens: [...(tokens ?? [])],
        concepts: [...concepts],
      });
      expect(values(batch)).toEqual(values(expected));
      expect(ahead.state()).toEqual(plain.state());
    }
    await ahead.close();
  });
});

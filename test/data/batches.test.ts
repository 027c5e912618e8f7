import { Philox4x32 } from '../../lib/array/random';
import { BatchStream, type Batch } from '../../lib/data/batches';
import { PairSource, pairTable, type PairTable } from '../../lib/data/pair_table';
import type { Source } from '../../lib/data/source';
import type { StreamState } from '../../lib/data/stream';

/** Six images of 4 × 4 pixels of three concepts; image i is even grey 40 · i. */
function table(): PairTable {
  return pairTable({
    name: 'greys',
    size: 4,
    pixels: Uint8Array.from({ length: 6 * 48 }, (_, i) => Math.floor(i / 48) * 40),
    concepts: [0, 1, 2, 0, 1, 2],
    texts: [
      [
        { text: 'often', weight: 3 },
        { text: 'rarely', weight: 1 },
      ],
      [{ text: 'one', weight: 1 }],
      [{ text: 'one', weight: 0.5 }],
    ],
    tokenize: (texts) => Int32Array.from(texts.flatMap((text) => [text.length, 1, 0])),
  });
}

async function take(stream: BatchStream, count: number): Promise<Batch[]> {
  const batches: Batch[] = [];
  while (batches.length < count) batches.push(await stream.next());
  return batches;
}

describe('pairTable', () => {
  test('stores equal texts once, on memory that threads share', () => {
    const { texts, starts, candidates, pixels, tokens } = table();
    expect(texts).toEqual(['often', 'rarely', 'one']);
    expect([...starts]).toEqual([0, 2, 3, 4]);
    expect([...candidates]).toEqual([0, 1, 2, 2]);
    expect(pixels.buffer).toBeInstanceOf(SharedArrayBuffer);
    expect(tokens?.length).toBe(9);
  });

  test('refuses parts that do not fit', () => {
    const parts = { name: 'x', size: 2, pixels: new Uint8Array(12), concepts: [0] };
    expect(() => pairTable({ ...parts, size: 3, texts: [] })).toThrow(
      'pairTable: pixels of x must be (1, 3, 3, 3), 27 bytes, got 12',
    );
    expect(() => pairTable({ ...parts, texts: [[]] })).toThrow(
      'pairTable: concept 0 of x must have a text, got none',
    );
    expect(() => pairTable({ ...parts, texts: [[{ text: 'a', weight: 0 }]] })).toThrow(
      expect.objectContaining({ code: 'ERR_DATA' }) as Error,
    );
    expect(() =>
      pairTable({
        ...parts,
        texts: [[{ text: 'a', weight: 1 }], [{ text: 'b', weight: 1 }]],
        tokenize: () => new Int32Array(3),
      }),
    ).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }) as Error);
  });

  test('a text is drawn as often as its weight says', () => {
    const source = new PairSource(table());
    const random = new Philox4x32(3);
    let often = 0;
    for (let i = 0; i < 2000; i++) if (source.read(0, random).text === 'often') often++;
    expect(often / 2000).toBeCloseTo(0.75, 1);
    expect(() => source.read(6, random)).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT' }) as Error,
    );
  });
});

describe('BatchStream', () => {
  test('rows belong together and concepts differ', async () => {
    const stream = new BatchStream(new PairSource(table()), { batch: 3, seed: 1 });
    for (const [step, batch] of (await take(stream, 10)).entries()) {
      expect(batch.step).toBe(step);
      expect([...batch.concepts].sort()).toEqual([0, 1, 2]);
      for (let row = 0; row < 3; row++) {
        const concept = batch.concepts[row];
        expect([concept * 40, (concept + 3) * 40]).toContain(batch.images[row * 48]);
        expect(concept === 0 ? ['often', 'rarely'] : ['one']).toContain(batch.texts[row]);
        expect([...(batch.tokens ?? []).slice(row * 3, row * 3 + 3)]).toEqual([
          batch.texts[row].length,
          1,
          0,
        ]);
      }
    }
  });

  test('is a function of the seed, and continues from a state in the middle of an epoch', async () => {
    const make = (seed = 1): BatchStream =>
      new BatchStream(new PairSource(table()), {
        batch: 2,
        seed,
        size: 8,
        augment: { rotate: 90, shift: 0.2, gain: 0.5 },
      });
    const stream = make();
    await take(stream, 5);
    const state: unknown = JSON.parse(JSON.stringify(stream.state()));
    const rest = await take(stream, 5);
    expect((await take(make(), 10)).slice(5)).toEqual(rest);
    const resumed = make();
    await resumed.restore(state as ReturnType<typeof stream.state>);
    expect(await take(resumed, 5)).toEqual(rest);
    expect((await take(make(2), 10)).slice(5)).not.toEqual(rest);
    expect(rest[0].images.length).toBe(2 * 8 * 8 * 3);
    await stream.close();
  });

  test('foreign states and options out of range are refused', async () => {
    const source = new PairSource(table());
    const stream = new BatchStream(source, { batch: 2 });
    const states: StreamState[] = [
      null,
      { step: 1 },
      { step: -1, epoch: 0, position: 0, deferred: [] },
    ];
    for (const state of states) {
      await expect(stream.restore(state)).rejects.toMatchObject({ code: 'ERR_DATA' });
    }
    expect(() => new BatchStream(source, { batch: 4 })).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT' }) as Error,
    );
    expect(() => new BatchStream(source, { batch: 1, augment: { shift: -1 } })).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT' }) as Error,
    );
    expect(() => new BatchStream(source, { batch: 1, size: 0 })).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT' }) as Error,
    );
  });

  test('a source that answers later gives the same batches', async () => {
    const inner = new PairSource(table());
    const later: Source = {
      name: 'later',
      length: inner.length,
      concepts: inner.concepts,
      async read(index, random) {
        await new Promise((resolve) => setTimeout(resolve, 5 - index));
        return inner.read(index, random);
      },
    };
    const options = { batch: 3, seed: 4, augment: { gain: 0.4 } };
    expect(await take(new BatchStream(later, options), 4)).toEqual(
      await take(new BatchStream(inner, options), 4),
    );
  });
});

describe('rows of a batch', () => {
  const options = { batch: 3, seed: 4, augment: { rotate: 10, mirror: 0.5 } };
  const stream = (rows?: [number, number]): BatchStream =>
    new BatchStream(new PairSource(table()), { ...options, rows });

  test('parts are those of the whole, and so are their states', async () => {
    const [whole, head, tail] = [stream(), stream([0, 1]), stream([1, 3])];
    for (let step = 0; step < 4; step++) {
      const [all, ...parts] = await Promise.all([whole.next(), head.next(), tail.next()]);
      expect(parts.flatMap(({ images }) => [...images])).toEqual([...all.images]);
      expect(parts.flatMap(({ texts }) => texts)).toEqual(all.texts);
      expect(parts.flatMap(({ tokens }) => [...(tokens ?? [])])).toEqual([...(all.tokens ?? [])]);
      expect(head.state()).toEqual(whole.state());
      expect(tail.state()).toEqual(whole.state());
    }
  });

  test.each([[[0, 4]], [[2, 2]], [[-1, 2]]] as [[number, number]][])(
    '%j is no range of a batch of 3',
    (rows) => {
      expect(() => stream(rows)).toThrow(/rows must be a range of a batch of 3/);
    },
  );
});

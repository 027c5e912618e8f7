import { Philox4x32 } from '../../lib/array/random';
import type { Batch, Stream, StreamState, WholeBatch } from '../../lib/data';
import { NaflexBatchStream, NaflexLengths } from '../../lib/data';
import type { RgbImage } from '../../lib/image';
import { naflexGrid, NaflexProcessor } from '../../lib/image';
import { defaultPreprocessor, type NaflexPreprocessor } from '../../lib/weights';
import { failure } from '../failure';
import { naflexConfig } from '../nn/towers';

const processor = new NaflexProcessor(defaultPreprocessor(naflexConfig) as NaflexPreprocessor);

const sizes = [
  [30, 20],
  [9, 60],
  [17, 17],
  [64, 5],
];

// Batches of four pictures in their own shapes, or of squares.
class Pictures implements Stream<WholeBatch> {
  private position = 0;

  constructor(private readonly square = false) {}

  next(): Promise<WholeBatch> {
    const first = 4 * this.position++;
    const random = new Philox4x32(first);
    const [size] = sizes[2];
    const shapes = this.square ? Array.from(sizes, () => sizes[2]) : sizes;
    const originals = shapes.map(([width, height]): RgbImage => {
      const data = Uint8Array.from({ length: 3 * width * height }, () => random.integer(256));
      return { data, width, height, channels: 3 };
    });
    const texts = sizes.map((_, i) => String(first + i));
    const tokens = Int32Array.from({ length: 8 }, (_, i) => 2 * first + i);
    const images = Uint8Array.from(originals.flatMap(({ data }) => [...data]));
    return Promise.resolve(
      this.square
        ? { images, size, texts, tokens, concepts: Int32Array.from(texts, Number) }
        : { images: new Uint8Array(), size: 0, texts, tokens, originals },
    );
  }

  state(): number {
    return this.position;
  }

  restore(state: StreamState): Promise<void> {
    this.position = state as number;
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

describe('NaflexLengths', () => {
  test('every length sees the same number of examples, and half batches are drawn twice as often', () => {
    const lengths = new NaflexLengths({ batch: 32, seed: 3 });
    expect(lengths.forms.map(({ batch }) => batch)).toEqual([32, 32, 32, 32, 16]);
    const examples = new Map<number, number>();
    let advanced = 0;
    const steps = 60000;
    for (let step = 0; step < steps; step++) {
      const { length, batch } = lengths.at(step);
      examples.set(length, (examples.get(length) ?? 0) + batch);
      advanced += batch / 32;
    }
    // A fifth of the full batches' worth each; a third of the steps are half.
    expect(Math.abs(advanced / steps - 5 / 6)).toBeLessThan(0.005);
    for (const seen of examples.values()) {
      expect(Math.abs(seen / (32 * advanced) - 0.2)).toBeLessThan(0.006);
    }
    expect(examples.size).toBe(5);
  });

  test('is a function of seed and step alone', () => {
    const draw = (seed: number, order: readonly number[]): number[] => {
      const lengths = new NaflexLengths({ batch: 2, seed });
      const drawn = new Map(order.map((step) => [step, lengths.at(step).length]));
      return order.map((_, step) => drawn.get(step) ?? 0);
    };
    const forwards = Array.from({ length: 50 }, (_, i) => i);
    expect(draw(1, [...forwards].reverse())).toEqual(draw(1, forwards));
    expect(draw(2, forwards)).not.toEqual(draw(1, forwards));
  });

  test.each([
    [{ batch: 3 }, 'batch must be a positive even number, got 3'],
    [{ batch: 2, lengths: [] }, 'lengths must be different positive integers, got []'],
    [{ batch: 2, lengths: [9, 9] }, 'got [9, 9]'],
    [{ batch: 0, lengths: [9] }, 'batch must be a positive integer, got 0'],
  ])('%j is refused', (options, message) => {
    expect(() => new NaflexLengths(options)).toThrow(message);
  });
});

describe('NaflexBatchStream', () => {
  const options = { batch: 4, lengths: [9, 25], halved: [25], seed: 1 };
  const open = (square = false): NaflexBatchStream =>
    new NaflexBatchStream(new Pictures(square), processor, new NaflexLengths(options));

  async function take(stream: NaflexBatchStream, count: number): Promise<Batch[]> {
    const batches: Batch[] = [];
    for (let i = 0; i < count; i++) batches.push(await stream.next());
    return batches;
  }

  test.each([false, true])(
    'packs every image as the processor prepares it alone',
    async (square) => {
      const lengths = new NaflexLengths(options);
      const batches = await take(open(square), 9);
      expect(new Set(batches.map(({ packed }) => packed?.length)).size).toBe(2);
      for (const { step, packed, tokens, texts, concepts } of batches) {
        const form = lengths.at(step);
        expect(packed?.length).toBe(form.length);
        expect(packed?.patches).toHaveLength(form.rows * 48);
        expect(texts).toHaveLength(form.batch);
        expect([...(tokens ?? [])]).toEqual(
          texts.flatMap((t) => [2 * Number(t), 2 * Number(t) + 1]),
        );
        expect(new Set(concepts).size).toBe(form.batch);
        let at = 0;
        for (const [row, text] of texts.entries()) {
          const source = new Pictures(square);
          await source.restore(Math.floor(Number(text) / 4));
          const { originals, images, size } = await source.next();
          const which = Number(text) % 4;
          const data = images.subarray(which * 3 * size * size, (which + 1) * 3 * size * size);
          const image = originals?.[which] ?? { data, width: size, height: size, channels: 3 };
          const alone = await processor.prepare(image, { maxPatches: form.length });
          const grid = naflexGrid(image.height, image.width, 4, form.length);
          expect(packed?.shapes.slice(2 * row, 2 * row + 2)).toEqual(
            Int32Array.of(grid.rows, grid.columns),
          );
          expect(packed?.segments[row]).toBe(at / 48);
          expect(packed?.patches.slice(at, at + alone.values.length)).toEqual(alone.values);
          at += alone.values.length;
        }
        expect(packed?.patches.slice(at).every((value) => value === 0)).toBe(true);
      }
    },
  );

  test('uses every pair once: the other half of a batch waits for the next half batch', async () => {
    const seen = (await take(open(), 40)).flatMap(({ texts }) => texts);
    expect(new Set(seen).size).toBe(seen.length);
    // What is missing among those before the last is at most the half that waits.
    expect(Math.max(...seen.map(Number)) + 1 - seen.length).toBeLessThanOrEqual(2);
  });

  test('continues from its state, also while a half waits', async () => {
    const whole = await take(open(), 12);
    let halves = 0;
    for (let cut = 1; cut < 11; cut++) {
      const first = open();
      await take(first, cut);
      const state = JSON.parse(JSON.stringify(first.state())) as object;
      if ('waiting' in state) halves++;
      const second = open();
      await second.restore(state as StreamState);
      expect(await take(second, 12 - cut)).toEqual(whole.slice(cut));
      await second.close();
    }
    expect(halves).toBeGreaterThan(0);
    expect(halves).toBeLessThan(10);
  });

  test('a state of something else, and batches of another size, are refused', async () => {
    expect(await failure(open().restore(null))).toMatchObject({ code: 'ERR_DATA' });
    const lengths = new NaflexLengths({ ...options, batch: 6 });
    const wrong = new NaflexBatchStream(new Pictures(), processor, lengths);
    await expect(wrong.next()).rejects.toThrow("the 6 pairs of the lengths' full batch, got 4");
  });
});

test('rows that do not suffice are refused, and a damaged image is named', async () => {
  const { originals: [image] = [] } = await new Pictures().next();
  await expect(processor.pack([image, image], 20, { maxPatches: 16 })).rejects.toThrow(
    /rows must be at least the \d+ patches of the images, got 20/,
  );
  await expect(processor.pack([image, new Uint8Array(9)], 99)).rejects.toThrow(/^image 1: /);
});

import { Philox4x32 } from '../../lib/array/random';
import type { Batch, NaflexSource } from '../../lib/data';
import { NaflexBatchStream, NaflexLengths } from '../../lib/data';
import type { RawImage } from '../../lib/image';
import { naflexGrid, NaflexProcessor } from '../../lib/image';
import { defaultPreprocessor, type NaflexPreprocessor } from '../../lib/weights';
import { failure } from '../failure';
import { naflexConfig } from '../nn/towers';

const processor = new NaflexProcessor(defaultPreprocessor(naflexConfig) as NaflexPreprocessor);

function pictures(): NaflexSource {
  const sizes = [
    [30, 20],
    [9, 60],
    [17, 17],
    [64, 5],
    [40, 41],
    [8, 8],
  ];
  return {
    name: 'pictures',
    length: sizes.length,
    concepts: Int32Array.from(sizes.keys()),
    read: (index, random) => {
      const [width, height] = sizes[index];
      const data = Uint8Array.from({ length: 3 * width * height }, () => random.integer(256));
      const tokens = Int32Array.of(index, random.integer(9));
      return { image: { data, width, height, channels: 3 }, text: String(index), tokens };
    },
  };
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
  const open = (): NaflexBatchStream =>
    new NaflexBatchStream(pictures(), processor, new NaflexLengths(options), 5);

  async function take(stream: NaflexBatchStream, count: number): Promise<Batch[]> {
    const batches: Batch[] = [];
    for (let i = 0; i < count; i++) batches.push(await stream.next());
    return batches;
  }

  test('packs every image at its own grid, as the processor prepares it alone', async () => {
    const lengths = new NaflexLengths(options);
    const batches = await take(open(), 6);
    expect(new Set(batches.map(({ packed }) => packed?.length)).size).toBe(2);
    for (const { step, packed, concepts, tokens, texts } of batches) {
      const form = lengths.at(step);
      expect(packed?.length).toBe(form.length);
      expect(packed?.patches).toHaveLength(form.rows * 48);
      expect(tokens).toHaveLength(2 * form.batch);
      expect(texts).toEqual([...concepts].map(String));
      expect(new Set(concepts).size).toBe(form.batch);
      let at = 0;
      for (const [row, index] of concepts.entries()) {
        const { image } = await pictures().read(index, new Philox4x32(5, step * 4 + row));
        const alone = await processor.prepare(image, { maxPatches: form.length });
        const { width, height } = image as RawImage;
        const grid = naflexGrid(height, width, 4, form.length);
        expect(packed?.shapes.slice(2 * row, 2 * row + 2)).toEqual(
          Int32Array.of(grid.rows, grid.columns),
        );
        expect(packed?.segments[row]).toBe(at / 48);
        expect(packed?.patches.slice(at, at + alone.values.length)).toEqual(alone.values);
        at += alone.values.length;
      }
      expect(packed?.patches.slice(at).every((value) => value === 0)).toBe(true);
    }
  });

  test('continues from its state', async () => {
    const whole = await take(open(), 7);
    const first = open();
    await take(first, 3);
    const second = open();
    await second.restore(JSON.parse(JSON.stringify(first.state())) as null);
    expect(await take(second, 4)).toEqual(whole.slice(3));
    await second.close();
  });

  test('a state of something else is refused', async () => {
    expect(await failure(open().restore(null))).toMatchObject({ code: 'ERR_DATA' });
  });
});

test('rows that do not suffice are refused, and a damaged image is named', async () => {
  const { image } = await pictures().read(0, new Philox4x32(0));
  await expect(processor.pack([image, image], 20, { maxPatches: 16 })).rejects.toThrow(
    /rows must be at least the \d+ patches of the images, got 20/,
  );
  await expect(processor.pack([image, new Uint8Array(9)], 99)).rejects.toThrow(/^image 1: /);
});

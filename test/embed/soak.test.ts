// What a server does to a model for months, in a few seconds: many calls, some broken, some aborted;
// models loaded and freed; and an event loop that must not stand still meanwhile.
import { Philox4x32 } from '../../lib/array/random';
import type { SiglipError } from '../../lib';
import { Embedder } from '../../lib';
import { loadAddon } from '../../lib/native/load';
import { ids, image, modelFolder, noise, picture } from './random_model';
import { expectGivenBack } from '../memory';

const folder = modelFolder('fixed');

const turn = (): Promise<void> =>
  new Promise((resolve) => {
    setImmediate(resolve);
  });

// A batch of every size there is, so that every program is compiled and the arena at its largest.
async function warm(embedder: Embedder, maxBatch: number): Promise<void> {
  for (let size = 1; size <= maxBatch; size *= 2) {
    await embedder.embedImages(Array.from({ length: size }, () => image(1)));
    await embedder.embedTexts(Array.from({ length: size }, () => ids(1)));
  }
}

test('2,000 calls, some broken and some aborted, leave memory where it was', async () => {
  const everything = loadAddon().memory();
  const maxBatch = 8;
  const embedder = await Embedder.load(folder(), { maxBatch, maxDelay: 1000, maxQueue: 64 });
  await warm(embedder, maxBatch);
  const warmed = loadAddon().memory();
  const random = new Philox4x32(3, 'soak');
  const codes = new Map<string, number>();
  const inputs = { images: [image(1), image(2), picture(3)], texts: [ids(1), 'cat', 'a cat'] };
  const expected = {
    images: await embedder.embedImages(inputs.images),
    texts: await embedder.embedTexts(inputs.texts),
  };
  let wrong = 0;
  const calls: Promise<void>[] = [];
  for (let i = 0; i < 2000; i++) {
    const kind = random.uniform(0, 1) < 0.5 ? 'images' : 'texts';
    const broken = random.uniform(0, 1) < 0.1;
    const which = i % 3;
    const stop = new AbortController();
    const { signal } = stop;
    const call =
      kind === 'images'
        ? embedder.embedImage(broken ? { pixelValues: noise(7, 1) } : inputs.images[which], {
            signal,
          })
        : embedder.embedText(broken ? { inputIds: Int32Array.of(-1) } : inputs.texts[which], {
            signal,
          });
    calls.push(
      call.then(
        (vector) => {
          if (Buffer.compare(bytes(vector), bytes(expected[kind][which])) !== 0) wrong += 1;
          codes.set('done', (codes.get('done') ?? 0) + 1);
        },
        (error: unknown) => {
          const { code } = error as SiglipError;
          codes.set(code, (codes.get(code) ?? 0) + 1);
        },
      ),
    );
    const when = random.uniform(0, 1);
    if (when < 0.05) stop.abort();
    else if (when < 0.2) {
      setImmediate(() => {
        stop.abort();
      });
    }
    if (i % 50 === 49) await turn();
  }
  await Promise.all(calls);
  await embedder.drain();
  const { images, texts } = embedder.stats();
  expect(wrong).toBe(0);
  expect([...codes.keys()].sort()).toEqual(['ERR_ABORTED', 'ERR_SHAPE', 'done']);
  expect([...codes.values()].reduce((a, b) => a + b)).toBe(2000);
  for (const lane of [images, texts]) {
    expect(lane).toMatchObject({ queued: 0, queuedBytes: 0, waiting: 0, running: 0 });
    expect(lane.meanBatch).toBeGreaterThan(2);
  }
  // The batch on the device may outlive the last of its calls that was aborted.
  await embedder.embedText(ids(1));
  expect(loadAddon().memory()).toEqual(warmed);
  await embedder.close();
  expect(loadAddon().memory()).toEqual(everything);
});

function bytes(vector: Float32Array): Buffer {
  return Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength);
}

test('20 models loaded, used and freed leave memory where it was', async () => {
  const before = loadAddon().memory();
  for (let i = 0; i < 20; i++) {
    const embedder = await Embedder.load(folder());
    await Promise.all([embedder.embedImage(picture(i)), embedder.embedText(ids(i))]);
    if (i % 2 === 0) await embedder.close();
    else embedder.dispose();
    expectGivenBack(before);
  }
});

test('the event loop turns while batches run', async () => {
  await using embedder = await Embedder.load(folder(), { maxBatch: 32 });
  await warm(embedder, 32);
  const { batches } = embedder.stats().images;
  let turns = 0;
  let watching = true;
  const watch = async (): Promise<void> => {
    while (watching) {
      if (embedder.stats().images.running > 0) turns += 1;
      await turn();
    }
  };
  const watched = watch();
  await embedder.embedImages(Array.from({ length: 256 }, (_, i) => image(i % 4)));
  watching = false;
  await watched;
  // A run that held the loop would be seen once, by the turn that began it.
  expect(turns).toBeGreaterThan(3 * (embedder.stats().images.batches - batches));
});

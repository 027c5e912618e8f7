import { SiglipError } from '../../lib/errors';
import type { NativePicture, NativeRecipe } from '../../lib/native/addon';
import { loadAddon } from '../../lib/native/load';
import { prelude, runChild } from './child';
import { bytesOf, description, floatsOf, step, view } from './steps';

const addon = loadAddon();
const table = Float32Array.from({ length: 768 }, (_, i) => i / 4);
const bytes: NativeRecipe = { filter: 2, rounding: 0, layout: 0, patch: 1, table: null };
const patches: NativeRecipe = { filter: 2, rounding: 0, layout: 2, patch: 2, table };

/** What a promise rejects with. */
async function errorOf(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => 'no error',
    (reason: unknown) => reason,
  );
}

function picture(change: Partial<NativePicture> = {}): NativePicture {
  return {
    data: Uint8Array.from({ length: 48 }, (_, i) => 5 * i),
    shared: false,
    width: 4,
    height: 4,
    format: 2,
    background: null,
    toWidth: 2,
    toHeight: 2,
    offset: 0,
    ...change,
  };
}

describe('prepareImages', () => {
  test('writes pictures where they belong and nothing else', async () => {
    const into = new Uint8Array(40).fill(9);
    const pictures = [picture({ offset: 25 }), picture({ toWidth: 4, toHeight: 1, offset: 3 })];
    await addon.prepareImages(pictures, bytes, into);
    const alone = new Uint8Array(12);
    await addon.prepareImages([picture()], bytes, alone);
    expect(into.subarray(25, 37)).toEqual(alone);
    expect([...into.subarray(0, 3), ...into.subarray(15, 25), ...into.subarray(37)]).toEqual(
      Array<number>(16).fill(9),
    );
  });

  test('memory of a device will do, which is in use until then', async () => {
    const into = new addon.Buffer(40, 'cpu');
    into.write(0, new Uint8Array(40).fill(9));
    const done = addon.prepareImages([picture({ offset: 25 })], bytes, into);
    const all = new Uint8Array(40);
    const read = into.read(0, all);
    into.dispose();
    await Promise.all([done, read]);
    const alone = new Uint8Array(12);
    await addon.prepareImages([picture()], bytes, alone);
    expect(all.subarray(25, 37)).toEqual(alone);
    expect([...all.subarray(0, 25), ...all.subarray(37)]).toEqual(Array<number>(28).fill(9));
    await expect(addon.prepareImages([picture()], bytes, into)).rejects.toMatchObject({
      code: 'ERR_DISPOSED',
    });
  });

  test('no pictures are prepared at once', async () => {
    await expect(addon.prepareImages([], bytes, new Uint8Array(0))).resolves.toBeUndefined();
  });

  test('pixels that are not shared may change when the call has returned', async () => {
    const given = picture({ data: new Uint8Array(48).fill(200) });
    const into = new Uint8Array(12);
    const done = addon.prepareImages([given], bytes, into);
    given.data.fill(0);
    await done;
    expect([...into]).toEqual(Array<number>(12).fill(200));
  });

  test('memory that is shared between threads will do', async () => {
    const data = new Uint8Array(new SharedArrayBuffer(48)).fill(7);
    const into = new Uint8Array(new SharedArrayBuffer(12));
    await addon.prepareImages([picture({ data, shared: true })], bytes, into);
    expect([...into]).toEqual(Array<number>(12).fill(7));
  });

  test('waits for its turn among runs, and they for it', async () => {
    const into = new Uint8Array(12 * 4);
    const long = new addon.Program(
      description(
        Array.from({ length: 20 }, () => step('fill', 1, view(-1, 0, 1 << 18))),
        [],
        1 << 20,
      ),
    );
    const order: string[] = [];
    const note = (name: string) => () => order.push(name);
    await Promise.all([
      long.run([], false).then(note('first run')),
      addon.prepareImages([picture()], { ...bytes, layout: 1, table }, into).then(note('images')),
      long.run([], false).then(note('second run')),
    ]);
    expect(order).toEqual(['first run', 'images', 'second run']);
    long.dispose();
  });

  test('leaves the event loop free', async () => {
    const [width, height] = [3000, 2000];
    const data = new Uint8Array(3 * width * height);
    let turns = 0;
    let done = false;
    const count = (): void => {
      turns++;
      if (!done) setImmediate(count);
    };
    setImmediate(count);
    const lanczos = { ...bytes, filter: 1 };
    const request = picture({ data, width, height, toWidth: 500, toHeight: 500 });
    await addon.prepareImages([request], lanczos, new Uint8Array(3 * 500 * 500));
    done = true;
    expect(turns).toBeGreaterThan(0);
  });

  test('what has been prepared can be written to the device', async () => {
    const into = new Float32Array(12);
    const view8 = new Uint8Array(into.buffer);
    await addon.prepareImages([picture()], { ...bytes, layout: 1, table }, view8);
    const buffer = new addon.Buffer(48);
    buffer.write(0, bytesOf(into));
    expect(await floatsOf(buffer)).toEqual([...into]);
    buffer.dispose();
  });
});

describe('prepareImages refuses', () => {
  const huge = 2 ** 28;
  test.each<[string, Partial<NativePicture>]>([
    ['data must have 48 bytes, got 47', { data: new Uint8Array(47) }],
    ['data must have 48 bytes, got 49', { data: new Uint8Array(49) }],
    ['data must be a Uint8Array, got a typed array', { data: new Float32Array(12) as never }],
    ['data must be a Uint8Array, got undefined', { data: undefined }],
    ['width must be in [1, 268435456], got 0', { width: 0 }],
    ['height must be in [1, 268435456], got -4', { height: -4 }],
    ['width must be an integer, got NaN', { width: NaN }],
    ['width must be in [1, 268435456], got 268435457', { width: huge + 1 }],
    [`data must have ${String(3n * 2n ** 56n)} bytes`, { width: huge, height: huge }],
    ['toWidth must be in [1, 268435456], got 0', { toWidth: 0 }],
    ['toHeight must be an integer, got 1.5', { toHeight: 1.5 }],
    ['into: the range must lie inside 12 bytes', { toWidth: huge, toHeight: huge }],
    ['into: the range must lie inside 12 bytes, got 12 bytes at 1', { offset: 1 }],
    ['into: the range must lie inside 12 bytes', { offset: 2 ** 52 }],
    ['offset must be an integer of at least 0, got -1', { offset: -1 }],
    ['format must be in [0, 4], got 5', { format: 5 }],
    ['format must be an integer, got a string', { format: '2' as never }],
    ['background must be in [0, 16777215], got 16777216', { background: 0x1000000 }],
    ['background must be an integer, got undefined', { background: undefined }],
    ['shared must be a boolean, got 1', { shared: 1 as never }],
  ])('%s', async (message, change) => {
    const error = await errorOf(
      addon.prepareImages([picture(), picture(change)], bytes, new Uint8Array(12)),
    );
    expect(error).toBeInstanceOf(SiglipError);
    expect(error).toMatchObject({ code: 'ERR_ARGUMENT' });
    expect(String(error).replace("'2'", 'a string')).toContain(`prepare: images[1]: ${message}`);
  });

  test.each<[string, Partial<NativeRecipe>]>([
    ['filter must be in [0, 5], got 6', { filter: 6 }],
    ['rounding must be in [0, 1], got 2', { rounding: 2 }],
    [
      'filter must be bilinear or bicubic with the rounding of torchvision',
      { filter: 1, rounding: 1 },
    ],
    ['layout must be in [0, 2], got 3', { layout: 3 }],
    ['patch must be in [1, 268435456], got 0', { patch: 0 }],
    ['toWidth and toHeight must be multiples of 3, got 2 and 2', { patch: 3 }],
    ['table must be a Float32Array of 768 values, got null', { table: null }],
    ['table must be a Float32Array of 768 values', { table: new Float32Array(767) }],
    ['table must be a Float32Array of 768 values', { table: new Uint8Array(768) as never }],
  ])('%s', async (message, change) => {
    const recipe = { ...patches, ...change };
    const error = await errorOf(addon.prepareImages([picture()], recipe, new Uint8Array(48)));
    expect(error).toMatchObject({ code: 'ERR_ARGUMENT' });
    expect(String(error)).toContain('prepare: ');
    expect(String(error)).toContain(message);
  });

  test('floats at an offset that is not a multiple of four', async () => {
    const call = addon.prepareImages([picture({ offset: 2 })], patches, new Uint8Array(64));
    expect(String(await errorOf(call))).toContain('offset must be a multiple of the element');
  });

  test('what is not even a list', async () => {
    for (const images of [undefined, null, 7, {}, [null], [7]]) {
      const call = addon.prepareImages(images as never, bytes, new Uint8Array(12));
      expect(await errorOf(call)).toMatchObject({ code: 'ERR_ARGUMENT' });
    }
    for (const recipe of [undefined, null, 7, {}]) {
      const call = addon.prepareImages([picture()], recipe as never, new Uint8Array(12));
      expect(await errorOf(call)).toMatchObject({ code: 'ERR_ARGUMENT' });
    }
    for (const into of [undefined, null, new Float32Array(12)]) {
      const call = addon.prepareImages([picture()], bytes, into as never);
      expect(await errorOf(call)).toMatchObject({ code: 'ERR_ARGUMENT' });
    }
  });

  test('intermediates that do not fit into memory', async () => {
    const [height, toWidth] = [2 ** 20, 2 ** 20];
    const data = new Uint8Array(height);
    const request = picture({ data, width: 1, height, format: 0, toWidth, toHeight: 1 });
    const into = new Uint8Array(3 * toWidth);
    const error = await errorOf(addon.prepareImages([request], { ...bytes, rounding: 1 }, into));
    expect(error).toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
    // Pillow's rule for tall pictures needs but one row of them.
    await addon.prepareImages([request], bytes, into);
  });

  test('memory that a getter takes away', async () => {
    const data = new Uint8Array(48);
    const trap = {
      ...picture({ data, shared: true }),
      get offset() {
        structuredClone(data.buffer, { transfer: [data.buffer] });
        return 0;
      },
    };
    const error = await errorOf(addon.prepareImages([trap], bytes, new Uint8Array(12)));
    expect(String(error)).toContain('data must have 48 bytes, got 0');
    const thrower = {
      ...picture(),
      get width(): number {
        throw new RangeError('mine');
      },
    };
    const call = addon.prepareImages([thrower], bytes, new Uint8Array(12));
    expect(String(await errorOf(call))).toBe('RangeError: mine');
  });
});

// Every path: formats, passes, layouts, roundings, odd sizes.
const EVERY_PATH = `
  const { createHash } = require('node:crypto');
  const addon = load();
  const table = Float32Array.from({ length: 768 }, (_, i) => Math.sin(i));
  const hash = createHash('sha256');
  (async () => {
    const sizes = [[61, 47, 61, 47], [61, 47, 30, 47], [61, 47, 61, 90], [61, 47, 17, 100],
      [3, 700, 9, 40], [3, 700, 9, 900], [900, 2, 3, 5], [640, 48, 224, 20], [5, 3, 3, 5]];
    const sources = sizes.map(([width, height], i) => {
      const data = new Uint8Array(4 * width * height);
      for (let k = 0; k < data.length; k++) data[k] = (Math.imul(k, 40503) + i) >>> 7;
      return data;
    });
    for (const format of [0, 1, 2, 3, 4]) {
      for (const rounding of [0, 1]) {
        for (const layout of [0, 1, 2]) {
          for (const filter of rounding ? [2, 3] : [0, 1, 2, 3, 4, 5]) {
            let end = 0;
            const images = sizes.map(([width, height, toWidth, toHeight], i) => {
              const channels = [1, 2, 3, 4, 4][format];
              const data = sources[i].subarray(0, width * height * channels);
              const offset = end;
              end += 3 * toWidth * toHeight * (layout ? 4 : 1);
              const background = i % 2 ? 0x10f080 : null;
              return { data, shared: i % 3 === 0, width, height, format, background, toWidth,
                toHeight, offset };
            });
            const into = new Uint8Array(end);
            await addon.prepareImages(images, { filter, rounding, layout, patch: 1, table }, into);
            hash.update(into);
          }
        }
      }
    }
    console.log(hash.digest('hex'));
  })();`;

test('threads and instruction sets do not change a byte', () => {
  const environments: Record<string, string>[] = [
    { SIGLIP2_THREADS: '1' },
    { SIGLIP2_THREADS: '2' },
    { SIGLIP2_THREADS: '5' },
    { SIGLIP2_THREADS: '1', SIGLIP2_ISA: 'generic' },
    { SIGLIP2_THREADS: '3', SIGLIP2_ISA: 'generic' },
  ];
  const outputs = environments.map((environment) => runChild(EVERY_PATH, environment).output);
  expect(outputs[0]).toMatch(/^[0-9a-f]{64}\n$/u);
  expect(new Set(outputs).size).toBe(1);
});

describe('the end of an environment', () => {
  const START = `
    const addon = load();
    const [width, height] = [4000, 3000];
    const data = new Uint8Array(3 * width * height);
    const image = { data, shared: true, width, height, format: 2, background: null, toWidth: 1000,
      toHeight: 1000, offset: 0 };
    const recipe = { filter: 1, rounding: 0, layout: 0, patch: 1, table: null };
    for (let i = 0; i < 20; i++) addon.prepareImages([image], recipe, new Uint8Array(3e6));`;

  test('process.exit() with pictures under way', () => {
    const { status, signal, output } = runChild(`${START} setTimeout(() => process.exit(3), 30);`);
    expect({ status, signal, output }).toEqual({ status: 3, signal: null, output: '' });
  });

  test.each(['', 'load();'])('a worker terminated with pictures under way (main: %p)', (inMain) => {
    const { status, signal, output } = runChild(
      `
      ${inMain}
      const { Worker } = require('node:worker_threads');
      const source = ${JSON.stringify(START)};
      (async () => {
        for (const delay of [0, 5, 20]) {
          const worker = new Worker(PRELUDE + source + "require('node:worker_threads').parentPort.postMessage(0);", { eval: true });
          await new Promise((resolve) => worker.once('message', resolve));
          await new Promise((resolve) => setTimeout(resolve, delay));
          await worker.terminate();
        }
        console.log('done');
      })();`.replace('PRELUDE', '(process.env.SIGLIP2_TEST_PRELUDE)'),
      { SIGLIP2_TEST_PRELUDE: prelude },
    );
    expect({ status, signal, output }).toEqual({ status: 0, signal: null, output: 'done\n' });
  });
});

test('no request brings the process down', () => {
  const { status, signal, output } = runChild(`
    const addon = load();
    let state = 7;
    const below = (n) => {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      return Math.floor(((state >>> 8) / 2 ** 24) * n);
    };
    const pick = (list) => list[below(list.length)];
    const odd = [0, -1, 1.5, NaN, Infinity, 2 ** 28, 2 ** 31, 2 ** 53, null, undefined, 'x', {}, [],
      new Uint8Array(3), new Float32Array(768), true, 10n, Symbol('s'), () => 1];
    const fields = ['data', 'shared', 'width', 'height', 'format', 'background', 'toWidth',
      'toHeight', 'offset'];
    const knobs = ['filter', 'rounding', 'layout', 'patch', 'table'];
    let [done, refused] = [0, 0];
    (async () => {
      for (let round = 0; round < 3000; round++) {
        const patch = 1 + below(3);
        const layout = below(3);
        let end = 0;
        const images = Array.from({ length: below(4) }, () => {
          const [width, height, format] = [1 + below(40), 1 + below(40), below(5)];
          const [toWidth, toHeight] = [patch * (1 + below(12)), patch * (1 + below(12))];
          const offset = end;
          end += 3 * toWidth * toHeight * (layout ? 4 : 1);
          const data = new Uint8Array(width * height * [1, 2, 3, 4, 4][format]);
          const background = pick([null, 0, 0xffffff]);
          return { data, shared: pick([true, false]), width, height, format, background, toWidth,
            toHeight, offset };
        });
        const table = new Float32Array(768);
        const recipe = { filter: below(6), rounding: below(2), layout, patch, table };
        let into = new Uint8Array(end);
        const flaw = below(4);
        if (flaw === 0 && images.length) pick(images)[pick(fields)] = pick(odd);
        if (flaw === 1) recipe[pick(knobs)] = pick(odd);
        if (flaw === 2) into = into.subarray(below(3));
        try {
          await addon.prepareImages(images, recipe, into);
          done++;
        } catch (error) {
          if (!(error instanceof SiglipError)) throw error;
          refused++;
        }
      }
      console.log(JSON.stringify({ done, refused }));
    })();`);
  expect({ status, signal }).toEqual({ status: 0, signal: null });
  const { done, refused } = JSON.parse(output) as Record<string, number>;
  expect(done).toBeGreaterThan(500);
  expect(refused).toBeGreaterThan(500);
});

import { DeviceArray, float32, resolveDevice } from '../../lib/array';
import { SiglipError } from '../../lib/errors';
import { compile } from '../../lib/graph';
import type { Device } from '../../lib/native/device';
import { loadAddon } from '../../lib/native/load';
import { add } from '../../lib/ops';
import { prelude, runChild } from './child';
import { bufferOf, codeOf, description, floatsOf, rejectionOf, step, view } from './steps';

const addon = loadAddon();
const { cuda } = addon.describe();
const without = cuda.devices.length === 0 ? test : test.skip;

describe('what there is of CUDA', () => {
  test('is told, and for what is missing what to do', () => {
    expect(typeof cuda.built).toBe('boolean');
    expect(cuda.built).toBe(cuda.runtime !== undefined);
    for (const device of cuda.devices) {
      expect(device.architecture).toBeGreaterThanOrEqual(80);
      expect(device.memoryBytes).toBeGreaterThan(0);
      expect(device.freeBytes).toBeLessThanOrEqual(device.memoryBytes);
    }
    if (cuda.devices.length === 0) expect(cuda.missing).not.toHaveLength(0);
    for (const what of cuda.missing) expect(what).toMatch(/^[^\n]+\nto do: [^\n]+$/u);
  });

  test('is not looked up before it is asked for', () => {
    const description = Object.getOwnPropertyDescriptor(addon.describe(), 'cuda');
    expect(typeof description?.get).toBe('function');
  });

  test('the kernels of packed weights are of the CPU', () => {
    const of = (part: string) => addon.describe().kernels.filter(({ name }) => name.includes(part));
    const packed = ['linear_int8', 'linear_float32', 'linear_bfloat16'].flatMap(of);
    expect(packed).toHaveLength(6);
    for (const kernel of packed) expect(kernel.cuda).toBe(false);
  });
});

describe('a device', () => {
  test('of that name is resolved', () => {
    expect(resolveDevice('cpu')).toEqual({ device: 'cpu', reason: 'asked for' });
    expect(addon.openDevice('cpu')).toBe('cpu');
  });

  test('chosen automatically is there, with the reason in a line', () => {
    const { device, reason } = resolveDevice('auto');
    expect(device).toMatch(cuda.devices.length === 0 ? /^cpu$/u : /^cuda:\d+$/u);
    expect(reason).toMatch(/^[^\n]+$/u);
    using array = DeviceArray.zeros(float32(3), device);
    expect(array.device).toBe(device);
  });

  without('that is not there is refused with the reason and what to do', () => {
    for (const name of ['cuda', 'cuda:0', 'cuda:3'] as const) {
      const actions = [
        () => resolveDevice(name),
        () => new addon.Buffer(4, name),
        () => new addon.Program(description([]), name),
        () => DeviceArray.from(Float32Array.of(1), [1], name),
        () => compile('double', ({ x }) => ({ y: add(x, x) }), { x: float32(2) }, { device: name }),
      ];
      for (const action of actions) {
        expect(action).toThrow(SiglipError);
        expect(codeOf(action)).toBe('ERR_DEVICE');
        expect(action).toThrow(/must be there, got no CUDA device\n.+\nto do: .+/u);
      }
    }
  });

  test('with a number beyond those that are there is refused', () => {
    expect(codeOf(() => addon.openDevice('cuda:9999'))).toBe('ERR_DEVICE');
  });

  test.each(['', 'gpu', 'CPU', 'cuda:', 'cuda:-1', 'cuda:1.5', 'cuda:01', 'cuda:12345', 'cpu:0'])(
    'cannot be called %p',
    (name) => {
      expect(codeOf(() => addon.openDevice(name as Device))).toBe('ERR_ARGUMENT');
      expect(codeOf(() => resolveDevice(name as Device))).toBe('ERR_ARGUMENT');
    },
  );

  test('cannot be called by what is no string', () => {
    for (const name of [1, null, {}, []]) {
      expect(codeOf(() => new addon.Buffer(4, name as unknown as Device))).toBe('ERR_ARGUMENT');
    }
  });

  test('is known to what is on it', async () => {
    const buffer = new addon.Buffer(4, 'cpu');
    expect(buffer.device).toBe('cpu');
    buffer.dispose();
    expect(buffer.device).toBe('cpu');
    using x = DeviceArray.from(Float32Array.of(1, 2), [2], 'cpu');
    using y = await x.to('cpu');
    x.write(Float32Array.of(3, 4));
    expect(y.device).toBe('cpu');
    expect(await y.read()).toEqual(Float32Array.of(1, 2));
    x.dispose();
    expect(await rejectionOf(x.to('cpu'))).toBe('ERR_DISPOSED');
  });

  test('counts its memory apart', () => {
    const { output } = runChild(`
      const addon = load();
      const buffer = new addon.Buffer(1000);
      console.log(JSON.stringify(addon.memory()));`);
    expect(JSON.parse(output)).toEqual({
      buffers: 1,
      bufferBytes: 1000,
      arenaBytes: 0,
      cuda: { buffers: 0, bufferBytes: 0, arenaBytes: 0 },
    });
  });
});

// Where there is a GPU, and kernels for it.
const kernel = addon.describe().kernels.find(({ name }) => name === 'scale_by_forward');
const usable = cuda.devices.length > 0 && kernel?.cuda === true;
(usable ? describe : describe.skip)('a GPU', () => {
  const doubling = (name: string, elements: number) =>
    new addon.Program(
      {
        ...description(
          [
            step('scale_by_forward', view(0, 0, elements), 4, view(-1, 0, elements)),
            step('scale_by_forward', view(-1, 0, elements), 0.5, view(1, 0, elements)),
          ],
          [4 * elements, 4 * elements],
          4 * elements,
        ),
        name,
      },
      'cuda',
    );
  const bytes = (values: Float32Array) => new Uint8Array(values.buffer);
  const filled = (elements: number, value: number) => new Float32Array(elements).fill(value);

  test('begins with zeros, and gives back what was written', async () => {
    for (const elements of [1, 1000, 5 << 20]) {
      const buffer = new addon.Buffer(4 * elements, 'cuda');
      expect((await floatsOf(buffer)).every((value) => value === 0)).toBe(true);
      buffer.write(0, bytes(filled(elements, 7)));
      buffer.write(0, bytes(filled(1, 3)));
      const back = await floatsOf(buffer);
      expect([back[0], back.at(-1)]).toEqual([3, elements === 1 ? 3 : 7]);
      buffer.dispose();
    }
  });

  test('runs take effect in the order of calls with writes and reads, eager or replayed', async () => {
    const program = doubling('order', 1000);
    const [x, y] = [new addon.Buffer(4000, 'cuda'), new addon.Buffer(4000, 'cuda')];
    const runs: Promise<unknown>[] = [];
    const results: Promise<number[]>[] = [];
    for (let i = 0; i < 30; i++) {
      x.write(0, bytes(filled(1000, i)));
      runs.push(program.run([x, y], false));
      results.push(floatsOf(y));
    }
    x.write(0, bytes(filled(1000, 100)));
    const last = (await Promise.all(results)).map((values) => values[999]);
    expect(last).toEqual(Array.from({ length: 30 }, (_, i) => 2 * i));
    await Promise.all(runs);
    const times = await program.run([x, y], true);
    expect(times).toHaveLength(2);
    expect(times?.every((time) => time > 0 && time < 1e9)).toBe(true);
    program.dispose();
    x.dispose();
    y.dispose();
  });

  test('refuses buffers of another device', async () => {
    const program = doubling('mixed', 1);
    const [x, y] = [bufferOf(1), new addon.Buffer(4, 'cuda')];
    await expect(program.run([x, y], false)).rejects.toThrow(
      /buffer 0 must be on cuda:\d+, got one on cpu/u,
    );
    const there = await DeviceArray.from(Float32Array.of(1, 2)).to('cuda');
    const sum = compile('sum', ({ a }) => ({ y: add(a, a) }), { a: float32(2) });
    expect(await rejectionOf(sum.run({ a: there }))).toBe('ERR_DEVICE');
    for (const thing of [program, x, y, there, sum]) thing.dispose();
  });

  test('says what it cannot give', async () => {
    expect(codeOf(() => new addon.Buffer(2 ** 45, 'cuda'))).toBe('ERR_OUT_OF_MEMORY');
    expect(() => new addon.Buffer(2 ** 45, 'cuda')).toThrow(/MiB are free of \d+ MiB/u);
    const buffer = new addon.Buffer(4, 'cuda');
    expect(await floatsOf(buffer)).toEqual([0]);
    buffer.dispose();
  });

  test('refuses a kernel it has no form of', () => {
    const packing = description([step('linear_int8_pack', view(0, 0, 1, 1), view(0, 0, 1))], [4]);
    expect(codeOf(() => new addon.Program(packing, 'cuda'))).toBe('ERR_DEVICE');
    expect(() => new addon.Program(packing, 'cuda')).toThrow('linear_int8_pack has no CUDA form');
  });

  test('outlives worker threads, and the end of the process with runs pending', () => {
    const script = `
      const addon = load();
      const kernel = index(addon, 'scale_by_forward');
      const [a, b] = [view(-1, 0, 1 << 20), view(-1, 4 << 20, 1 << 20)];
      const program = new addon.Program({ name: 'p', arenaBytes: 8 << 20, bufferBytes: [],
        steps: Array.from({ length: 500 }, (_, i) =>
          ({ kernel, label: 's', args: i % 2 ? [a, 1, b] : [b, 1, a] })) }, 'cuda');
      for (let i = 0; i < 20; i++) program.run([], false);`;
    const ended = runChild(`${script} setTimeout(() => process.exit(7), 50);`);
    expect(ended).toMatchObject({ status: 7, signal: null });
    const workers = runChild(
      `
      const { Worker } = require('node:worker_threads');
      const source = ${JSON.stringify(script)};
      (async () => {
        for (let i = 0; i < 3; i++) {
          const worker = new Worker(process.env.PRELUDE + source, { eval: true });
          await new Promise((resolve) => worker.on('online', resolve));
          await new Promise((resolve) => setTimeout(resolve, 1000));
          await worker.terminate();
        }
        console.log('over');
      })();`,
      { PRELUDE: prelude },
    );
    expect(workers).toMatchObject({ status: 0, output: 'over\n' });
  });
});

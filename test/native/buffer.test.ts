import { SiglipError } from '../../lib/errors';
import { loadAddon } from '../../lib/native/load';
import { runChild } from './child';
import { bufferOf, bytesOf, codeOf, description, floatsOf, longSteps, rejectionOf } from './steps';

const addon = loadAddon();

describe('contents', () => {
  test('begin as zeros', async () => {
    for (const bytes of [1, 63, 4096, 5 << 20]) {
      const buffer = new addon.Buffer(bytes);
      const into = new Uint8Array(bytes).fill(255);
      await buffer.read(0, into);
      expect(into.every((byte) => byte === 0)).toBe(true);
      expect(buffer.bytes).toBe(bytes);
      buffer.dispose();
    }
  });

  test('begin as anything where that is asked for', async () => {
    const buffer = new addon.Buffer(8, 'cpu', true);
    buffer.write(0, bytesOf(Float32Array.of(1, 2)));
    expect(await floatsOf(buffer)).toEqual([1, 2]);
    buffer.dispose();
    expect(codeOf(() => new addon.Buffer(8, 'cpu', 1 as unknown as boolean))).toBe('ERR_ARGUMENT');
  });

  test('are written and read at an offset', async () => {
    const buffer = bufferOf(1, 2, 3, 4);
    buffer.write(4, bytesOf(Float32Array.of(7, 8)));
    const middle = new Float32Array(2);
    await buffer.read(8, bytesOf(middle));
    expect([...middle]).toEqual([8, 4]);
    expect(await floatsOf(buffer)).toEqual([1, 7, 8, 4]);
    buffer.dispose();
  });

  test('are written from several arrays, one behind the other', async () => {
    const buffer = bufferOf(1, 2, 3, 4);
    const parts = [Float32Array.of(5, 6), new Float32Array(), Float32Array.of(7)].map(bytesOf);
    buffer.write(4, parts);
    expect(await floatsOf(buffer)).toEqual([1, 5, 6, 7]);
    buffer.write(4, []);
    expect(
      codeOf(() => {
        buffer.write(8, parts);
      }),
    ).toBe('ERR_ARGUMENT');
    expect(
      codeOf(() => {
        buffer.write(0, [1] as unknown as Uint8Array[]);
      }),
    ).toBe('ERR_ARGUMENT');
    expect(await floatsOf(buffer)).toEqual([1, 5, 6, 7]);
    // What an entry does while the list is read does not reach memory that is gone.
    const taken = new Uint8Array(8).fill(255);
    const list = [taken, taken];
    Object.defineProperty(list, 1, {
      get: () => {
        structuredClone(taken.buffer, { transfer: [taken.buffer] });
        return new Uint8Array(4);
      },
    });
    buffer.write(0, list);
    expect(await floatsOf(buffer)).toEqual([0, 5, 6, 7]);
    buffer.dispose();
  });

  test('may be empty pieces', async () => {
    const buffer = bufferOf(1);
    buffer.write(4, new Uint8Array(0));
    await buffer.read(4, new Uint8Array(0));
    expect(await floatsOf(buffer)).toEqual([1]);
    buffer.dispose();
  });

  test('of many pieces arrive whole, with turns for other events between', async () => {
    const bytes = 40 << 20;
    const buffer = new addon.Buffer(bytes);
    const data = new Uint8Array(bytes);
    for (let i = 0; i < bytes; i += 4093) data[i] = i % 251;
    buffer.write(0, data);
    let turns = 0;
    const timer = setInterval(() => (turns += 1), 0);
    const into = new Uint8Array(bytes);
    await buffer.read(0, into);
    clearInterval(timer);
    expect(Buffer.compare(into, data)).toBe(0);
    expect(turns).toBeGreaterThan(0);
    buffer.dispose();
  });

  test('written behind a long program are those given at the call', async () => {
    const { steps, arenaBytes } = longSteps(20);
    const program = new addon.Program(description(steps, [4], arenaBytes));
    const buffer = bufferOf(1);
    const run = program.run([buffer], false);
    const data = Float32Array.of(2);
    buffer.write(0, bytesOf(data));
    data[0] = 3;
    expect(await floatsOf(buffer)).toEqual([2]);
    await run;
    buffer.dispose();
    program.dispose();
  });
});

describe('life', () => {
  test('ends with dispose, which may be repeated', async () => {
    const buffer = new addon.Buffer(1000);
    expect(buffer.disposed).toBe(false);
    buffer.dispose();
    buffer.dispose();
    expect(buffer.disposed).toBe(true);
    expect(buffer.bytes).toBe(1000);
    expect(
      codeOf(() => {
        buffer.write(0, new Uint8Array(1));
      }),
    ).toBe('ERR_DISPOSED');
    expect(await rejectionOf(buffer.read(0, new Uint8Array(1)))).toBe('ERR_DISPOSED');
  });

  test('goes on for work that is queued', async () => {
    const { steps, arenaBytes } = longSteps(20);
    const program = new addon.Program(description(steps, [8], arenaBytes));
    const buffer = bufferOf(5, 6);
    const run = program.run([buffer], false);
    const into = new Float32Array(2);
    const read = buffer.read(0, bytesOf(into));
    buffer.dispose();
    program.dispose();
    await Promise.all([run, read]);
    expect([...into]).toEqual([5, 6]);
  });

  // Counted in a process of its own, where no other test's buffers come and go.
  test('is counted, and ends with the garbage collector for what is forgotten', () => {
    const { output } = runChild(
      `
      const addon = load();
      const counts = () => { const m = addon.memory(); return [m.buffers, m.bufferBytes].join('/'); };
      const lines = [];
      const buffer = new addon.Buffer(1000);
      lines.push(counts());
      const program = new addon.Program({ name: 'p', arenaBytes: 0, bufferBytes: [8], steps: [] });
      const runs = [long(addon, 20).run([], false), program.run([buffer], false)];
      buffer.dispose();
      lines.push(counts());
      Promise.all(runs).then(async () => {
        lines.push(counts());
        for (let i = 0; i < 100; i++) new addon.Buffer(1 << 20);
        for (let i = 0; i < 100 && addon.memory().buffers > 0; i++) {
          gc();
          await new Promise(setImmediate);
        }
        lines.push(counts());
        console.log(lines.join(' '));
      });`,
      {},
      ['--expose-gc'],
    );
    expect(output).toBe('1/1000 1/1000 0/0 0/0\n');
  });
});

describe('refusals', () => {
  test('of sizes that no machine has', () => {
    for (const bytes of [2 ** 40, 2 ** 47, 2 ** 53 - 1]) {
      expect(codeOf(() => new addon.Buffer(bytes))).toBe('ERR_OUT_OF_MEMORY');
    }
  });

  test('name the function, the argument, the expectation and the value', () => {
    expect(() => new addon.Buffer(-1)).toThrow(SiglipError);
    expect(() => new addon.Buffer(-1)).toThrow(
      'buffer: bytes must be an integer of at least 0, got -1',
    );
    expect(() => new addon.Buffer(0)).toThrow('buffer: bytes must be at least 1, got 0');
  });

  test.each([
    undefined,
    null,
    true,
    -1,
    0,
    1.5,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    '8',
    {},
    [],
    8n,
    Symbol('s'),
    () => 8,
  ])('of %p as a size', (bytes) => {
    expect(codeOf(() => new addon.Buffer(bytes as number))).toBe('ERR_ARGUMENT');
  });

  test.each([
    [-1, new Uint8Array(1)],
    [0.5, new Uint8Array(1)],
    [Number.NaN, new Uint8Array(1)],
    [16, new Uint8Array(1)],
    [0, new Uint8Array(17)],
    [2 ** 53 - 1, new Uint8Array(1)],
    [0, new Float32Array(1)],
    [0, [1]],
    [0, null],
    [undefined, undefined],
  ])('of a range at %p of %p', async (offset, data) => {
    const buffer = bufferOf(1, 2, 3, 4);
    expect(
      codeOf(() => {
        buffer.write(offset as unknown as number, data as Uint8Array);
      }),
    ).toBe('ERR_ARGUMENT');
    expect(await rejectionOf(buffer.read(offset as unknown as number, data as Uint8Array))).toBe(
      'ERR_ARGUMENT',
    );
    expect(await floatsOf(buffer)).toEqual([1, 2, 3, 4]);
    buffer.dispose();
  });

  test('of an array that is detached before it is filled', async () => {
    const buffer = new addon.Buffer(4 << 20);
    const into = new Uint8Array(4 << 20);
    const read = buffer.read(0, into);
    structuredClone(into.buffer, { transfer: [into.buffer] });
    expect(await rejectionOf(read)).toBe('ERR_ARGUMENT');
    buffer.dispose();
  });

  test('of a call without new and of a foreign receiver', () => {
    const buffer = bufferOf(1);
    expect(() => (addon.Buffer as unknown as (n: number) => unknown)(8)).toThrow();
    expect(() => {
      buffer.dispose.call({} as never);
    }).toThrow();
    const program = new addon.Program(description([]));
    expect(() => {
      buffer.dispose.call(program as never);
    }).toThrow();
    expect(buffer.disposed).toBe(false);
    buffer.dispose();
    program.dispose();
  });
});

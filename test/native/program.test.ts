import { SiglipError } from '../../lib/errors';
import type { NativeBuffer, ProgramDescription } from '../../lib/native/addon';
import { kernelOf, loadAddon } from '../../lib/native/load';
import { runChild } from './child';
import {
  bufferOf,
  bytesOf,
  codeOf,
  description,
  floatsOf,
  longSteps,
  rejectionOf,
  step,
  view,
} from './steps';

const addon = loadAddon();

describe('a run', () => {
  test('calls the kernels in order over arena and buffers', async () => {
    const program = new addon.Program(
      description(
        [
          step('add_forward', view(0, 0, 3), view(0, 4, 3), view(-1, 64, 3)),
          step('scale_by_forward', view(-1, 64, 3), 10, view(1, 0, 3)),
        ],
        [16, 12],
        128,
      ),
    );
    const [x, y] = [bufferOf(1, 2, 3, 4), bufferOf(0, 0, 0)];
    expect(await program.run([x, y], false)).toBeUndefined();
    expect(await floatsOf(y)).toEqual([30, 50, 70]);
    x.dispose();
    y.dispose();
    program.dispose();
  });

  test.each([
    ['1', 'NaN NaN 3'],
    ['0', '3 0 3'],
  ])('begins with NaN where nothing was written, SIGLIP2_POISON=%s', (value, wanted) => {
    const { output } = runChild(
      `
      const addon = load();
      // One result from the arena, one that no step writes whole, and one that is only read.
      const add = index(addon, 'add_forward');
      const program = new addon.Program({
        name: 'poisoned', arenaBytes: 64, bufferBytes: [4, 8, 4],
        steps: [
          { kernel: add, label: 'arena', args: [view(-1, 0, 1), view(2, 0, 1), view(0, 0, 1)] },
          { kernel: add, label: 'buffer', args: [view(1, 0, 1), view(2, 0, 1), view(1, 4, 1)] },
          { kernel: add, label: 'arena again', args: [view(-1, 0, 1), view(1, 0, 1), view(1, 0, 1)] },
        ],
      });
      const [x, y, z] = [4, 8, 4].map((bytes) => new addon.Buffer(bytes));
      z.write(0, new Uint8Array(Float32Array.of(3).buffer));
      const read = async (buffer, i) => {
        const values = new Float32Array(buffer.bytes / 4);
        await buffer.read(0, new Uint8Array(values.buffer));
        return values[i];
      };
      program.run([x, y, z], false).then(async () => {
        console.log(await read(x, 0), await read(y, 0), await read(y, 1));
      });
      `,
      { SIGLIP2_POISON: value },
    );
    expect(output.trim()).toBe(wanted);
  });

  test('takes effect in the order of calls with writes and reads', async () => {
    const { steps, arenaBytes } = longSteps(10);
    const long = new addon.Program(description(steps, [], arenaBytes));
    const double = new addon.Program(
      description([step('add_forward', view(0, 0, 1), view(0, 0, 1), view(1, 0, 1))], [4, 4]),
    );
    const [x, y] = [bufferOf(0), bufferOf(0)];
    const results: Promise<number[]>[] = [];
    const runs: Promise<unknown>[] = [long.run([], false)];
    for (let i = 1; i <= 20; i++) {
      x.write(0, bytesOf(Float32Array.of(i)));
      runs.push(double.run([x, y], false));
      results.push(floatsOf(y));
    }
    x.write(0, bytesOf(Float32Array.of(100)));
    expect((await Promise.all(results)).flat()).toEqual(
      Array.from({ length: 20 }, (_, i) => 2 * i + 2),
    );
    await Promise.all(runs);
    x.dispose();
    y.dispose();
    double.dispose();
    long.dispose();
  });

  test('takes buffers that are bound once', async () => {
    const program = new addon.Program(
      description([step('add_forward', view(0, 0, 1), view(1, 0, 1), view(2, 0, 1))], [4, 4, 4]),
    );
    const [x, weight, y] = [bufferOf(1), bufferOf(10), bufferOf(0)];
    program.bind(1, [weight]);
    await program.run([x, y], false);
    expect(await floatsOf(y)).toEqual([11]);
    expect(await rejectionOf(program.run([x, weight, y], false))).toBe('ERR_ARGUMENT');
    program.bind(0, [weight, x]);
    await program.run([weight], false);
    expect(await floatsOf(weight)).toEqual([11]);
    program.bind(0, []);
    await program.run([x, x, x], false);
    expect(await floatsOf(x)).toEqual([2]);
    program.bind(2, [y]);
    y.dispose();
    const disposed = program.run([x, weight], false);
    await expect(disposed).rejects.toThrow('test: buffer 2 must be alive, got a disposed one');
    expect(
      codeOf(() => {
        program.bind(3, [x]);
      }),
    ).toBe('ERR_ARGUMENT');
    expect(
      codeOf(() => {
        program.bind(0, [y]);
      }),
    ).toBe('ERR_DISPOSED');
    expect(
      codeOf(() => {
        program.bind(0, [{} as NativeBuffer]);
      }),
    ).toBe('ERR_ARGUMENT');
    program.dispose();
    expect(
      codeOf(() => {
        program.bind(0, [x]);
      }),
    ).toBe('ERR_DISPOSED');
    x.dispose();
    weight.dispose();
  });

  test('leaves the event loop free', async () => {
    const { steps, arenaBytes } = longSteps(300);
    const program = new addon.Program(description(steps, [], arenaBytes));
    let ticks = 0;
    let longest = 0;
    let last = performance.now();
    const start = last;
    const timer = setInterval(() => {
      const now = performance.now();
      longest = Math.max(longest, now - last);
      last = now;
      ticks += 1;
    }, 5);
    await program.run([], false);
    const elapsed = performance.now() - start;
    clearInterval(timer);
    program.dispose();
    // Timers of 5 ms: a tenth of them is enough on a machine busy with other things.
    expect(ticks).toBeGreaterThan(elapsed / 50);
    expect(longest).toBeLessThan(elapsed / 2);
  });

  test('gives the time of every step when profiled', async () => {
    const { steps, arenaBytes } = longSteps(5);
    const program = new addon.Program(description(steps, [], arenaBytes));
    const start = performance.now();
    const times = await program.run([], true);
    const elapsed = performance.now() - start;
    expect(times).toHaveLength(5);
    const sum = [...(times ?? [])].reduce((a, b) => a + b, 0);
    expect(sum).toBeGreaterThan(0);
    expect(sum / 1e6).toBeLessThan(elapsed);
    program.dispose();
  });

  test('of no steps is done at once', async () => {
    const program = new addon.Program(description([]));
    expect(await program.run([], true)).toHaveLength(0);
    program.dispose();
  });

  test('that fails names program and step, and the next one succeeds', async () => {
    const program = new addon.Program({
      name: 'lookup',
      arenaBytes: 0,
      bufferBytes: [16, 4, 8],
      steps: [
        {
          kernel: kernelOf('embedding_forward').index,
          label: 'text.tokens',
          args: [view(0, 0, 2, 2), { ...view(1, 0, 1), dtype: 1 }, view(2, 0, 1, 2)],
        },
      ],
    });
    const [table, ids, y] = [bufferOf(1, 2, 3, 4), new addon.Buffer(4), bufferOf(0, 0)];
    ids.write(0, bytesOf(Int32Array.of(2)));
    const error: unknown = await program.run([table, ids, y], false).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(SiglipError);
    expect(error).toMatchObject({ code: 'ERR_ARGUMENT' });
    expect(String(error)).toContain("(in lookup, step 'text.tokens')");
    ids.write(0, bytesOf(Int32Array.of(1)));
    await program.run([table, ids, y], false);
    expect(await floatsOf(y)).toEqual([3, 4]);
    for (const buffer of [table, ids, y]) buffer.dispose();
    program.dispose();
  });
});

describe('life', () => {
  test('a disposed program refuses to run, and finishes what is queued', async () => {
    const { steps, arenaBytes } = longSteps(20);
    const program = new addon.Program(description(steps, [], arenaBytes));
    const run = program.run([], false);
    program.dispose();
    program.dispose();
    expect(await rejectionOf(program.run([], false))).toBe('ERR_DISPOSED');
    expect(await rejectionOf(run)).toBe('no error');
  });

  // In a process of its own, where no other test's programs are alive.
  test('programs share one arena of the size of the largest', () => {
    const { output } = runChild(`
      const addon = load();
      const arena = () => addon.memory().arenaBytes >> 20;
      const make = (mib) => new addon.Program({
        name: 'p', arenaBytes: mib << 20, bufferBytes: [], steps: [] });
      const sizes = [arena()];
      const [small, large] = [make(1), make(9)];
      sizes.push(arena());
      large.dispose();
      sizes.push(arena());
      small.dispose();
      sizes.push(arena());
      console.log(sizes.join());`);
    expect(output).toBe('0,9,1,0\n');
  });

  test('an arena no machine has is refused and leaves the others theirs', async () => {
    const { steps, arenaBytes } = longSteps(3);
    const program = new addon.Program(description(steps, [], arenaBytes));
    const { arenaBytes: before } = addon.memory();
    expect(codeOf(() => new addon.Program(description([], [], 2 ** 45)))).toBe('ERR_OUT_OF_MEMORY');
    expect(addon.memory().arenaBytes).toBe(before);
    expect(await rejectionOf(program.run([], false))).toBe('no error');
    program.dispose();
  });

  test('an arena may grow while a run is using it', async () => {
    const { steps, arenaBytes } = longSteps(30);
    const program = new addon.Program(description(steps, [], arenaBytes));
    const run = program.run([], false);
    const larger = new addon.Program(description([], [], 4 * arenaBytes));
    program.dispose();
    larger.dispose();
    expect(await rejectionOf(run)).toBe('no error');
  });
});

describe('refusals', () => {
  const x = view(0, 0, 2);
  const valid = (): ProgramDescription =>
    description([step('add_forward', x, x, view(-1, 0, 2))], [8], 8);
  const withArguments = (...args: unknown[]): unknown => ({
    ...valid(),
    steps: [{ kernel: kernelOf('add_forward').index, label: 'sum', args }],
  });
  const scratched = (scratch: unknown): unknown => ({
    ...description([], [64, 64], 1 << 20),
    steps: [
      {
        kernel: kernelOf('global_norm_forward').index,
        label: 'norm',
        args: [[view(0, 0, 16)], view(1, 0, 1), scratch],
      },
    ],
  });

  test('the description they start from is fine', () => {
    expect(
      codeOf(() => {
        new addon.Program(valid()).dispose();
      }),
    ).toBe('no error');
  });

  test.each<[string, string, unknown]>([
    ['ERR_ARGUMENT', 'nothing', undefined],
    ['ERR_ARGUMENT', 'a number', 5],
    ['ERR_ARGUMENT', 'no name', { ...valid(), name: undefined }],
    ['ERR_ARGUMENT', 'a negative arena', { ...valid(), arenaBytes: -1 }],
    ['ERR_ARGUMENT', 'an arena beyond reason', { ...valid(), arenaBytes: 2 ** 52 }],
    ['ERR_ARGUMENT', 'an arena of half a byte', { ...valid(), arenaBytes: 0.5 }],
    ['ERR_ARGUMENT', 'buffers that are no list', { ...valid(), bufferBytes: 8 }],
    ['ERR_ARGUMENT', 'a negative buffer', { ...valid(), bufferBytes: [-8] }],
    ['ERR_ARGUMENT', 'steps that are no list', { ...valid(), steps: {} }],
    ['ERR_ARGUMENT', 'an endless list', { ...valid(), steps: new Array(2 ** 32 - 1) }],
    ['ERR_ARGUMENT', 'a step that is null', { ...valid(), steps: [null] }],
    [
      'ERR_ARGUMENT',
      'a kernel that is missing',
      { ...valid(), steps: [{ kernel: 9999, label: '', args: [] }] },
    ],
    [
      'ERR_ARGUMENT',
      'a negative kernel',
      { ...valid(), steps: [{ kernel: -1, label: '', args: [] }] },
    ],
    [
      'ERR_ARGUMENT',
      'a label that is a number',
      { ...valid(), steps: [{ kernel: 0, label: 1, args: [] }] },
    ],
    ['ERR_ARGUMENT', 'too few arguments', withArguments(x, x)],
    ['ERR_ARGUMENT', 'too many arguments', withArguments(x, x, x, x)],
    ['ERR_ARGUMENT', 'a number for a view', withArguments(x, 1, x)],
    ['ERR_ARGUMENT', 'null for a view', withArguments(x, null, x)],
    ['ERR_ARGUMENT', 'a list for a view', withArguments(x, [x], x)],
    ['ERR_ARGUMENT', 'undefined for a view', withArguments(x, undefined, x)],
    ['ERR_ARGUMENT', 'a storage that is missing', withArguments(x, view(1, 0, 2), x)],
    ['ERR_ARGUMENT', 'a storage below the arena', withArguments(x, view(-2, 0, 2), x)],
    ['ERR_ARGUMENT', 'a view beyond its buffer', withArguments(x, view(0, 4, 2), x)],
    ['ERR_ARGUMENT', 'a view beyond the arena', withArguments(x, view(-1, 8, 2), x)],
    ['ERR_ARGUMENT', 'a view before its buffer', withArguments(x, view(0, -4, 2), x)],
    ['ERR_ARGUMENT', 'an offset inside an element', withArguments(x, view(0, 2, 1), x)],
    ['ERR_ARGUMENT', 'an offset that overflows', withArguments(x, view(0, 2 ** 53 - 1, 2), x)],
    ['ERR_DTYPE', 'an unknown dtype', withArguments(x, { ...x, dtype: 4 as never }, x)],
    ['ERR_SHAPE', 'no axes', withArguments(x, { ...x, shape: [] }, x)],
    ['ERR_ARGUMENT', 'seven axes', withArguments(x, { ...x, shape: [1, 1, 1, 1, 1, 1, 1] }, x)],
    ['ERR_SHAPE', 'an extent of zero', withArguments(x, view(0, 0, 0), x)],
    ['ERR_SHAPE', 'a negative extent', withArguments(x, view(0, 0, -2), x)],
    ['ERR_SHAPE', 'a product that overflows', withArguments(x, view(0, 0, 2 ** 40, 2 ** 40), x)],
    [
      'ERR_SHAPE',
      'a product that overflows to a small number',
      withArguments(x, view(0, 0, 2 ** 32, 2 ** 32, 2), x),
    ],
    ['ERR_ARGUMENT', 'an extent that is a text', withArguments(x, { ...x, shape: ['2'] }, x)],
    ['ERR_ARGUMENT', 'scratch that is left out', scratched(null)],
    [
      'ERR_ARGUMENT',
      'scratch that is too small',
      scratched({ storage: -1, offset: 0, dtype: 2, shape: [1] }),
    ],
    [
      'ERR_ARGUMENT',
      'scratch that is not aligned',
      scratched({ storage: -1, offset: 32, dtype: 2, shape: [1 << 16] }),
    ],
    ['ERR_ARGUMENT', 'scratch that is a number', scratched(64)],
  ])('%s for %s', (code, _, bad) => {
    expect(codeOf(() => new addon.Program(bad as ProgramDescription))).toBe(code);
  });

  test.each([1.5, Number.NaN, 2 ** 60, Number.POSITIVE_INFINITY, null])(
    '%p is no integer argument',
    (index) => {
      const bad = {
        ...description([], [64, 64]),
        steps: [
          {
            kernel: kernelOf('token_select_forward').index,
            label: '',
            args: [view(0, 0, 1, 4, 4), index, view(1, 0, 1, 4)],
          },
        ],
      };
      expect(codeOf(() => new addon.Program(bad))).toBe('ERR_ARGUMENT');
    },
  );

  test('an exception of a getter passes through', () => {
    const own = new RangeError('mine');
    const bad = {
      get name(): string {
        throw own;
      },
    };
    expect(() => new addon.Program(bad as ProgramDescription)).toThrow(own);
  });

  test('wrong buffers of a run', async () => {
    const program = new addon.Program(valid());
    const buffer = bufferOf(1, 2);
    const small = bufferOf(1);
    const gone = bufferOf(1, 2);
    gone.dispose();
    for (const [bad, code] of [
      [[], 'ERR_ARGUMENT'],
      [[buffer, buffer], 'ERR_ARGUMENT'],
      [[small], 'ERR_ARGUMENT'],
      [[gone], 'ERR_DISPOSED'],
      [[{}], 'ERR_ARGUMENT'],
      [[program], 'ERR_ARGUMENT'],
      [[Object.create(buffer)], 'ERR_ARGUMENT'],
      [undefined, 'ERR_ARGUMENT'],
      [new Array(2 ** 31), 'ERR_ARGUMENT'],
    ] as const) {
      expect(await rejectionOf(program.run(bad as never, false))).toBe(code);
    }
    expect(await rejectionOf(program.run([buffer], 'yes' as never))).toBe('ERR_ARGUMENT');
    expect(await rejectionOf(program.run([buffer], false))).toBe('no error');
    buffer.dispose();
    small.dispose();
    program.dispose();
  });

  test('of scratchBytes', () => {
    const norm = kernelOf('global_norm_forward').index;
    expect(addon.scratchBytes(norm, [[view(0, 0, 16)], view(0, 0, 1), null])).toBeGreaterThan(0);
    expect(addon.scratchBytes(kernelOf('fill').index, [1, view(0, 0, 1)])).toBe(0);
    expect(codeOf(() => addon.scratchBytes(norm, [[], view(0, 0, 1), null]))).toBe('ERR_ARGUMENT');
    expect(codeOf(() => addon.scratchBytes(norm, []))).toBe('ERR_ARGUMENT');
    expect(codeOf(() => addon.scratchBytes(-1, []))).toBe('ERR_ARGUMENT');
    expect(codeOf(() => addon.scratchBytes('x' as never, []))).toBe('ERR_ARGUMENT');
  });
});

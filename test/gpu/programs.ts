// What programs and arrays promise on a GPU: order, memory, errors, and an event loop that stays free.
import type { Device } from '../../lib/array';
import { DeviceArray } from '../../lib/array';
import { SiglipError } from '../../lib/errors';
import type { ComputeDType, Program, Spec, Tensor } from '../../lib/graph';
import { bfloat16, compile, disposeArrays, float32, gradient } from '../../lib/graph';
import { loadAddon } from '../../lib/native/load';
import { accumulate, cast, dot, gelu, matmul, repeatRow, scaleBy, sumRows } from '../../lib/ops';
import type { Figures, Runner } from './runner';
import { must, mustEqualBits } from './runner';

type Chain = Program<{ x: Spec; w: Spec }, { y: Tensor }>;

/** x multiplied by w and damped, a number of times. */
function chain(name: string, side: number, times: number, device: Device): Chain {
  return compile(
    name,
    ({ x, w }: { x: Tensor; w: Tensor }) => {
      let y = x;
      for (let i = 0; i < times; i++) y = scaleBy(matmul(y, w), 1 / side);
      return { y };
    },
    { x: float32(side, side), w: float32(side, side) },
    { device },
  );
}

function wave(count: number, step: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => Math.sin(i * step));
}

async function failureOf(work: () => unknown): Promise<SiglipError> {
  try {
    const result = await work();
    if (typeof result === 'object' && result !== null) disposeArrays(result);
  } catch (error) {
    if (error instanceof SiglipError) return error;
    throw error;
  }
  throw new Error('must fail');
}

function expectCode({ code, message }: SiglipError, wanted: string): void {
  must(code === wanted, () => `error must be ${wanted}, got ${code}: ${message}`);
}

/** Layers that are packed for the CPU's multiply-adds, whose kernels a GPU does not have. */
export function isPacked(kernel: string): boolean {
  return /^linear_(float32|bfloat16|int8)/.test(kernel);
}

/** In what a device computes. */
export function precisionsOf(device: Device): readonly ComputeDType[] {
  return device === 'cpu' ? ['float32'] : ['float32', 'bfloat16'];
}

/** @param device - where; @param memoryBytes - of the device, for what must not fit */
export function declarePrograms(runner: Runner, device: Device, memoryBytes: number): void {
  const group = runner.group('programs');

  group.test('every kernel has a form for GPUs', () => {
    if (device === 'cpu') return undefined;
    const without = loadAddon()
      .describe()
      .kernels.filter(({ name, cuda }) => !cuda && !isPacked(name));
    must(
      without.length === 0,
      () => `must be all, got none of ${without.map(({ name }) => name).join(', ')}`,
    );
    return undefined;
  });

  group.test('arrays come back as they were written', async () => {
    const arrays = {
      float32: wave(1_000_003, 0.37),
      int32: Int32Array.from({ length: 77 }, (_, i) => i * 1e6 - 5),
      uint8: Uint8Array.from({ length: 5000 }, (_, i) => i),
      bfloat16: Uint16Array.from({ length: 4099 }, (_, i) => i * 15),
    };
    for (const [dtype, data] of Object.entries(arrays)) {
      using array = DeviceArray.from(data, [data.length], device);
      mustEqualBits(dtype, { data: await array.read() }, { data });
      const other = data.slice().reverse();
      array.write(other);
      mustEqualBits(`${dtype} written`, { data: await array.read() }, { data: other });
    }
    using zeros = DeviceArray.zeros(float32(3, 1001), device);
    must(
      (await zeros.read()).every((value) => value === 0),
      () => 'zeros must be zeros',
    );
  });

  group.test('two programs and their data interleaved', async () => {
    const programs = [chain('first', 96, 3, device), chain('second', 200, 5, device)];
    const inputs = [96, 200].map((side) => ({
      x: wave(side * side, 0.011),
      w: wave(side * side, 0.017),
    }));
    const alone: Float32Array[] = [];
    for (const [i, program] of programs.entries()) {
      const { y } = await program.run(inputs[i]);
      alone.push((await y.read()) as Float32Array);
      y.dispose();
    }
    const runs = Array.from({ length: 12 }, (_, i) => programs[i % 2].run(inputs[i % 2]));
    for (const [i, run] of runs.entries()) {
      const { y } = await run;
      mustEqualBits(`run ${String(i)}`, { y: await y.read() }, { y: alone[i % 2] });
      y.dispose();
    }
    programs.forEach((program) => {
      program.dispose();
    });
  });

  group.test('inputs and programs disposed while runs are queued', async () => {
    const side = 256;
    const program = chain('queued', side, 8, device);
    const inputs = (): { x: DeviceArray; w: DeviceArray } => ({
      x: DeviceArray.from(wave(side * side, 0.011), [side, side], device),
      w: DeviceArray.from(wave(side * side, 0.017), [side, side], device),
    });
    const given = inputs();
    const { y } = await program.run(given);
    const wanted = await y.read();
    const runs = Array.from({ length: 6 }, () => {
      const own = inputs();
      const run = program.run(own);
      disposeArrays(own);
      return run;
    });
    program.dispose();
    for (const run of runs) {
      const outputs = await run;
      mustEqualBits('after dispose', { y: await outputs.y.read() }, { y: wanted });
      disposeArrays(outputs);
    }
    expectCode(await failureOf(() => program.run(given)), 'ERR_DISPOSED');
    disposeArrays({ ...given, y });
  });

  group.test('memory is given back', async () => {
    const before = JSON.stringify(loadAddon().memory());
    const program = chain('memory', 128, 2, device);
    const { y } = await program.run({ x: wave(128 * 128, 0.1), w: wave(128 * 128, 0.2) });
    await y.read();
    y.dispose();
    program.dispose();
    const after = JSON.stringify(loadAddon().memory());
    must(after === before, () => `memory must be ${before}, got ${after}`);
  });

  group.test('too large an array is ERR_OUT_OF_MEMORY, and work goes on', async () => {
    const floats = Math.ceil(memoryBytes / 4 / 1024) * 1024 * 2;
    const error = await failureOf(() =>
      DeviceArray.zeros({ dtype: 'float32', shape: [1024, floats / 1024] }, device),
    );
    expectCode(error, 'ERR_OUT_OF_MEMORY');
    const program = chain('after', 64, 1, device);
    disposeArrays(await program.run({ x: wave(4096, 0.1), w: wave(4096, 0.2) }));
    program.dispose();
  });

  group.test('too large an arena is ERR_OUT_OF_MEMORY, and work goes on', async () => {
    const width = 1 << 16;
    const rows = Math.ceil((2 * memoryBytes) / 4 / width);
    const error = await failureOf(async () => {
      const program = compile(
        'too large',
        ({ row }: { row: Tensor }) => ({ y: sumRows(gelu(repeatRow(row, rows))) }),
        { row: float32(width) },
        { device },
      );
      try {
        return await program.run({ row: wave(width, 0.1) });
      } finally {
        program.dispose();
      }
    });
    expectCode(error, 'ERR_OUT_OF_MEMORY');
    const program = chain('after', 64, 1, device);
    disposeArrays(await program.run({ x: wave(4096, 0.1), w: wave(4096, 0.2) }));
    program.dispose();
  });

  group.test('arrays of another device are refused', async () => {
    if (device === 'cpu') return;
    const program = chain('devices', 8, 1, device);
    using x = DeviceArray.from(wave(64, 0.1), [8, 8]);
    const error = await failureOf(() => program.run({ x, w: wave(64, 0.2) }));
    must(error.code.startsWith('ERR_'), () => 'must fail with a code');
    program.dispose();
  });

  group.test('donated arrays are updated in place, run after run', async () => {
    const program = compile(
      'donated',
      ({ sum, x }: { sum: Tensor; x: Tensor }) => ({ sum: accumulate(sum, x) }),
      { sum: float32(1000), x: float32(1000) },
      { device, donate: ['sum'] },
    );
    const x = wave(1000, 0.3);
    using sum = DeviceArray.from(new Float32Array(1000), [1000], device);
    for (let i = 0; i < 4; i++) await program.run({ sum, x });
    const wanted = x.map((value) => value + value + value + value);
    mustEqualBits('sum', { sum: await sum.read() }, { sum: wanted });
    program.dispose();
  });

  group.test('the event loop is free during a run', async (): Promise<Figures> => {
    const big = device !== 'cpu';
    const side = big ? 4096 : 512;
    const program = chain('long', side, big ? 200 : 20, device);
    const x = DeviceArray.from(wave(side * side, 0.011), [side, side], device);
    const w = DeviceArray.from(wave(side * side, 0.017), [side, side], device);
    let [ticks, longest, last] = [0, 0, performance.now()];
    const timer = setInterval(() => {
      ticks++;
      longest = Math.max(longest, performance.now() - last);
      last = performance.now();
    }, 1);
    const start = performance.now();
    last = start;
    const { y } = await program.run({ x, w });
    clearInterval(timer);
    const milliseconds = performance.now() - start;
    disposeArrays({ x, w, y });
    program.dispose();
    must(
      longest < Math.max(20, 0.2 * milliseconds) && ticks > milliseconds / 20,
      () =>
        `timers must fire during ${milliseconds.toFixed(0)} ms, got ${String(ticks)} with a gap of ${longest.toFixed(0)} ms`,
    );
    return { milliseconds, ticks, longest };
  });

  group.test('an aborted wait and errors of a run leave the device usable', async () => {
    const program = chain('wrong', 64, 1, device);
    const error = await failureOf(() => program.run({ x: wave(63, 0.1), w: wave(4096, 0.2) }));
    expectCode(error, 'ERR_SHAPE');
    disposeArrays(await program.run({ x: wave(4096, 0.1), w: wave(4096, 0.2) }));
    program.dispose();
  });

  // More than 2^31 elements in one tensor: what indexes with 32 bits reads and writes elsewhere.
  for (const precision of precisionsOf(device)) {
    const name = `tensors of more than 2^31 elements, ${precision}`;
    const [width, rows] = [1 << 16, (1 << 15) + 64];
    if (memoryBytes < 3 * 4 * width * rows) {
      group.skip(name, 'the device has too little memory');
      continue;
    }
    group.test(name, async () => {
      const program = compile(
        'large',
        ({ row }: { row: Tensor }) => {
          const y = gelu(repeatRow(row, rows));
          return { sum: sumRows(y), gradient: gradient(dot(sumRows(y), row), { row }).row };
        },
        { row: float32(width) },
        { device, precision },
      );
      const row = wave(width, 0.001);
      const outputs = await program.run({ row });
      const sum = await outputs.sum.read();
      const small = compile(
        'small',
        (inputs: { row: Tensor }) => ({ y: gelu(repeatRow(inputs.row, 1)) }),
        { row: float32(width) },
        { device, precision },
      );
      const { y } = await small.run({ row });
      const one = await y.read();
      one.forEach((value, i) => {
        const wanted = value * rows;
        must(
          Math.abs(sum[i] - wanted) <= 1e-3 * Math.abs(wanted) + 1e-3,
          () => `sum[${String(i)}] must be ${String(wanted)}, got ${String(sum[i])}`,
        );
      });
      const slope = await outputs.gradient.read();
      must(
        slope.every((value) => Number.isFinite(value)),
        () => 'the gradient must be finite',
      );
      disposeArrays({ ...outputs, y });
      program.dispose();
      small.dispose();
    });
  }

  group.test('bfloat16 arrays as inputs of programs', async () => {
    const program = compile(
      'narrow',
      ({ x }: { x: Tensor }) => ({ y: cast(x, 'float32') }),
      { x: bfloat16(1001) },
      { device },
    );
    // Some finite numbers: the upper halves of floats.
    const halves = Uint16Array.from(wave(1001, 0.7), (value) => {
      const bits = new Uint32Array(Float32Array.of(value).buffer);
      return bits[0] >>> 16;
    });
    const { y } = await program.run({ x: halves });
    const wanted = Float32Array.from(
      halves,
      (half) => new Float32Array(Uint32Array.of(half << 16).buffer)[0],
    );
    mustEqualBits('y', { y: await y.read() }, { y: wanted });
    disposeArrays({ y });
    program.dispose();
  });

  group.test('no array is left alive', () => {
    const memory = loadAddon().memory();
    const { buffers, bufferBytes } = device === 'cpu' ? memory : memory.cuda;
    must(
      buffers === 0 && bufferBytes === 0,
      () => `must be none, got ${String(buffers)} of ${String(bufferBytes)} bytes`,
    );
    return undefined;
  });
}

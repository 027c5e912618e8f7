import { availableParallelism } from 'node:os';
import { SiglipError } from '../../lib/errors';
import { loadAddon } from '../../lib/native/load';
import { prelude, runChild } from './child';
import { codeOf } from './steps';

const addon = loadAddon();

describe('description', () => {
  test('tells the instruction set and the threads', () => {
    const { isa, threads } = addon.describe();
    expect(['generic', 'avx2', 'avx512']).toContain(isa);
    expect(threads).toBeGreaterThanOrEqual(1);
    expect(threads).toBeLessThanOrEqual(1024);
  });

  test('SIGLIP2_THREADS and SIGLIP2_ISA choose', () => {
    const { output } = runChild(
      `const { isa, threads } = load().describe(); console.log(isa, threads)`,
      { SIGLIP2_ISA: 'generic', SIGLIP2_THREADS: '3' },
    );
    expect(output).toBe('generic 3\n');
  });

  test.each([
    [{ SIGLIP2_ISA: 'avx1024' }, 'SIGLIP2_ISA must be generic, avx2 or avx512, got avx1024'],
    [
      { SIGLIP2_ISA: 'generic,nofma' },
      'a feature in SIGLIP2_ISA must be novnni, nobf16 or noamx, got nofma',
    ],
    [{ SIGLIP2_THREADS: '0' }, 'SIGLIP2_THREADS must be a whole number from 1 to 1024, got 0'],
    [
      { SIGLIP2_THREADS: 'many' },
      'SIGLIP2_THREADS must be a whole number from 1 to 1024, got many',
    ],
  ])('%p is refused when the addon is handed its error class', (env, message) => {
    const { output } = runChild(
      `try { load() } catch (e) { console.log(e instanceof SiglipError, e.code, e.message) }`,
      env,
    );
    expect(output).toBe(`true ERR_ARGUMENT cpu: ${message}\n`);
  });

  const { isa } = addon.describe();
  // What is in use here may be less than what there is.
  const widest = runChild('console.log(load().describe().isa)', { SIGLIP2_ISA: '' }).output.trim();
  (widest === 'avx512' ? test.skip : test)(
    'an instruction set the machine lacks is refused',
    () => {
      const { output } = runChild(`try { load() } catch (e) { console.log(e.code, e.message) }`, {
        SIGLIP2_ISA: 'avx512',
      });
      expect(output).toMatch(/^ERR_ARGUMENT cpu: SIGLIP2_ISA must be at most \w+ on this machine/);
    },
  );

  test('SIGLIP2_ISA switches features off', () => {
    const { output } = runChild(
      `const { isa, features } = load().describe(); console.log(isa, features.length)`,
      { SIGLIP2_ISA: `${isa},novnni,nobf16,noamx` },
    );
    expect(output).toBe(`${isa} 0\n`);
  });

  test('the peak is that of a machine', () => {
    // 100 MFLOP/s to 4 TFLOP/s and core.
    for (const precision of [undefined, 'float32', 'int8', 'bfloat16'] as const) {
      const peak = addon.peak(0.05, precision);
      expect(peak).toBeGreaterThan(1e8);
      expect(peak).toBeLessThan(4e12 * availableParallelism());
    }
    expect(codeOf(() => addon.peak(0.05, 'float16' as 'float32'))).toBe('ERR_ARGUMENT');
    for (const seconds of [0, -1, NaN, 1e9, '1', undefined]) {
      expect(codeOf(() => addon.peak(seconds as number))).toBe('ERR_ARGUMENT');
    }
  });
});

describe('errors', () => {
  test('are of the class handed over last', () => {
    const { output } = runChild(`
      const addon = load();
      class Other extends Error { constructor(code, message) { super(message); this.code = code; } }
      const thrown = () => { try { new addon.Buffer(-1) } catch (e) { return e } };
      console.log(thrown() instanceof SiglipError);
      addon.initialize(Other);
      console.log(thrown() instanceof Other, thrown().stack.includes('at thrown'));`);
    expect(output).toBe('true\ntrue true\n');
  });

  test('carry a code even before a class is handed over', () => {
    const { output } = runChild(`
      const addon = require(process.env.SIGLIP2_TEST_ADDON);
      try { new addon.Buffer(-1) } catch (e) { console.log(e instanceof Error, e.code) }`);
    expect(output).toBe('true ERR_ARGUMENT\n');
  });

  test('the class must be one', () => {
    expect(
      codeOf(() => {
        addon.initialize(5 as never);
      }),
    ).toBe('ERR_ARGUMENT');
    expect(() => {
      addon.initialize(undefined as never);
    }).toThrow(SiglipError);
  });
});

describe('the number of threads', () => {
  test('does not change a bit of the results', () => {
    const script = `
      const addon = load();
      const [rows, width] = [700, 96];
      const x = new Float32Array(rows * width).map((_, i) => Math.sin(i * i));
      const buffers = [x.byteLength, x.byteLength, 4 * rows, 4].map((n) => new addon.Buffer(n));
      buffers[0].write(0, new Uint8Array(x.buffer));
      const norm = index(addon, 'global_norm_forward');
      const args = [[view(0, 0, rows, width)], view(3, 0, 1), null];
      const bytes = addon.scratchBytes(norm, args);
      args[2] = { storage: -1, offset: 0, dtype: 2, shape: [bytes] };
      const program = new addon.Program({
        name: 'p', arenaBytes: bytes, bufferBytes: buffers.map((b) => b.bytes),
        steps: [
          { kernel: index(addon, 'l2_normalize_forward'), label: 'n',
            args: [view(0, 0, rows, width), 1e-6, view(1, 0, rows, width), view(2, 0, rows)] },
          { kernel: norm, label: 'g', args },
        ],
      });
      program.run(buffers, false).then(async () => {
        const hash = require('node:crypto').createHash('sha256');
        for (const buffer of buffers.slice(1)) {
          const bytes = new Uint8Array(buffer.bytes);
          await buffer.read(0, bytes);
          hash.update(bytes);
        }
        console.log(hash.digest('hex'));
      });`;
    const digests = ['1', '2', '3', '7'].map(
      (threads) => runChild(script, { SIGLIP2_THREADS: threads }).output,
    );
    expect(digests[0]).toMatch(/^[0-9a-f]{64}\n$/);
    expect(new Set(digests).size).toBe(1);
  });
});

describe('the end of the process', () => {
  test('comes by itself when nothing is pending', () => {
    const { status, signal, milliseconds } = runChild(`
      const addon = load();
      globalThis.kept = [new addon.Buffer(1 << 20), long(addon, 1)];
      kept[1].run([], false);`);
    expect({ status, signal }).toEqual({ status: 0, signal: null });
    expect(milliseconds).toBeLessThan(20_000);
  });

  test('waits for a run that is pending', () => {
    const { status, output } = runChild(`
      const addon = load();
      long(addon, 50).run([], false).then(() => console.log('done'));`);
    expect({ status, output }).toEqual({ status: 0, output: 'done\n' });
  });

  test.each([
    ['process.exit', `process.exit(7)`, 7, null],
    ['an uncaught error', `throw new Error('mine')`, 1, null],
    ['a signal', `process.kill(process.pid, 'SIGTERM')`, null, 'SIGTERM'],
  ])('by %s cuts a pending run short', (_, end, expectedStatus, expectedSignal) => {
    const { status, signal, milliseconds } = runChild(`
      const addon = load();
      const program = long(addon, 20000);
      for (let i = 0; i < 10; i++) program.run([], false);
      setTimeout(() => { ${end} }, 100);`);
    expect({ status, signal }).toEqual({ status: expectedStatus, signal: expectedSignal });
    // The runs together would take minutes.
    expect(milliseconds).toBeLessThan(20_000);
  });
});

describe('worker threads', () => {
  // Each runs the script in `source` as a worker with the prelude.
  const main = (source: string, rest: string): string => `
    const { Worker } = require('node:worker_threads');
    const source = ${JSON.stringify(prelude + source)};
    const start = () => new Worker(source, { eval: true });
    ${rest}`;
  const add = `
    const { parentPort } = require('node:worker_threads');
    const addon = load();
    const b = new addon.Buffer(4);
    b.write(0, new Uint8Array(Float32Array.of(21).buffer));
    const v = view(0, 0, 1);
    new addon.Program({ name: 'w', arenaBytes: 0, bufferBytes: [4], steps: [
      { kernel: index(addon, 'add_forward'), label: 's', args: [v, v, v] }] })
      .run([b], false)
      .then(async () => {
        const into = new Float32Array(1);
        await b.read(0, new Uint8Array(into.buffer));
        parentPort.postMessage(into[0]);
      });`;

  test('have an environment of their own', () => {
    const { status, output } = runChild(
      main(
        add,
        `load();
        const answers = [];
        let ended = 0;
        for (let i = 0; i < 4; i++) {
          const worker = start();
          worker.on('message', (m) => answers.push(m));
          worker.on('exit', () => { if (++ended === 4) console.log(answers.join()); });
        }`,
      ),
    );
    expect({ status, output }).toEqual({ status: 0, output: '42,42,42,42\n' });
  });

  test('may be the only ones, one after the other', () => {
    const { status, output } = runChild(
      main(
        add,
        `(async () => {
          for (let i = 0; i < 5; i++) {
            const worker = start();
            worker.on('message', (m) => console.log(m));
            await new Promise((resolve) => worker.on('exit', resolve));
          }
        })();`,
      ),
    );
    expect({ status, output }).toEqual({ status: 0, output: '42\n'.repeat(5) });
  });

  test.each(['', 'load();'])('may be terminated with runs pending (main: %p)', (inMain) => {
    const { status, output, milliseconds } = runChild(
      main(
        `const addon = load();
        const program = long(addon, 20000);
        for (let i = 0; i < 10; i++) program.run([], false);
        new addon.Buffer(1 << 22).read(0, new Uint8Array(1 << 22));
        require('node:worker_threads').parentPort.postMessage('up');`,
        `${inMain}
        (async () => {
          for (let i = 0; i < 3; i++) {
            const worker = start();
            await new Promise((resolve) => worker.on('message', resolve));
            await worker.terminate();
          }
          console.log('over');
        })();`,
      ),
    );
    expect({ status, output }).toEqual({ status: 0, output: 'over\n' });
    expect(milliseconds).toBeLessThan(30_000);
  });

  test('may be running when the process exits', () => {
    const { status, signal } = runChild(
      main(
        `const addon = load();
        long(addon, 20000).run([], false);
        require('node:worker_threads').parentPort.postMessage('up');`,
        `load();
        start().on('message', () => process.exit(3));`,
      ),
    );
    expect({ status, signal }).toEqual({ status: 3, signal: null });
  });
});

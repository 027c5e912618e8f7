// Where the time of one image goes between the caller and the device, with random weights:
//
//   node -r ./test/typescript.js bench/gpu_stages.ts [--device cuda] [--model B/16] [--size 224]
//
// Medians of microseconds, with and without recorded graphs, each in a process of its own.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import type { Device } from '../lib/array';
import { DeviceArray } from '../lib/array';
import { Siglip2 } from '../lib/embed';
import type { Spec, Tensor } from '../lib/graph';
import { disposeArrays, Program } from '../lib/graph';
import type { ModelConfig, VariantName } from '../lib/model';
import { variant } from '../lib/model';
import type { Addon, NativeProgram } from '../lib/native/addon';
import { loadAddon } from '../lib/native/load';
import type { Precision } from '../lib/ops';
import { writeModel } from './gpu_ours';
import { median } from './measure';

interface Choice {
  readonly device: Device;
  readonly precision: Precision;
  readonly model: string;
  readonly size: number;
}

type Medians = Record<string, number>;

const warmups = 20;
const calls = 300;
const spacedCalls = 60;
const gapMilliseconds = 5;

// ---- Marks on the way of a call ----

let marks: Medians = {};

/** Adds up the time of a method's calls; notes when the last was over, and its promise settled. */
function observe<K extends string>(
  target: Record<K, (...args: never[]) => unknown>,
  method: K,
): void {
  const original = target[method];
  target[method] = function observed(this: unknown, ...args: never[]): unknown {
    const begin = performance.now();
    const result = original.apply(this, args);
    const end = performance.now();
    const seen = marks;
    seen[method] = (seen[method] ?? 0) + end - begin;
    seen[`${method} over`] = end;
    if (result instanceof Promise) {
      void result.then(() => {
        seen[`${method} settled`] = performance.now();
      });
    }
    return result;
  };
}

/** Programs that are made from now on are observed. */
function observePrograms(addon: { Program: Addon['Program'] }): void {
  const Native = addon.Program;
  addon.Program = function make(...args: ConstructorParameters<typeof Native>): NativeProgram {
    const native = new Native(...args);
    const observed: NativeProgram = {
      bind: (...given) => {
        native.bind(...given);
      },
      run: (...given) => native.run(...given),
      dispose: () => {
        native.dispose();
      },
    };
    observe(observed, 'run');
    return observed;
  } as unknown as typeof Native;
}

type Images = Program<{ images: { images: Spec } }, { raw: Tensor; normalized: Tensor }>;

/** The program of the tower, caught when it is used. */
function catchProgram(): { program?: Images } {
  const caught: { program?: Images } = {};
  const prototype = Program.prototype as unknown as Record<
    'read',
    (this: Images, ...args: never[]) => unknown
  >;
  const { read } = prototype;
  prototype.read = function caughtRead(...args) {
    caught.program = this;
    return read.apply(this, args);
  };
  return caught;
}

// ---- One process ----

async function measureStages(folder: string, choice: Choice): Promise<Medians> {
  const { device, precision, size } = choice;
  const caught = catchProgram();
  const addon = loadAddon();
  observe(addon, 'firstNotFinite');
  observe(DeviceArray.prototype, 'overwrite');
  observe(DeviceArray.prototype, 'read');
  observePrograms(addon);
  const model = await Siglip2.load(folder, { device, precision, towers: 'vision' });
  const pixelValues = Float32Array.from({ length: 3 * size * size }, (_, i) => Math.sin(i));
  const once = async (): Promise<Medians> => {
    marks = {};
    const begin = performance.now();
    await model.embedImages([{ pixelValues }]);
    const end = performance.now();
    const { firstNotFinite, overwrite } = marks;
    const queued = marks['read over'];
    return {
      'whole call': end - begin,
      'pixels checked meanwhile': firstNotFinite,
      'copied for the device': overwrite,
      'copied after': marks['overwrite over'] - begin,
      'run queued after': marks['run over'] - begin,
      'all queued after': queued - begin,
      'then until the run was told': marks['run settled'] - queued,
      'then until the read was told': marks['read settled'] - queued,
      'then until the caller went on': end - queued,
    };
  };
  for (let i = 0; i < warmups; i++) await once();
  const rows: Medians[] = [];
  for (let i = 0; i < calls; i++) rows.push(await once());
  const spaced: number[] = [];
  for (let i = 0; i < spacedCalls; i++) {
    await sleep(gapMilliseconds);
    spaced.push((await once())['whole call']);
  }
  const medians = mediansOf(rows);
  medians[`whole call, ${String(gapMilliseconds)} ms after the last`] = 1000 * median(spaced);
  const { program } = caught;
  if (program !== undefined)
    Object.assign(medians, await programTimes(program, pixelValues, choice));
  model.dispose();
  return medians;
}

function mediansOf(rows: readonly Medians[]): Medians {
  return Object.fromEntries(
    Object.keys(rows[0]).map((key) => [key, 1000 * median(rows.map((row) => row[key]))]),
  );
}

/** Runs that follow one another on the device, and the sum of the steps of a profiled one. */
async function programTimes(
  program: Images,
  pixelValues: Float32Array,
  { device, size }: Choice,
): Promise<Medians> {
  using images = DeviceArray.from(pixelValues, [1, 3, size, size], device);
  const inputs = { images: { images } };
  const run = async (): Promise<void> => {
    disposeArrays(await program.run(inputs));
  };
  const queue = async (count: number): Promise<void> => {
    const queued: Promise<void>[] = [];
    for (let i = 0; i < count; i++) {
      queued.push(run());
      if (i >= 3) await queued[i - 3];
    }
    await Promise.all(queued);
  };
  await queue(warmups);
  const begin = performance.now();
  await queue(calls);
  const apart = (performance.now() - begin) / calls;
  const profiles: number[] = [];
  for (let i = 0; i < 9; i++) {
    const { outputs, times } = await program.profile(inputs);
    disposeArrays(outputs);
    profiles.push(times.reduce((sum, { nanoseconds }) => sum + nanoseconds, 0) / 1000);
  }
  return {
    'runs queued ahead, each': 1000 * apart,
    'steps of a profiled run, sum': median(profiles),
  };
}

// ---- Both ----

function readChoice(): Choice & { folder: string } {
  const { values } = parseArgs({
    options: {
      device: { type: 'string', default: 'cuda' },
      precision: { type: 'string', default: 'bfloat16' },
      model: { type: 'string', default: 'B/16' },
      size: { type: 'string', default: '224' },
      folder: { type: 'string', default: '' },
    },
  });
  return { ...values, size: Number(values.size) } as Choice & { folder: string };
}

/** `tiny`: hardly any arithmetic, so that what is left is the way of the call. */
function configOf({ model, size }: Choice): ModelConfig {
  if (model !== 'tiny') return variant(model as VariantName, { imageSize: size });
  const config = variant('B/16', { imageSize: size });
  const least = { width: 64, depth: 1, mlpWidth: 64, heads: 1, patch: size / 2, positions: 4 };
  return { ...config, embedding: 64, vision: { ...config.vision, ...least } };
}

async function main(): Promise<void> {
  const choice = readChoice();
  if (choice.folder !== '') {
    process.stdout.write(JSON.stringify(await measureStages(choice.folder, choice)));
    return;
  }
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-bench-'));
  try {
    await writeModel(folder, configOf(choice));
    const inProcess = (graphs: '0' | '1'): Medians => {
      const args = ['-r', './test/typescript.js', __filename, '--folder', folder];
      for (const name of ['device', 'precision', 'model', 'size'] as const) {
        args.push(`--${name}`, String(choice[name]));
      }
      const env = { ...process.env, SIGLIP2_CUDA_GRAPHS: graphs };
      return JSON.parse(execFileSync(process.execPath, args, { env, encoding: 'utf8' })) as Medians;
    };
    const replayed = inProcess('1');
    const called = choice.device === 'cpu' ? undefined : inProcess('0');
    for (const [name, value] of Object.entries(replayed)) {
      const other = called === undefined ? '' : `, without graphs ${called[name].toFixed(0)}`;
      process.stdout.write(`${name}: ${value.toFixed(0)} µs${other}\n`);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

void main();

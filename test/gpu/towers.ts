// Towers and training on a GPU: bfloat16 against float32, a GPU against the CPU, the same bits again.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Device, DeviceArray } from '../../lib/array';
import { Philox4x32 } from '../../lib/array/random';
import type { Batch, Stream } from '../../lib/data';
import { BatchStream, PairSource, pairTable } from '../../lib/data';
import { Siglip2 } from '../../lib/embed';
import type { ComputeDType } from '../../lib/graph';
import { flatten } from '../../lib/graph';
import type { ModelConfig } from '../../lib/model';
import { initialize, variant } from '../../lib/model';
import type { StepMetrics } from '../../lib/train';
import { defaultOptimizer, pairObjective, readMetrics, Trainer } from '../../lib/train';
import { saveCheckpoint } from '../../lib/weights';
import { precisionsOf } from './programs';
import type { Figures, Runner } from './runner';
import { must, mustEqualBits } from './runner';

const LEAST_COSINE = 0.9999;

function noise(count: number, seed: number): Float32Array {
  const values = new Float32Array(count);
  new Philox4x32(seed, 'gpu test').fillUniform(values, -1, 1);
  return values;
}

function cosine(a: Float32Array, b: Float32Array): number {
  let [ab, aa, bb] = [0, 0, 0];
  a.forEach((value, i) => {
    ab += value * b[i];
    aa += value * value;
    bb += b[i] * b[i];
  });
  return ab / Math.sqrt(aa * bb);
}

/** Work with a folder that is there meanwhile. */
export async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-gpu-'));
  try {
    return await work(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Shapes of the released towers with few blocks, so that writing and loading them is quick. */
const models: Readonly<Record<string, ModelConfig>> = {
  'B/16-224': shallow(variant('B/16', { imageSize: 224, vocabulary: 1000 })),
  'So400m/14-224': shallow(variant('So400m/14', { imageSize: 224, vocabulary: 1000 })),
  'g-opt/16-256': shallow(variant('g-opt/16', { imageSize: 256, vocabulary: 1000 }), 1),
  'NaFlex B/16': shallow(variant('B/16', { layout: 'naflex', vocabulary: 1000 })),
};

function shallow(config: ModelConfig, depth = 2): ModelConfig {
  const { vision, text } = config;
  return { ...config, vision: { ...vision, depth }, text: { ...text, depth } };
}

type Inputs = Parameters<Siglip2['embedImages']>[0];

function picturesOf({ vision }: ModelConfig): Inputs {
  return Array.from({ length: 5 }, (_, i) => {
    if (vision.layout === 'fixed') {
      return { pixelValues: noise(3 * vision.imageSize ** 2, i) };
    }
    const [rows, columns] = [
      [16, 16],
      [10, 25],
      [7, 9],
      [20, 12],
      [1, 30],
    ][i];
    return {
      pixelValues: noise(rows * columns * 3 * vision.patch ** 2, i),
      spatialShape: [rows, columns] as const,
    };
  });
}

function textsOf({ text }: ModelConfig): { inputIds: Int32Array }[] {
  return Array.from({ length: 5 }, (_, i) => ({
    inputIds: Int32Array.from(
      { length: text.length },
      (__, j) => (i * 131 + j * 7) % text.vocabulary,
    ),
  }));
}

async function embeddings(
  folder: string,
  device: Device,
  precision: ComputeDType,
): Promise<Float32Array[]> {
  const model = await Siglip2.load(folder, { device, precision });
  try {
    const { config } = model;
    const all = async (): Promise<Float32Array[]> => [
      ...(await model.embedImages(picturesOf(config), { batchSize: 3 })),
      ...(await model.embedTexts(textsOf(config), { batchSize: 3 })),
    ];
    const first = await all();
    const again = await all();
    first.forEach((vector, i) => {
      mustEqualBits(`embedding ${String(i)}`, { again: again[i] }, { again: vector });
    });
    return first;
  } finally {
    model.dispose();
  }
}

function declareEmbedding(runner: Runner, device: Device): void {
  const group = runner.group('towers');
  for (const [name, config] of Object.entries(models)) {
    group.test(`${name}: as the CPU in float32, close in bfloat16`, () =>
      inFolder(async (folder): Promise<Figures> => {
        await saveCheckpoint(folder, { config, parameters: initialize(config, 7) });
        const wanted = await embeddings(folder, 'cpu', 'float32');
        const same = await embeddings(folder, device, 'float32');
        let difference = 0;
        wanted.forEach((vector, i) => {
          vector.forEach((value, d) => {
            difference = Math.max(difference, Math.abs(value - same[i][d]));
          });
        });
        must(difference < 2e-5, () => `float32 must be within 2e-5, got ${String(difference)}`);
        if (device === 'cpu') return { difference };
        const narrow = await embeddings(folder, device, 'bfloat16');
        const cosines = wanted.map((vector, i) => cosine(vector, narrow[i]));
        const least = Math.min(...cosines);
        must(
          least >= LEAST_COSINE,
          () => `cosine must be at least ${String(LEAST_COSINE)}, got ${String(least)}`,
        );
        return { difference, cosine: least };
      }),
    );
  }
}

// ---- Training ----

const steps = 20;
const trained = variant('S/16', { imageSize: 64, vocabulary: 400, length: 16 });
const small: ModelConfig = shallow(trained, 2);
const pairs = 16;

function stream(batch: number): Stream<Batch> {
  const random = new Philox4x32(3, 'gpu training');
  const count = 64;
  const { vision, text } = small;
  const size = vision.layout === 'fixed' ? vision.imageSize : 0;
  const table = pairTable({
    name: 'noise',
    size,
    pixels: Uint8Array.from({ length: count * size * size * 3 }, () => random.integer(256)),
    concepts: Int32Array.from({ length: count }, (_, i) => i),
    texts: Array.from({ length: count }, (_, i) => [{ text: `text ${String(i)}`, weight: 1 }]),
    tokenize: (all) =>
      Int32Array.from({ length: all.length * text.length }, () => random.integer(text.vocabulary)),
  });
  return new BatchStream(new PairSource(table), { batch, seed: 5, augment: {} });
}

interface Training {
  readonly losses: readonly number[];
  readonly parameters: Readonly<Record<string, ArrayLike<number>>>;
}

async function training(
  device: Device,
  precision: ComputeDType,
  options: { readonly microBatches?: number; readonly stopAt?: number; folder?: string } = {},
): Promise<Training> {
  const { microBatches = 1 } = options;
  const batch = pairs / microBatches;
  const run = async (folder: string): Promise<Training> => {
    const trainer = await Trainer.start(
      {
        objective: pairObjective({
          model: small,
          batch,
          pixelTable: Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2),
        }),
        folder,
        device,
        precision,
        microBatches,
        schedule: { totalSteps: steps, warmupSteps: 2 },
        optimizer: { ...defaultOptimizer, learningRate: 1e-3 },
        seed: 1,
      },
      stream(batch),
    );
    try {
      const stop = new AbortController();
      await trainer.train({
        signal: stop.signal,
        onStep: ({ step }) => {
          if (step === options.stopAt) stop.abort();
        },
      });
      const parameters: Record<string, ArrayLike<number>> = {};
      for (const { path, leaf } of flatten(trainer.parameters)) {
        parameters[path] = await (leaf as DeviceArray).read();
      }
      const metrics: readonly StepMetrics[] = readMetrics(join(folder, 'metrics.jsonl'));
      return { losses: metrics.map(({ loss }) => loss), parameters };
    } finally {
      trainer.dispose();
    }
  };
  return options.folder === undefined ? inFolder(run) : run(options.folder);
}

function largestGap(a: readonly number[], b: readonly number[]): number {
  return Math.max(...a.map((value, i) => Math.abs(value - b[i])));
}

function mustBeSame(what: string, actual: Training, expected: Training): void {
  mustEqualBits(what, { losses: actual.losses }, { losses: expected.losses });
  mustEqualBits(what, actual.parameters, expected.parameters);
}

function declareTraining(
  runner: Runner,
  device: Device,
  precisions: readonly ComputeDType[],
): void {
  const group = runner.group('training');
  const runs = new Map<ComputeDType, Promise<Training>>();
  const once = (precision: ComputeDType): Promise<Training> => {
    const known = runs.get(precision) ?? training(device, precision);
    runs.set(precision, known);
    return known;
  };
  group.test('twenty steps in float32 are those of the CPU', async (): Promise<Figures> => {
    const [ours, cpu] = [await once('float32'), await training('cpu', 'float32')];
    must(ours.losses.length === steps, () => `must log ${String(steps)} steps`);
    const gap = largestGap(ours.losses, cpu.losses);
    must(gap < 1e-3, () => `losses must be within 1e-3, got ${String(gap)}`);
    let difference = 0;
    for (const [path, values] of Object.entries(cpu.parameters)) {
      // The exact gradient of a key's bias is zero: Adam follows rounding noise there.
      if (path.endsWith('.key.bias')) continue;
      for (let i = 0; i < values.length; i++) {
        difference = Math.max(difference, Math.abs(values[i] - ours.parameters[path][i]));
      }
    }
    must(difference < 2e-3, () => `weights must be within 2e-3, got ${String(difference)}`);
    return { gap, difference };
  });
  for (const precision of precisions) {
    group.test(`${precision}: learns, and repeats bit for bit`, async (): Promise<Figures> => {
      const first = await once(precision);
      const [start, end] = [first.losses[0], first.losses[steps - 1]];
      must(end < start, () => `loss must fall, got ${String(start)} to ${String(end)}`);
      mustBeSame('again', await training(device, precision), first);
      return { start, end };
    });
    group.test(`${precision}: resumed in the middle it gives the same bits`, () =>
      inFolder(async (folder) => {
        await training(device, precision, { folder, stopAt: 7 });
        mustBeSame('resumed', await training(device, precision, { folder }), await once(precision));
      }),
    );
    group.test(`${precision}: micro-batches`, async (): Promise<Figures> => {
      const { losses } = await training(device, precision, { microBatches: 2 });
      must(
        losses.length === steps && losses.every((loss) => Number.isFinite(loss)),
        () => 'losses must be finite',
      );
      return { end: losses[steps - 1] };
    });
  }
  if (precisions.includes('bfloat16')) {
    group.test('bfloat16 learns as float32 does', async (): Promise<Figures> => {
      const gap = largestGap((await once('bfloat16')).losses, (await once('float32')).losses);
      must(gap < 0.05, () => `losses must be within 0.05, got ${String(gap)}`);
      return { gap };
    });
  }
}

/** Embeddings and training. */
export function declareTowers(runner: Runner, device: Device): void {
  declareEmbedding(runner, device);
  declareTraining(runner, device, precisionsOf(device));
}

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceArray } from '../../lib/array';
import type { Batch, Stream } from '../../lib/data';
import {
  NaflexBatchStream,
  NaflexLengths,
  PairSource,
  pairTable,
  BatchStream,
} from '../../lib/data';
import { disposeArrays, flatten } from '../../lib/graph';
import { NaflexProcessor } from '../../lib/image';
import type { ModelConfig } from '../../lib/model';
import { adaptModel, packedRows, twoTowersParameters } from '../../lib/model';
import type { Objective, StepMetrics, TrainerConfig } from '../../lib/train';
import {
  compileTwoTowersStep,
  defaultOptimizer,
  inheritCheckpoint,
  parseRecipe,
  pairObjective,
  scheduleInput,
  stageObjective,
  Trainer,
} from '../../lib/train';
import { defaultPreprocessor, type NaflexPreprocessor } from '../../lib/weights';
import { random, randomParameter } from '../nn/evaluate';
import { fixedConfig, naflexConfig } from '../nn/towers';

/** Grids of a batch with 9 patches at most. */
const shapes = [3, 3, 2, 4, 1, 9, 4, 2];
const batch = shapes.length / 2;
const length = 9;
const counts = Array.from({ length: batch }, (_, b) => shapes[2 * b] * shapes[2 * b + 1]);
const texts = Int32Array.from({ length: batch * 6 }, (_, i) => (i * 7 + 3) % 31);

interface Outcome {
  readonly loss: number;
  readonly gradientNorm: number;
  /** First moments after one step from zero: the clipped gradient times 1 − β1. */
  readonly moments: ReadonlyMap<string, Float32Array>;
}

async function oneStep(images: object, rows?: number): Promise<Outcome> {
  const program = compileTwoTowersStep({
    model: naflexConfig,
    batch,
    length,
    rows,
    images: 'values',
    optimizer: defaultOptimizer,
  });
  const parameters = twoTowersParameters(naflexConfig, (spec) =>
    DeviceArray.from(Float32Array.from(randomParameter(spec).data), spec.shape),
  );
  const zeros = () =>
    twoTowersParameters(naflexConfig, ({ dtype, shape }) => DeviceArray.zeros({ dtype, shape }));
  const state = { m: zeros(), v: zeros() };
  const outputs = await program.run({
    parameters,
    state,
    averages: {},
    entered: {},
    schedule: scheduleInput(1, 0, defaultOptimizer),
    batches: [{ images, texts }],
  } as never);
  const moments = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(state.m)) {
    moments.set(path, (await (leaf as DeviceArray).read()) as Float32Array);
  }
  const [[loss], [gradientNorm]] = [await outputs.loss.read(), await outputs.gradientNorm.read()];
  disposeArrays({ parameters, state });
  program.dispose();
  return { loss, gradientNorm, moments };
}

test('a step on packed images has the loss and gradients of the padded form', async () => {
  const { data } = random('patches', [batch, length, 48], 0.5);
  const mask = Uint8Array.from({ length: batch * length }, (_, i) =>
    i % length < counts[Math.floor(i / length)] ? 1 : 0,
  );
  const padded = await oneStep({ patches: data, shapes: Int32Array.from(shapes), mask });
  const segments = new Int32Array(batch + 1);
  counts.forEach((count, b) => (segments[b + 1] = segments[b] + count));
  const rows = packedRows(segments[batch]);
  expect(rows).toBeGreaterThan(segments[batch]);
  const patches = new Float32Array(rows * 48);
  counts.forEach((count, b) => {
    const first = b * length * 48;
    patches.set(data.subarray(first, first + count * 48), segments[b] * 48);
  });
  const packed = await oneStep({ patches, shapes: Int32Array.from(shapes), segments }, rows);
  expect(Math.abs(packed.loss - padded.loss)).toBeLessThan(1e-5 * padded.loss);
  expect(Math.abs(packed.gradientNorm / padded.gradientNorm - 1)).toBeLessThan(1e-5);
  for (const [path, expected] of padded.moments) {
    const actual = packed.moments.get(path) ?? new Float32Array();
    const largest = Math.max(...expected.map(Math.abs));
    const difference = Math.max(...expected.map((value, i) => Math.abs(value - actual[i])));
    expect([path, difference <= 1e-5 * largest + 1e-8]).toEqual([path, true]);
    if (!path.endsWith('key.bias')) expect(largest).toBeGreaterThan(0);
  }
});

describe('a NaFlex run', () => {
  const options = { batch: 4, lengths: [4, 9, 16], halved: [16], seed: 2 };
  const { lengths: budgets, batch: pairsOfBatch, seed } = options;
  const objectiveOf = (model: ModelConfig): Objective => {
    const recipe = parseRecipe({
      name: 'NaFlex alone',
      model,
      batch: pairsOfBatch,
      totalSteps: 40,
      warmupSteps: 4,
      optimizer: defaultOptimizer,
      seed,
      stages: [{ name: 'N', start: 0, end: 1, losses: {}, lengths: budgets }],
    });
    return stageObjective(recipe, recipe.stages[0], { pixelTable: new Float32Array(768) });
  };
  const objective = objectiveOf(naflexConfig);
  let folder = '';

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'siglip2-naflex-'));
  });

  afterEach(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  function stream(): Stream<Batch> {
    const count = 10;
    const pixels = Uint8Array.from({ length: count * 300 }, (_, i) => (i * i + 7 * i) % 256);
    const names = Array.from({ length: count }, (_, i) => [{ text: `t ${String(i)}`, weight: 1 }]);
    const table = pairTable({
      name: 'noise',
      size: 10,
      pixels,
      concepts: Int32Array.from({ length: count }, (_, i) => i),
      texts: names,
      tokenize: (all) => Int32Array.from({ length: all.length * 6 }, (_, i) => (i * 5) % 31),
    });
    const preprocessor = defaultPreprocessor(naflexConfig) as NaflexPreprocessor;
    return new NaflexBatchStream(
      new BatchStream(new PairSource(table), { batch: 4, seed: 1, augment: { rotate: 10 } }),
      new NaflexProcessor(preprocessor),
      new NaflexLengths(options),
    );
  }

  async function run(
    name: string,
    changes: Partial<TrainerConfig> = {},
    steps = Infinity,
  ): Promise<StepMetrics[]> {
    const metrics: StepMetrics[] = [];
    const stop = new AbortController();
    const trainer = await Trainer.start(
      {
        objective,
        folder: join(folder, name),
        schedule: { totalSteps: 40, warmupSteps: 4 },
        range: { start: 36, stretch: 2 },
        seed: 1,
        ...changes,
      },
      stream(),
    );
    const onStep = (step: StepMetrics): void => {
      metrics.push(step);
      if (metrics.length === steps) stop.abort();
    };
    await trainer.train({ onStep, signal: stop.signal });
    trainer.dispose();
    return metrics;
  }

  const lasting = ({ step, loss, gradientNorm, learningRate, pairsSeen }: StepMetrics): object => ({
    step,
    loss,
    gradientNorm,
    learningRate,
    pairsSeen,
  });

  test('half batches count as halves, and an interrupted run goes on bit for bit', async () => {
    const whole = await run('whole');
    const lengths = new NaflexLengths(options);
    let pairs = 0;
    for (const { step, pairsSeen } of whole) {
      pairs += lengths.at(step).batch;
      expect(pairsSeen).toBe(pairs);
    }
    // Four steps of the schedule, stretched to eight full batches.
    expect(pairs).toBeGreaterThanOrEqual(32);
    expect(pairs).toBeLessThan(36);
    expect(whole.length).toBeGreaterThan(8);
    const first = await run('parts', {}, 3);
    const rest = await run('parts');
    expect([...first, ...rest].map(lasting)).toEqual(whole.map(lasting));
  });

  test('goes on from a fixed-resolution run through an adaptation', async () => {
    const model: ModelConfig = {
      ...fixedConfig,
      vision: { ...naflexConfig.vision, layout: 'fixed', imageSize: 12, positions: 9 },
    };
    const fixed = join(folder, 'fixed');
    const pixelTable = Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2);
    const schedule = { totalSteps: 4, warmupSteps: 1 };
    const trainer = await Trainer.start(
      {
        objective: pairObjective({ model, batch: 2, pixelTable }),
        folder: fixed,
        schedule,
        seed: 3,
      },
      stream(),
    );
    await trainer.save();
    const kernel = await trainer.parameters.vision.patchEmbedding.weight.read();
    const positions = await trainer.parameters.vision.positions.read();
    trainer.dispose();
    const adaptation = adaptModel(model, { layout: 'naflex', positions: 16 });
    const next = await Trainer.start(
      {
        objective: objectiveOf(adaptation.config),
        folder: join(folder, 'naflex'),
        schedule,
        inherit: () => inheritCheckpoint(join(fixed, 'checkpoints'), adaptation),
      },
      stream(),
    );
    const { vision } = next.parameters;
    expect(await vision.patchEmbedding.weight.read()).toEqual(
      adaptation.adapt('vision.patchEmbedding.weight', kernel as Float32Array),
    );
    expect(await vision.positions.read()).toEqual(
      adaptation.adapt('vision.positions', positions as Float32Array),
    );
    next.dispose();
  });

  test('a model or a batch of another form is refused', async () => {
    expect(() => objectiveOf(fixedConfig)).toThrow(
      'lengths of stage N must be given exactly where the layout is naflex',
    );
    const { packed, ...given } = await stream().next();
    if (packed === undefined) throw new Error('stream: batches must be packed');
    expect(() => objective.admit(given)).toThrow(
      'form of a batch must be one of 4, 9, 16, got images',
    );
    const cut = { ...packed, patches: packed.patches.subarray(48) };
    expect(() => objective.admit({ ...given, packed: cut })).toThrow(
      /must hold \d images in \d+ values/,
    );
  });
});

import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import type { DeviceArray } from '../../lib/array';
import { BatchStream, PairSource, pairTable } from '../../lib/data';
import type { Batch, Stream } from '../../lib/data';
import { flatten } from '../../lib/graph';
import { variant } from '../../lib/model';
import { loadAddon } from '../../lib/native/load';
import type { Objective, PairObjectiveConfig, StepMetrics, TrainerConfig } from '../../lib/train';
import {
  Trainer,
  defaultOptimizer,
  inheritCheckpoint,
  pairObjective,
  readMetrics,
} from '../../lib/train';
import { failure } from '../failure';
import { expectGivenBack } from '../memory';

const model = variant('mu/8', { imageSize: 16, vocabulary: 40, length: 6 });
const steps = 8;
let folder = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-trainer-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

function stream(): Stream<Batch> {
  const random = new Philox4x32(3, 'trainer test');
  const count = 20;
  const pixels = Uint8Array.from({ length: count * 16 * 16 * 3 }, () => random.integer(256));
  const texts = Array.from({ length: count }, (_, i) => [{ text: `text ${String(i)}`, weight: 1 }]);
  const table = pairTable({
    name: 'noise',
    size: 16,
    pixels,
    concepts: Int32Array.from({ length: count }, (_, i) => i),
    texts,
    tokenize: (all) => Int32Array.from({ length: all.length * 6 }, () => random.integer(40)),
  });
  return new BatchStream(new PairSource(table), { batch: 8, seed: 5, augment: { rotate: 10 } });
}

function objective(changes: Partial<PairObjectiveConfig>): Objective {
  const pixelTable = Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2);
  return pairObjective({ model, batch: 8, pixelTable, ...changes });
}

function config(changes: Partial<TrainerConfig> = {}): TrainerConfig {
  return {
    objective: objective({}),
    folder,
    schedule: { totalSteps: steps, warmupSteps: 2 },
    optimizer: { ...defaultOptimizer, learningRate: 3e-3 },
    seed: 1,
    initialLogits: { logitBias: -2 },
    ...changes,
  };
}

async function values(trainer: Trainer): Promise<Map<string, Float32Array>> {
  const result = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(trainer.parameters)) {
    result.set(path, (await (leaf as DeviceArray).read()) as Float32Array);
  }
  return result;
}

function withoutRate(metrics: readonly StepMetrics[]): object[] {
  return metrics.map((line) => ({ ...line, pairsPerSecond: 0, dataShare: 0 }));
}

async function run(changes: Partial<TrainerConfig> = {}): Promise<{
  metrics: object[];
  parameters: Map<string, Float32Array>;
}> {
  const trainer = await Trainer.start(config(changes), stream());
  await trainer.train();
  const parameters = await values(trainer);
  trainer.dispose();
  const metrics = withoutRate(readMetrics(join(changes.folder ?? folder, 'metrics.jsonl')));
  return { metrics, parameters };
}

describe('Trainer', () => {
  test('learns, logs every step, and gives back all memory', async () => {
    const before = loadAddon().memory();
    const { metrics } = await run();
    expect(metrics).toHaveLength(steps);
    const [first] = metrics as StepMetrics[];
    expect(first.updateNorm).toBe(0);
    expect(first.learningRate).toBe(0);
    expect((metrics as StepMetrics[])[steps - 1].loss).toBeLessThan(first.loss);
    expectGivenBack(before);
  });

  test('the same run again gives the same bits', async () => {
    const once = await run();
    rmSync(folder, { recursive: true });
    expect(await run()).toEqual(once);
  });

  test('resumed from the middle it gives the same bits', async () => {
    const whole = await run();
    rmSync(folder, { recursive: true });
    const stop = new AbortController();
    const half = await Trainer.start(config(), stream());
    const finished = await half.train({
      signal: stop.signal,
      onStep: ({ step }) => {
        if (step === 3) stop.abort();
      },
    });
    half.dispose();
    expect(finished).toBe(false);
    const continued = await run();
    expect(continued).toEqual(whole);
  });

  test('a crash after a checkpoint: later lines of the log are written again', async () => {
    const whole = await run();
    rmSync(folder, { recursive: true });
    const trainer = await Trainer.start(config({ checkpointEvery: 3 }), stream());
    await trainer.train();
    trainer.dispose();
    const checkpoints = join(folder, 'checkpoints');
    rmSync(join(checkpoints, 'step-000000008.safetensors'));
    writeFileSync(join(folder, 'metrics.jsonl'), '{"step":99', { flag: 'a' });
    expect(readdirSync(checkpoints)).toEqual(['step-000000006.safetensors']);
    expect(await run({ checkpointEvery: 3 })).toEqual(whole);
  });

  test('micro-batches average their losses and gradients', async () => {
    const trainer = await Trainer.start(config({ microBatches: 2 }), stream());
    const losses: StepMetrics[] = [];
    await trainer.train({ onStep: (line) => losses.push(line) });
    trainer.dispose();
    expect(losses[0].pairsSeen).toBe(16);
    // With zero updates so far, the first loss is the mean of the first two batches' losses.
    const second = mkdtempSync(join(tmpdir(), 'siglip2-trainer-'));
    const frozen = { ...defaultOptimizer, learningRate: 0, weightDecay: 0 };
    const { metrics } = await run({ folder: second, optimizer: frozen });
    rmSync(second, { recursive: true });
    const [a, b] = metrics as StepMetrics[];
    expect(losses[0].loss).toBeCloseTo((a.loss + b.loss) / 2, 5);
  });

  test('a loss that is not finite stops the run and names the step', async () => {
    const trainer = await Trainer.start(
      config({ optimizer: { ...defaultOptimizer, learningRate: 1e30, clipNorm: 0 } }),
      stream(),
    );
    await expect(trainer.train()).rejects.toThrow(/step [1-9]\d* must be finite/);
    trainer.dispose();
    expect(readFileSync(join(folder, 'metrics.jsonl'), 'utf8')).not.toMatch(/null|NaN/);
  });

  test('a step that is not finite can be skipped: it changes nothing, and the run goes on', async () => {
    // The value of byte 255 is no number, and only the batch of step 3 has it.
    const pixelTable = Float32Array.from({ length: 768 }, (_, i) =>
      i % 256 === 255 ? NaN : -1 + ((i % 256) / 255) * 2,
    );
    const poisoned = (at: number): Stream<Batch> => {
      const clean = stream();
      return {
        next: async () => {
          const batch = await clean.next();
          const images = batch.images.map((byte, i) =>
            batch.step === at && i === 0 ? 255 : Math.min(byte, 254),
          );
          return { ...batch, images };
        },
        state: () => clean.state(),
        restore: (state) => clean.restore(state),
        close: () => clean.close(),
      };
    };
    const changes = { objective: objective({ pixelTable }), notFinite: 'skip' } as const;
    const trainer = await Trainer.start(config(changes), poisoned(3));
    const norms: number[] = [];
    const finished = await trainer.train({
      onStep: ({ step, skipped, parameterNorm, updateNorm }) => {
        expect(skipped).toBe(step === 3 ? true : undefined);
        if (step === 3) expect(updateNorm).toBe(0);
        norms.push(parameterNorm);
      },
    });
    expect(finished).toBe(true);
    expect(norms[3]).toBe(norms[2]);
    for (const array of (await values(trainer)).values()) {
      expect(array.every(Number.isFinite)).toBe(true);
    }
    trainer.dispose();
  });

  test('a run that inherits all of another continues it', async () => {
    const whole = await run();
    rmSync(folder, { recursive: true });
    const first = join(folder, 'first');
    await run({ folder: first, range: { end: 5 } });
    const rest = stream();
    for (let i = 0; i < 5; i++) await rest.next();
    const trainer = await Trainer.start(
      config({
        folder: join(folder, 'second'),
        range: { start: 5 },
        inherit: () => inheritCheckpoint(join(first, 'checkpoints')),
      }),
      rest,
    );
    expect(trainer.step).toBe(5);
    await trainer.train();
    expect(await values(trainer)).toEqual(whole.parameters);
    trainer.dispose();
    const metrics = withoutRate(readMetrics(join(folder, 'second', 'metrics.jsonl')));
    expect(metrics).toEqual(whole.metrics.slice(5));
  });

  test('a checkpoint of another model is refused', async () => {
    await run();
    const other = variant('mu/8', { imageSize: 16, vocabulary: 41, length: 6 });
    await expect(
      Trainer.start(config({ objective: objective({ model: other }) }), stream()),
    ).rejects.toThrow(/objective must be/);
  });

  test('batches of another size are refused', async () => {
    const trainer = await Trainer.start(config({ objective: objective({ batch: 4 }) }), stream());
    await expect(trainer.train()).rejects.toThrow(/must hold 4 images/);
    trainer.dispose();
  });

  test('bfloat16 on the CPU is refused before anything is written', async () => {
    const unused = join(folder, 'unused');
    const narrow = config({ device: 'cpu', precision: 'bfloat16', folder: unused });
    expect((await failure(Trainer.start(narrow, stream()))).code).toBe('ERR_DEVICE');
    expect(existsSync(unused)).toBe(false);
  });
});

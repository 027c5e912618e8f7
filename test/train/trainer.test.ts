import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { variant } from '../../lib/model';
import { loadAddon } from '../../lib/native/load';
import type { StepMetrics, TrainerConfig } from '../../lib/train';
import { Trainer, defaultOptimizer, readMetrics } from '../../lib/train';
import { failure } from '../failure';
import { configIn, noise, steps, values, withoutTimes } from './noise';

let folder = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-trainer-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

const stream = noise;

function config(changes: Partial<TrainerConfig> = {}): TrainerConfig {
  return configIn(folder, changes);
}

async function run(changes: Partial<TrainerConfig> = {}): Promise<{
  metrics: object[];
  parameters: Map<string, Float32Array>;
}> {
  const trainer = await Trainer.start(config(changes), stream());
  await trainer.train();
  const parameters = await values(trainer);
  trainer.dispose();
  const metrics = withoutTimes(readMetrics(join(changes.folder ?? folder, 'metrics.jsonl')));
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
    expect(loadAddon().memory()).toEqual(before);
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

  test('with micro-batches that share their negatives it trains as without, resumed or not', async () => {
    const whole = await run();
    rmSync(folder, { recursive: true });
    const split = await run({ microBatch: 2 });
    const losses = (metrics: object[]): number[] => (metrics as StepMetrics[]).map((m) => m.loss);
    for (const [i, loss] of losses(whole.metrics).entries()) {
      expect(losses(split.metrics)[i]).toBeCloseTo(loss, 4);
    }
    rmSync(folder, { recursive: true });
    const stop = new AbortController();
    const half = await Trainer.start(config({ microBatch: 2 }), stream());
    await half.train({
      signal: stop.signal,
      onStep: ({ step }) => {
        if (step === 3) stop.abort();
      },
    });
    half.dispose();
    expect(await run({ microBatch: 2 })).toEqual(split);
  });

  test('micro-batches that do not fit are refused', async () => {
    expect((await failure(Trainer.start(config({ microBatch: 3 }), stream()))).message).toBe(
      'train: microBatch must be a divisor of the batch 8, got 3',
    );
    const both = config({ microBatch: 4, microBatches: 2 });
    expect((await failure(Trainer.start(both, stream()))).message).toBe(
      'train: microBatches must be 1 with microBatch or curation, got 2',
    );
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

  test('a checkpoint of another model is refused', async () => {
    await run();
    const other = variant('mu/8', { imageSize: 16, vocabulary: 41, length: 6 });
    await expect(Trainer.start(config({ model: other }), stream())).rejects.toThrow(
      /model must be/,
    );
  });

  test('batches of another size are refused', async () => {
    const trainer = await Trainer.start(config({ batch: 4 }), stream());
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

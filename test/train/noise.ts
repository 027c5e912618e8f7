// A small run on noise: its model, its batches and what its trainer is given.
import { Philox4x32 } from '../../lib/array/random';
import type { DeviceArray } from '../../lib/array';
import { BatchStream, PairSource, pairTable } from '../../lib/data';
import type { Batch, Stream } from '../../lib/data';
import { flatten } from '../../lib/graph';
import { variant } from '../../lib/model';
import type { StepMetrics, Trainer, TrainerConfig } from '../../lib/train';
import { defaultOptimizer, pairObjective } from '../../lib/train';

export const model = variant('mu/8', { imageSize: 16, vocabulary: 40, length: 6 });
export const pixelTable = Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2);
/** Examples there are. */
export const examples = 20;
export const steps = 8;

export function noise(batch = 8, rows?: readonly [number, number]): Stream<Batch> {
  const random = new Philox4x32(3, 'trainer test');
  const pixels = Uint8Array.from({ length: examples * 16 * 16 * 3 }, () => random.integer(256));
  const texts = Array.from({ length: examples }, (_, i) => [
    { text: `text ${String(i)}`, weight: 1 },
  ]);
  const table = pairTable({
    name: 'noise',
    size: 16,
    pixels,
    concepts: Int32Array.from({ length: examples }, (_, i) => i),
    texts,
    tokenize: (all) => Int32Array.from({ length: all.length * 6 }, () => random.integer(40)),
  });
  return new BatchStream(new PairSource(table), { batch, seed: 5, augment: { rotate: 10 }, rows });
}

export function configIn(folder: string, changes: Partial<TrainerConfig> = {}): TrainerConfig {
  return {
    objective: pairObjective({ model, batch: 8, pixelTable }),
    folder,
    schedule: { totalSteps: steps, warmupSteps: 2 },
    optimizer: { ...defaultOptimizer, learningRate: 3e-3 },
    seed: 1,
    initialLogits: { logitBias: -2 },
    ...changes,
  };
}

export async function values(trainer: Trainer): Promise<Map<string, Float32Array>> {
  const result = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(trainer.parameters)) {
    result.set(path, (await (leaf as DeviceArray).read()) as Float32Array);
  }
  return result;
}

/** Lines of a log without the times in them. */
export function withoutTimes(metrics: readonly StepMetrics[]): object[] {
  return metrics.map(({ curation, ...line }) => ({
    ...line,
    pairsPerSecond: 0,
    dataShare: 0,
    ...(curation === undefined ? {} : { curation: { ...curation, seconds: 0 } }),
  }));
}

// A short run of a very small model on noise, on one rank or on one of several.
import { Philox4x32 } from '../../lib/array/random';
import type { DeviceArray } from '../../lib/array';
import { BatchStream, PairSource, pairTable } from '../../lib/data';
import type { Batch, Stream } from '../../lib/data';
import { flatten } from '../../lib/graph';
import { variant } from '../../lib/model';
import type { RanksConfig, StepMetrics, TrainerConfig } from '../../lib/train';
import { defaultOptimizer, pairObjective, rowsOfRank, Trainer } from '../../lib/train';

const batch = 9;

/** Steps of the whole run. */
export const steps = 6;

function stream(ranks: RanksConfig | undefined): Stream<Batch> {
  const random = new Philox4x32(3, 'noise run');
  const count = 20;
  const table = pairTable({
    name: 'noise',
    size: 16,
    pixels: Uint8Array.from({ length: count * 16 * 16 * 3 }, () => random.integer(256)),
    concepts: Int32Array.from({ length: count }, (_, i) => i),
    texts: Array.from({ length: count }, (_, i) => [{ text: `text ${String(i)}`, weight: 1 }]),
    tokenize: (all) => Int32Array.from({ length: all.length * 6 }, () => random.integer(40)),
  });
  const rows = rowsOfRank(batch, ranks?.comm.rank ?? 0, ranks?.comm.size ?? 1);
  return new BatchStream(new PairSource(table), { batch, seed: 5, augment: { rotate: 10 }, rows });
}

export interface NoiseRun {
  readonly metrics: StepMetrics[];
  /** None on ranks behind the first that have parts of them alone. */
  readonly parameters: Map<string, Float32Array>;
}

/** Trains in `folder` up to the step `until`, continuing what is there. */
export async function noiseRun(
  folder: string,
  ranks?: RanksConfig,
  until = steps,
  changes: Partial<TrainerConfig> = {},
  onStep?: (step: number) => void,
  wrap = (own: Stream<Batch>): Stream<Batch> => own,
): Promise<NoiseRun> {
  const config: TrainerConfig = {
    objective: pairObjective({
      model: variant('mu/8', { imageSize: 16, vocabulary: 40, length: 6 }),
      batch,
      pixelTable: Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2),
    }),
    folder,
    device: 'cpu',
    schedule: { totalSteps: steps, warmupSteps: 2 },
    optimizer: { ...defaultOptimizer, learningRate: 3e-3, learningRateFactors: { logitBias: 5 } },
    seed: 1,
    initialLogits: { logitBias: -2 },
    ranks,
    ...changes,
  };
  const trainer = await Trainer.start(config, wrap(stream(ranks)));
  try {
    const metrics: StepMetrics[] = [];
    const stop = new AbortController();
    if (trainer.step >= until) stop.abort();
    await trainer.train({
      signal: stop.signal,
      onStep: (line) => {
        metrics.push(line);
        onStep?.(line.step);
        // Any rank may stop the run, the last as well as the first.
        const last = ranks === undefined || ranks.comm.rank === ranks.comm.size - 1;
        if (last && line.step === until - 1) stop.abort();
      },
    });
    const parameters = new Map<string, Float32Array>();
    await trainer.gather();
    if (ranks?.shard === 'parameters' && ranks.comm.rank > 0) return { metrics, parameters };
    for (const { path, leaf } of flatten(trainer.parameters)) {
      parameters.set(path, (await (leaf as DeviceArray).read()) as Float32Array);
    }
    return { metrics, parameters };
  } finally {
    trainer.dispose();
  }
}

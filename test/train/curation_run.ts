// A short curated run on noise, on one rank or as one of several: what it selected, and where it got.
import { DeviceArray } from '../../lib/array';
import { initialValues, twoTowersParameters, variant } from '../../lib/model';
import type { ModelConfig, TwoTowersParameters } from '../../lib/model';
import type { CurationConfig, RanksConfig, StepMetrics } from '../../lib/train';
import { modelReference, rowsOfRank, superBatch, Trainer } from '../../lib/train';
import { configIn, noise, pixelTable, values } from './noise';

export interface CuratedRun {
  readonly metrics: readonly StepMetrics[];
  /** Of every step: the rows that were selected, the texts to choose from, and those trained on. */
  readonly selections: readonly {
    readonly rows: readonly number[];
    readonly candidates: readonly string[];
    readonly texts: readonly string[];
    readonly examples: readonly number[];
    readonly tokens: readonly number[];
    readonly pixels: number;
  }[];
  readonly parameters: Readonly<Record<string, readonly number[]>>;
}

const base = variant('mu/8', { imageSize: 16, vocabulary: 40, length: 6 });

/** Wider than the learner. */
export const wide = {
  ...base,
  vision: { ...base.vision, width: 64 },
  text: { ...base.text, width: 64 },
  embedding: 64,
};

export function parametersOf(of: ModelConfig, seed: number): TwoTowersParameters<DeviceArray> {
  return twoTowersParameters(
    of,
    (spec) => DeviceArray.from(initialValues(spec, seed), spec.shape) as DeviceArray,
    { logitBias: -2 },
  );
}

/** The whole run of batches of 8 out of 16. */
export async function curatedRun(
  folder: string,
  changes: Partial<CurationConfig> = {},
  ranks?: RanksConfig,
): Promise<CuratedRun> {
  const parameters = parametersOf(wide, 9);
  const reference = await modelReference({ model: wide, parameters, batch: 4, pixelTable });
  const curation = { reference, filterRatio: 0.5, chunks: 4, gain: 5, ...changes };
  const whole = superBatch(8, curation.filterRatio);
  const rows = ranks && rowsOfRank(whole, ranks.comm.rank, ranks.comm.size);
  const trainer = await Trainer.start(
    configIn(folder, { curation, ranks, device: 'cpu' }),
    noise(whole, rows),
  );
  try {
    const metrics: StepMetrics[] = [];
    const selections: CuratedRun['selections'][number][] = [];
    await trainer.train({
      onStep: (line) => metrics.push(line),
      onSelection: ({ rows: chosen, candidates, batch }) => {
        selections.push({
          rows: [...chosen],
          candidates: candidates.texts,
          texts: batch.texts,
          examples: [...batch.examples],
          tokens: [...(batch.tokens ?? [])],
          pixels: batch.images.reduce((sum, value, i) => sum + value * ((i % 251) + 1), 0),
        });
      },
    });
    const all = await values(trainer);
    const plain = [...all].map(([path, numbers]) => [path, [...numbers]] as const);
    return { metrics, selections, parameters: Object.fromEntries(plain) };
  } finally {
    trainer.dispose();
    reference.dispose();
  }
}

// What a rank needs is what it says it needs, and less where it keeps parts.
import type { DeviceArray } from '../../lib/array';
import { localRanks } from '../../lib/comm';
import { disposeArrays, flatten } from '../../lib/graph';
import { variant } from '../../lib/model';
import { loadAddon } from '../../lib/native/load';
import type { RanksConfig, TrainingState } from '../../lib/train';
import {
  defaultOptimizer,
  freshState,
  pairObjective,
  placedOverRanks,
  scheduleInput,
  StepOverRanks,
} from '../../lib/train';

const model = variant('Ti/16', { imageSize: 32, vocabulary: 500, length: 8 });
const pixelTable = Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2);
const ranks = 2;
const objective = pairObjective({ model, batch: 2 * ranks, pixelTable, checkpoint: true });
const parameterBytes = objective.parameters.reduce(
  (sum, { shape }) => sum + 4 * shape.reduce((product, n) => product * n, 1),
  0,
);

interface Peak {
  /** Of one rank. */
  readonly predicted: number;
  readonly measured: number;
}

async function peakOf(shard: NonNullable<RanksConfig['shard']>): Promise<Peak> {
  const alive = (): number => {
    const { bufferBytes, arenaBytes } = loadAddon().memory();
    return bufferBytes + arenaBytes;
  };
  const before = alive();
  let most = 0;
  const look = (): void => {
    most = Math.max(most, alive() - before);
  };
  const timer = setInterval(look, 1);
  const predicted = await Promise.all(
    localRanks(ranks).map(async (comm) => {
      const config = { comm, shard, partBytes: 4 * 2 ** 20 };
      const state: TrainingState<DeviceArray> = freshState(
        objective,
        0,
        undefined,
        placedOverRanks(objective, config, 'cpu'),
      );
      const step = await StepOverRanks.create(
        { ...config, objective, optimizer: defaultOptimizer },
        state,
      );
      const batch = {
        images: { pixels: new Uint8Array(2 * 32 * 32 * 3).fill(comm.rank + 1), table: pixelTable },
        texts: new Int32Array(2 * 8).fill(comm.rank + 1),
      };
      const all = scheduleInput(1, 0, defaultOptimizer);
      const { loss } = await step.run('images', { all, entered: {} }, batch);
      expect(Number.isFinite(loss)).toBe(true);
      const bytes = step.peakBytes;
      step.dispose();
      disposeArrays(flatten(state).map(({ leaf }) => leaf as DeviceArray));
      return bytes;
    }),
  );
  clearInterval(timer);
  return { predicted: predicted.reduce((sum, n) => sum + n, 0) / ranks, measured: most / ranks };
}

test('the peak is as predicted, and lower the more is in parts', async () => {
  const none = await peakOf('none');
  const optimizer = await peakOf('optimizer');
  const parameters = await peakOf('parameters');
  for (const { predicted, measured } of [none, optimizer, parameters]) {
    expect(measured).toBeLessThan(1.02 * predicted);
    expect(measured).toBeGreaterThan(0.7 * predicted);
  }
  // Weights, both moments and the gradient: 4 copies, or half of the moments and of the gradient with a
  // half of the weights beside the whole, or half of all; and what a step adds.
  expect(none.measured / parameterBytes).toBeGreaterThan(4);
  expect(optimizer.measured / parameterBytes).toBeLessThan(3.2);
  expect(parameters.measured / parameterBytes).toBeLessThan(2.3);
});

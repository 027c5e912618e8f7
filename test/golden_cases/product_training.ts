// Runs the product's training step on the batches of bv_train_20.
import type { Device } from '../../lib/array';
import { DeviceArray } from '../../lib/array';
import { disposeArrays, flatten } from '../../lib/graph';
import type { TwoTowersParameters } from '../../lib/model';
import { twoTowersParameters } from '../../lib/model';
import type { OptimizerConfig } from '../../lib/train/optimizer';
import { defaultOptimizer, scheduleInput } from '../../lib/train/optimizer';
import { cosineSchedule } from '../../lib/train/schedule';
import { compileTwoTowersStep } from '../../lib/train/two_towers';
import type { GoldenCase } from './golden';
import { configOf, hostValues } from './product';
import type { StepNumbers } from './training';
import { normalized, trainingCase } from './training';

async function scalar(array: DeviceArray): Promise<number> {
  const [value] = await array.read();
  return value;
}

/** Runs the first steps of the case; gives every step's numbers and the parameters after the last. */
export async function train(
  golden: GoldenCase,
  steps: number,
  checkpoint: boolean,
  device: Device = 'cpu',
): Promise<{ records: StepNumbers[]; final: Map<string, Float32Array> }> {
  const { recipe, batch, ...subject } = trainingCase(golden);
  const model = configOf(subject);
  const optimizer: OptimizerConfig = { ...defaultOptimizer, ...recipe };
  const program = compileTwoTowersStep({
    model,
    batch: subject.ids.shape[0],
    optimizer,
    checkpoint,
    device,
  });
  const initial = hostValues(subject.parameters);
  const zeros = (): TwoTowersParameters<DeviceArray> =>
    twoTowersParameters(model, ({ dtype, shape }) => DeviceArray.zeros({ dtype, shape }, device));
  const parameters = twoTowersParameters<DeviceArray>(model, ({ path, shape }) =>
    DeviceArray.from(initial.get(path) ?? new Float32Array(), shape, device),
  );
  const state = { m: zeros(), v: zeros() };
  const table = Float32Array.from({ length: 3 * 256 }, (_, i) => normalized(i % 256));
  const records: StepNumbers[] = [];
  for (let i = 0; i < steps; i++) {
    const { bytes, ids } = batch(i);
    const multiplier = cosineSchedule(i, recipe);
    const outputs = await program.run({
      parameters,
      state,
      schedule: scheduleInput(multiplier, i, optimizer),
      averages: {},
      entered: {},
      batches: [
        {
          images: { pixels: Uint8Array.from(bytes.data), table },
          texts: Int32Array.from(ids.data),
        },
      ],
    });
    const { loss, gradientNorm, updateNorm, parameterNorm } = outputs;
    records.push({
      multiplier,
      loss: await scalar(loss),
      gradientNorm: await scalar(gradientNorm),
      updateNorm: await scalar(updateNorm),
      parameterNorm: await scalar(parameterNorm),
      logitScale: await scalar(parameters.logitScale),
      logitBias: await scalar(parameters.logitBias),
    });
    disposeArrays({ loss, gradientNorm, updateNorm, parameterNorm });
  }
  const final = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(parameters)) {
    final.set(path, Float32Array.from(await (leaf as DeviceArray).read()));
  }
  disposeArrays({ parameters, state });
  program.dispose();
  return { records, final };
}

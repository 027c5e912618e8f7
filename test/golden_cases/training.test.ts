// Twenty updates of the product's training step against the original trainer's record.
import { DeviceArray } from '../../lib/array';
import { flatten } from '../../lib/graph';
import type { TwoTowersParameters } from '../../lib/model';
import { parameterTable, twoTowersParameters } from '../../lib/model';
import type { OptimizerConfig } from '../../lib/train/optimizer';
import { defaultOptimizer, scheduleInput } from '../../lib/train/optimizer';
import { cosineSchedule } from '../../lib/train/schedule';
import { compileTwoTowersStep } from '../../lib/train/two_towers';
import type { GoldenCase } from './golden';
import { describeGolden } from './golden';
import { configOf, hostValues } from './product';
import type { StepNumbers } from './training';
import { expectFinalParameters, expectStep, normalized, trainingCase } from './training';

async function scalar(array: DeviceArray): Promise<number> {
  const [value] = await array.read();
  return value;
}

/** Runs the first steps of the case; gives every step's numbers and the parameters after the last. */
async function train(
  golden: GoldenCase,
  steps: number,
  checkpoint: boolean,
): Promise<{ records: StepNumbers[]; final: Map<string, Float32Array> }> {
  const { recipe, batch, ...subject } = trainingCase(golden);
  const model = configOf(subject);
  const optimizer: OptimizerConfig = { ...defaultOptimizer, ...recipe };
  const program = compileTwoTowersStep({
    model,
    batch: subject.ids.shape[0],
    optimizer,
    checkpoint,
  });
  const initial = hostValues(subject.parameters);
  const zeros = (): TwoTowersParameters<DeviceArray> =>
    twoTowersParameters(model, ({ dtype, shape }) => DeviceArray.zeros({ dtype, shape }));
  const parameters = twoTowersParameters<DeviceArray>(model, ({ path, shape }) =>
    DeviceArray.from(initial.get(path) ?? new Float32Array(), shape),
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
    for (const array of [loss, gradientNorm, updateNorm, parameterNorm]) array.dispose();
  }
  const final = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(parameters)) {
    final.set(path, Float32Array.from(await (leaf as DeviceArray).read()));
  }
  for (const { leaf } of flatten({ parameters, state })) (leaf as DeviceArray).dispose();
  program.dispose();
  return { records, final };
}

describeGolden('bv_train_20', (golden) => {
  test('the same parameters decay', () => {
    const { recipe, ...subject } = trainingCase(golden);
    const table = parameterTable(configOf(subject));
    expect(table.filter(({ decay }) => decay).map(({ path }) => path)).toEqual(
      table.map(({ path }) => path).filter((path) => recipe.decays(path)),
    );
  });

  test('twenty steps: schedule, loss, norms, scale, bias and final parameters', async () => {
    const { records, final } = await train(golden, trainingCase(golden).steps, false);
    records.forEach((record, step) => {
      expectStep(golden, step, record);
    });
    expectFinalParameters(golden, final, 2e-5);
  });

  test('the first step changes nothing', async () => {
    const { final } = await train(golden, 1, false);
    expect(final).toEqual(hostValues(trainingCase(golden).parameters));
  });

  test('repeats bit for bit, with and without activation checkpointing', async () => {
    const plain = await train(golden, 3, false);
    expect(await train(golden, 3, false)).toEqual(plain);
    expect(await train(golden, 3, true)).toEqual(plain);
  });
});

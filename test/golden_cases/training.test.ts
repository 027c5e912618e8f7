// Twenty updates of the product's training step against the original trainer's record.
import { parameterTable } from '../../lib/model';
import { describeGolden } from './golden';
import { configOf, hostValues } from './product';
import { train } from './product_training';
import { expectFinalParameters, expectStep, trainingCase } from './training';

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

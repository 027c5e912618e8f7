import { vocabularyLoss } from '../../lib/ops';
import { evaluate, integers, random, values } from '../nn/evaluate';
import { describeOp } from './describe_op';

describeOp('vocabulary_loss');

describe('rows', () => {
  const [N, V, D] = [5, 40, 6];
  const weight = random('weight', [V, D]);
  const bias = random('bias', [V]);
  const run = async (
    hidden: Float32Array,
    labels: readonly number[],
    rowWeights: readonly number[],
  ): Promise<{ loss: number; rowLosses: number[] }> => {
    const inputs = {
      hidden: values([N, D], hidden),
      weight,
      bias,
      labels: integers([N], labels),
      rowWeights: values([N], rowWeights),
    };
    const { loss, rowLosses } = await evaluate(inputs, (x) =>
      vocabularyLoss(x.hidden, x.weight, x.bias, x.labels, x.rowWeights),
    );
    return { loss: loss[0], rowLosses: Array.from(rowLosses) };
  };
  const states = random('hidden', [N, D]).data as Float32Array;

  test('of weight 0 are not looked at, and cost 0', async () => {
    const without = await run(states, [3, 4, 5, 6, 7], [1, 0, 2, 0, 1]);
    const broken = Float32Array.from(states);
    broken.fill(NaN, D, 2 * D);
    const labels = [3, -1, 5, 1000, 7];
    expect(await run(broken, labels, [1, 0, 2, 0, 1])).toEqual(without);
    expect(without.rowLosses[1]).toBe(0);
    expect(without.rowLosses.reduce((sum, term) => sum + term, 0)).toBeCloseTo(without.loss, 5);
  });

  test.each([-1, V])('with the label %d are refused', async (label) => {
    await expect(run(states, [0, 1, label, 2, 3], [1, 1, 1, 1, 1])).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining(
        `labels[2] must be in [0, ${String(V)}), got ${String(label)}`,
      ) as string,
    });
  });
});

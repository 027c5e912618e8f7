import { captionLoss } from '../../lib/loss';
import { evaluate, integers, random, values } from '../nn/evaluate';
import { ndArray } from '../reference/nd_array';
import { vocabularyLoss } from '../reference/vocabulary_loss';
import { nd } from '../nn/evaluate';

const [B, T, D, V] = [3, 4, 6, 11];
const hidden = random('hidden', [B, T, D]);
const weight = random('weight', [V, D]);
const bias = random('bias', [V]);
const labels = integers([B, T], [1, 2, 3, 0, 9, 10, 0, 0, 0, 0, 0, 0]);
// The first token of the second is a prompt, the last example has nothing to learn.
const weights = values([B, T], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);

async function lossOf(options?: { examples: number }): Promise<number> {
  const { loss } = await evaluate({ hidden, weight, bias, labels, weights }, (x) => ({
    loss: captionLoss(x.hidden, { weight: x.weight, bias: x.bias }, x, options),
  }));
  return loss[0];
}

test('is the mean over examples of the mean over their tokens', async () => {
  const shares = [1 / 3, 1 / 3, 1 / 3, 0, 0, 1, 0, 0, 0, 0, 0, 0];
  const expected = vocabularyLoss(
    ndArray([B * T, D], nd(hidden).data),
    nd(weight),
    nd(bias),
    ndArray([B * T], nd(labels).data),
    ndArray([B * T], shares),
  ).data[0];
  expect(await lossOf()).toBeCloseTo(expected / B, 5);
  expect(await lossOf({ examples: 1 })).toBeCloseTo(expected, 5);
});

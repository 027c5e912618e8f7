import { compile, float32, gradient, int32 } from '../../lib/graph';
import { captionLoss } from '../../lib/loss';
import { evaluate, integers, nd, random, values } from '../nn/evaluate';
import { ndArray } from '../reference/nd_array';
import { vocabularyLoss } from '../reference/vocabulary_loss';

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

test('never holds the logits: three targets of 64 tokens for each of 16 images, 64,000 words', () => {
  const [images, length, width, words] = [16, 64, 32, 64_000];
  const sequences = 3 * images;
  const program = compile(
    'caption loss',
    ({ states, head, targets }) => {
      const loss = captionLoss(states, head, targets);
      return { loss, gradients: gradient(loss, { states, head }) };
    },
    {
      states: float32(sequences, length, width),
      head: { weight: float32(words, width), bias: float32(words) },
      targets: { labels: int32(sequences, length), weights: float32(sequences, length) },
    },
  );
  const { peakBytes } = program.memory;
  program.dispose();
  // Weight, gradient and a few blocks of logits; all logits would be 786 MB.
  expect(peakBytes).toBeLessThan(60e6);
});

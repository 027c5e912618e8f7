import type { Tensor } from '../../lib/graph';
import { gradient } from '../../lib/graph';
import type { SigmoidLossOptions } from '../../lib/loss';
import { sigmoidLoss } from '../../lib/loss';
import type { TwoTowersOutput } from '../../lib/model';
import type { Value } from '../nn/evaluate';
import { evaluate, maxDifference, nd, random, values } from '../nn/evaluate';
import { sigmoidLoss as reference } from '../reference/sigmoid_loss';

function output(images: Tensor, texts: Tensor): TwoTowersOutput {
  return {
    vision: { tokens: images, pooled: images, embedding: images },
    text: { tokens: undefined, pooled: texts, projected: texts, embedding: texts },
  };
}

async function lossOf(
  images: Value,
  texts: Value,
  logits: { readonly logitScale: Value; readonly logitBias: Value },
  options: SigmoidLossOptions = {},
): Promise<Record<string, Float32Array>> {
  return evaluate({ images, texts, logits }, (x) => {
    const loss = sigmoidLoss(output(x.images, x.texts), x.logits, options);
    return { loss, ...gradient(loss, { images: x.images, texts: x.texts, logits: x.logits }) };
  });
}

const initial = { logitScale: values([1], [Math.LN10]), logitBias: values([1], [-10]) };

// All x·y = 0: images and texts live on different axes.
test.each([
  [4, 10.00018, -0.999818],
  [256, 10.01162, -0.988378],
  [1024, 10.04649, -0.953513],
])('at the published start, unrelated pairs, B = %d: L = %d, db = %d', async (batch, loss, db) => {
  const unit = (axis: number): Value =>
    values(
      [batch, 4],
      Array.from({ length: batch * 4 }, (_, i) => (i % 4 === axis ? 1 : 0)),
    );
  const result = await lossOf(unit(0), unit(1), initial);
  expect(result.loss[0]).toBeCloseTo(loss, 4);
  expect(result['logits.logitBias'][0]).toBeCloseTo(db, 5);
  expect(result['logits.logitScale'][0]).toBeCloseTo(0, 6);
});

test('the scale is exp(t), the diagonal is positive', async () => {
  const images = random('images', [5, 6], 0.4);
  const texts = random('texts', [5, 6], 0.4);
  const logits = { logitScale: values([1], [1.2]), logitBias: values([1], [-0.7]) };
  const { loss } = await lossOf(images, texts, logits);
  let sum = 0;
  for (let i = 0; i < 5; i++) {
    for (let j = 0; j < 5; j++) {
      let product = 0;
      for (let e = 0; e < 6; e++) product += images.data[i * 6 + e] * texts.data[j * 6 + e];
      const logit = Math.exp(1.2) * product - 0.7;
      sum += Math.log1p(Math.exp(i === j ? -logit : logit));
    }
  }
  expect(loss[0]).toBeCloseTo(sum / 5, 5);
});

test('blocks with offsets add up to the whole batch', async () => {
  const batch = 6;
  const images = random('images', [batch, 4], 0.5);
  const texts = random('texts', [batch, 4], 0.5);
  const whole = await lossOf(images, texts, initial);
  const rows = (x: Value, from: number): Value =>
    values([3, 4], x.data.subarray(4 * from, 4 * (from + 3)));
  let sum = 0;
  for (const i of [0, 3]) {
    for (const j of [0, 3]) {
      const { loss } = await lossOf(rows(images, i), rows(texts, j), initial, {
        offset: i - j,
        batch,
      });
      sum += loss[0];
    }
  }
  expect(sum).toBeCloseTo(whole.loss[0], 4);
});

test('agrees with the float64 reference', async () => {
  const images = random('images', [7, 5], 0.5);
  const texts = random('texts', [7, 5], 0.5);
  const { loss } = await lossOf(images, texts, initial);
  const expected = reference(nd(images), nd(texts), nd(initial.logitScale), nd(initial.logitBias));
  expect(maxDifference(loss, expected.data)).toBeLessThan(1e-5);
});

test('a wrong batch is refused', async () => {
  const x = random('x', [2, 3]);
  await expect(lossOf(x, x, initial, { batch: 0 })).rejects.toThrow('batch positive');
});

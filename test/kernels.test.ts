// `siglip2/kernels` against the float64 reference, on typed arrays and on arrays of the device.
import type { Floats, Pairs } from '../lib/kernels';
import {
  attention,
  DeviceArray,
  jointSelection,
  learnability,
  sigmoidLoss,
  SiglipError,
} from '../lib/kernels';
import { loadAddon } from '../lib/native/load';
import { failure } from './failure';
import * as referenceOfAttention from './reference/attention';
import * as referenceOfLearnability from './reference/learnability';
import { ndArray, scalar } from './reference/nd_array';
import type { NdArray } from './reference/nd_array';
import * as referenceOfLoss from './reference/sigmoid_loss';
import { expectGivenBack } from './memory';

const N = 24;

function random(seed: number, length: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length }, () => {
    state = (state * 48271) % 2147483647;
    return (state / 2147483647 - 0.5) * 0.8;
  });
}

function pairs(seed: number, width: number): Pairs<Float32Array> {
  return {
    images: random(seed, N * width),
    texts: random(seed + 1, N * width),
    width,
    logitScale: 1.2,
    logitBias: -1.5,
  };
}

function asReference({
  images,
  texts,
  width,
  logitScale,
  logitBias,
}: Pairs<Float32Array>): referenceOfLearnability.Model {
  return {
    images: ndArray([N, width], images),
    texts: ndArray([N, width], texts),
    logitScale: scalar(logitScale),
    logitBias: scalar(logitBias),
  };
}

function expectClose(actual: ArrayLike<number>, wanted: NdArray, tolerance = 1e-5): void {
  expect(actual).toHaveLength(wanted.data.length);
  for (const [i, value] of wanted.data.entries()) {
    expect(Math.abs(actual[i] - value)).toBeLessThan(tolerance * (1 + Math.abs(value)));
  }
}

const before = loadAddon().memory();

afterAll(() => {
  expectGivenBack(before);
});

test('attention and its gradients', async () => {
  const shape = [2, 5, 12] as const;
  const [query, key, value, upstream] = [1, 2, 3, 4].map((seed) => random(seed, 120));
  const [q, k, v, dy] = [query, key, value, upstream].map((x) => ndArray(shape, x));
  const { output, gradients } = await attention({ query, key, value, shape, heads: 3, upstream });
  expectClose(output, referenceOfAttention.attention(q, k, v, { heads: 3 }));
  const wanted = referenceOfAttention.attentionBackward(dy, q, k, v, { heads: 3 });
  expectClose(gradients?.query ?? [], wanted.dq);
  expectClose(gradients?.key ?? [], wanted.dk);
  expectClose(gradients?.value ?? [], wanted.dv);
  const alone = await attention({ query, key, value, shape, heads: 3 });
  expect(alone.output).toEqual(output);
  expect(alone.gradients).toBeUndefined();
});

test('the sigmoid loss and its gradients', async () => {
  const batch = pairs(5, 7);
  const { images, texts, logitScale, logitBias } = asReference(batch);
  const { loss, gradients } = await sigmoidLoss(batch);
  expectClose([loss], referenceOfLoss.sigmoidLoss(images, texts, logitScale, logitBias));
  const wanted = referenceOfLoss.sigmoidLossBackward(
    scalar(1),
    images,
    texts,
    logitScale,
    logitBias,
  );
  expectClose(gradients.images, wanted.dimages);
  expectClose(gradients.texts, wanted.dtexts);
  expectClose([gradients.logitScale], wanted.dlogitScale);
  expectClose([gradients.logitBias], wanted.dlogitBias);
});

const pairLosses = {
  sigmoid: referenceOfLearnability.pairLosses,
  softmax: referenceOfLearnability.softmaxPairLosses,
};

test.each([
  ['learnability', 1, -1, 'sigmoid'],
  ['easyReference', 0, -1, 'sigmoid'],
  ['hardLearner', 1, 0, 'sigmoid'],
  ['learnability', 1, -1, 'softmax'],
  ['easyReference', 0, -1, 'softmax'],
  ['hardLearner', 1, 0, 'softmax'],
] as const)('%s of models of different widths: %d, %d, %s', async (...args) => {
  const [score, learnerWeight, referenceWeight, scoreLoss] = args;
  const [learner, reference] = [pairs(5, 7), pairs(9, 4)];
  const { diagonal, rows, columns } = await learnability(learner, reference, score, { scoreLoss });
  const wanted = referenceOfLearnability.learnability(
    asReference(learner),
    asReference(reference),
    { learnerWeight, referenceWeight },
    pairLosses[scoreLoss],
  );
  expectClose(diagonal, wanted.diagonal);
  expectClose(rows, wanted.rows);
  expectClose(columns, wanted.columns);
});

test('joint selection: no pair twice, the same for the same seed and step, another for another', async () => {
  const input = { learner: pairs(5, 7), reference: pairs(9, 4), batch: 8, chunks: 4 };
  const { indices, scores } = await jointSelection({ ...input, seed: 3 });
  expect(new Set(indices).size).toBe(8);
  const own = await learnability(input.learner, input.reference);
  expect(scores).toEqual(own.diagonal);
  expect((await jointSelection({ ...input, seed: 3 })).indices).toEqual(indices);
  expect((await jointSelection({ ...input, seed: 4 })).indices).not.toEqual(indices);
  expect((await jointSelection({ ...input, seed: 3, step: 1 })).indices).not.toEqual(indices);
});

test.each(['sigmoid', 'softmax'] as const)('joint selection by %s losses', async (scoreLoss) => {
  const [learner, reference] = [pairs(5, 7), pairs(9, 4)];
  const [batch, chunks, gain, seed] = [12, 4, 3, 8];
  const { indices } = await jointSelection({
    ...{ learner, reference, batch, chunks, gain, seed, scoreLoss },
  });
  const models = [asReference(learner), asReference(reference)] as const;
  const s = referenceOfLearnability.pairScores(
    ...models,
    { learnerWeight: 1, referenceWeight: -1 },
    pairLosses[scoreLoss],
  ).data;
  const scores = Float64Array.from({ length: N }, (_, i) => s[i * N + i]);
  const taken = new Uint8Array(N);
  const wanted: number[] = [];
  for (let chunk = 0; chunk < chunks; chunk++) {
    const noise = referenceOfLearnability.gumbelNoise(N, [seed, 0, 0, 0], chunk);
    const drawn = referenceOfLearnability.drawExamples(scores, taken, noise, batch / chunks, gain);
    for (const j of drawn) taken[j] = 1;
    for (const i of scores.keys()) for (const j of drawn) scores[i] += s[i * N + j] + s[j * N + i];
    wanted.push(...drawn);
  }
  expect([...indices]).toEqual(wanted);
});

test('with a high gain and one chunk the pairs of the highest scores', async () => {
  const [learner, reference] = [pairs(5, 7), pairs(9, 4)];
  const input = { learner, reference, batch: 6, chunks: 1, gain: 1e7 };
  const { indices, scores } = await jointSelection(input);
  const best = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, 6);
  expect([...indices]).toEqual(best);
});

test('arrays of the device give arrays of the device, with the same bits', async () => {
  const host = pairs(5, 7);
  const on = (values: Float32Array, width: number): DeviceArray<'float32'> =>
    DeviceArray.from(values, [N, width]);
  using images = on(host.images, 7);
  using texts = on(host.texts, 7);
  const [typed, arrays] = [await sigmoidLoss(host), await sigmoidLoss({ ...host, images, texts })];
  expect(arrays.loss).toBe(typed.loss);
  for (const tower of ['images', 'texts'] as const) {
    using mine = arrays.gradients[tower];
    expect(mine).toBeInstanceOf(DeviceArray);
    expect(await mine.read()).toEqual(typed.gradients[tower]);
  }
});

test('what does not fit is refused', async () => {
  const batch: Pairs<Floats> = pairs(5, 7);
  expect((await failure(sigmoidLoss({ ...batch, width: 5 }))).message).toBe(
    'sigmoidLoss: images must be (N, width) with N and width positive, got 168 elements for width 5',
  );
  const short = { ...batch, texts: new Float32Array(7) };
  expect((await failure(sigmoidLoss(short))).code).toBe('ERR_SHAPE');
  const selection = { learner: batch, reference: batch, batch: 10, chunks: 4 };
  const error = await failure(jointSelection(selection));
  expect(error).toBeInstanceOf(SiglipError);
  expect(error.code).toBe('ERR_ARGUMENT');
});

// The step with cached gradients of embeddings against the step that holds the whole batch at once.
import { DeviceArray } from '../../lib/array';
import { Philox4x32 } from '../../lib/array/random';
import type { Spec, Tensor } from '../../lib/graph';
import { compile, disposeArrays, flatten, float32, gradient, mapTree } from '../../lib/graph';
import type { TwoTowersParameters } from '../../lib/model';
import { initialValues, parameterTable, twoTowersParameters, variant } from '../../lib/model';
import { loadAddon } from '../../lib/native/load';
import { sigmoidLoss } from '../../lib/ops';
import type { StepBatch } from '../../lib/train';
import {
  compileTwoTowersCachedStep,
  compileTwoTowersStep,
  defaultOptimizer,
  scheduleInput,
} from '../../lib/train';
import { cachedStepFunctions } from '../../lib/train/cached_step';
import { twoTowersCachedStep } from '../../lib/train/two_towers';
import { failure } from '../failure';
import { expectGivenBack } from '../memory';

const model = variant('mu/8', { imageSize: 16, vocabulary: 40, length: 6 });
const optimizer = { ...defaultOptimizer, learningRate: 3e-3 };
const batch = 12;
const pixelTable = Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2);

type Pairs = StepBatch<Float32Array | Int32Array | Uint8Array>;

// Rows `from` to `to` of the batch of a step.
function pairs(step: number, from = 0, to = batch): Pairs {
  const random = new Philox4x32(7, `cached step ${String(step)}`);
  const pixels = Uint8Array.from({ length: batch * 768 }, () => random.integer(256));
  const texts = Int32Array.from({ length: batch * 6 }, () => random.integer(40));
  return {
    images: { pixels: pixels.subarray(from * 768, to * 768), table: pixelTable },
    texts: texts.subarray(from * 6, to * 6),
  };
}

function freshState(): {
  parameters: TwoTowersParameters<DeviceArray>;
  state: { m: TwoTowersParameters<DeviceArray>; v: TwoTowersParameters<DeviceArray> };
} {
  const parameters = twoTowersParameters(
    model,
    (spec) => DeviceArray.from(initialValues(spec, 1), spec.shape) as DeviceArray,
    { logitBias: -2 },
  );
  const zeros = (): TwoTowersParameters<DeviceArray> =>
    twoTowersParameters(model, (spec) => DeviceArray.zeros(spec));
  return { parameters, state: { m: zeros(), v: zeros() } };
}

interface Trained {
  readonly scalars: readonly number[];
  readonly parameters: ReadonlyMap<string, Float32Array>;
}

// Parameters after three steps; one micro-batch of `batch / k` for each of k, or the unsplit step.
async function trained(microBatches?: number): Promise<Trained> {
  const config = { model, optimizer };
  const step =
    microBatches === undefined
      ? compileTwoTowersStep({ ...config, batch })
      : compileTwoTowersCachedStep({ ...config, batch: batch / microBatches, microBatches });
  const { parameters, state } = freshState();
  const scalars: number[] = [];
  const parts = microBatches ?? 1;
  const rows = batch / parts;
  for (let i = 0; i < 3; i++) {
    const { loss, terms, gradientNorm, updateNorm, parameterNorm } = await step.run({
      parameters,
      state,
      averages: {},
      schedule: scheduleInput(1, i, optimizer),
      entered: {},
      batches: Array.from({ length: parts }, (_, k) => pairs(i, k * rows, (k + 1) * rows)),
    });
    for (const array of [loss, gradientNorm, updateNorm, parameterNorm]) {
      scalars.push((await array.read())[0]);
      array.dispose();
    }
    disposeArrays(terms);
  }
  const values = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(parameters)) {
    values.set(path, (await (leaf as DeviceArray).read()) as Float32Array);
  }
  disposeArrays(parameters);
  disposeArrays(state);
  step.dispose();
  return { scalars, parameters: values };
}

function largestDifference(a: Trained, b: Trained): number {
  let largest = 0;
  for (const [path, values] of a.parameters) {
    const other = b.parameters.get(path) ?? new Float32Array(values.length).fill(NaN);
    for (const [i, x] of values.entries()) {
      const difference = Math.abs(x - other[i]);
      largest = difference <= largest ? largest : difference;
    }
  }
  return largest;
}

test.each([1, 2, 3, 6])('%i micro-batches train as the unsplit step does', async (microBatches) => {
  const whole = await trained();
  const split = await trained(microBatches);
  for (const [i, scalar] of whole.scalars.entries()) {
    expect(Math.abs(split.scalars[i] / scalar - 1)).toBeLessThan(2e-5);
  }
  // Adam divides by the root of v: an element whose gradient is rounding alone may go either way by a
  // step of the learning rate, the others agree to rounding.
  let differing = 0;
  let count = 0;
  for (const [path, values] of whole.parameters) {
    const other = split.parameters.get(path) ?? new Float32Array(0);
    for (const [i, x] of values.entries()) {
      count++;
      if (!(Math.abs(x - other[i]) <= 1e-5)) differing++;
    }
  }
  expect(differing / count).toBeLessThan(0.01);
  expect(largestDifference(whole, split)).toBeLessThan(6 * optimizer.learningRate);
});

test('gives the same bits again', async () => {
  expect(await trained(3)).toEqual(await trained(3));
});

test('gives back all memory', async () => {
  const before = loadAddon().memory();
  await trained(4);
  expectGivenBack(before);
});

test('the gradient of embeddings is that of the loss of the whole batch, bit for bit', async () => {
  const rows = float32(batch, model.embedding);
  const random = new Philox4x32(11, 'embeddings');
  const values = (): Float32Array =>
    Float32Array.from({ length: batch * model.embedding }, () => random.uniform(-0.3, 0.3));
  const embeddings = { images: values(), texts: values() };
  const parameters = twoTowersParameters<Spec>(model, ({ dtype, shape }) => ({ dtype, shape }));
  const functions = cachedStepFunctions(twoTowersCachedStep({ model, batch, optimizer }));
  const cached = compile('cached', functions.loss, {
    parameters,
    embeddings: { images: rows, texts: rows },
  });
  const alone = compile(
    'alone',
    (inputs: Record<'images' | 'texts' | 'logitScale' | 'logitBias', Tensor>) => {
      const { images, texts, logitScale, logitBias } = inputs;
      const loss = sigmoidLoss(images, texts, logitScale, logitBias);
      return { loss, gradients: gradient(loss, inputs) };
    },
    { images: rows, texts: rows, logitScale: float32(1), logitBias: float32(1) },
  );
  const given = new Map(parameterTable(model).map((spec) => [spec.path, initialValues(spec, 1)]));
  const at = (path: string): Float32Array => given.get(path) ?? new Float32Array(0);
  const a = await cached.run({
    parameters: mapTree<TwoTowersParameters<Spec>, Spec, Float32Array>(parameters, (_, path) =>
      at(path),
    ),
    embeddings,
  });
  const b = await alone.run({
    ...embeddings,
    logitScale: at('logitScale'),
    logitBias: at('logitBias'),
  });
  const gradients = a.gradients as unknown as TwoTowersParameters<DeviceArray>;
  for (const [mine, theirs] of [
    [a.loss, b.loss],
    [a.embeddings.images, b.gradients.images],
    [a.embeddings.texts, b.gradients.texts],
    [gradients.logitScale, b.gradients.logitScale],
    [gradients.logitBias, b.gradients.logitBias],
  ]) {
    expect(await mine.read()).toEqual(await theirs.read());
  }
  disposeArrays(a);
  disposeArrays(b);
  cached.dispose();
  alone.dispose();
});

test('memory of the towers does not grow with the number of micro-batches', () => {
  const large = variant('mu/8', { imageSize: 64, vocabulary: 40, length: 16 });
  const config = { model: large, optimizer };
  const memory = [4, 128, 256].map((microBatches) => {
    const step = compileTwoTowersCachedStep({ ...config, batch: 16, microBatches });
    step.dispose();
    return step.memory;
  });
  const unsplit = compileTwoTowersStep({ ...config, batch: 16 * 16 });
  unsplit.dispose();
  expect(memory[1].towerBytes).toBe(memory[0].towerBytes);
  expect(memory[2].towerBytes).toBe(memory[0].towerBytes);
  // The loss's own: a constant for its tiles, and what every pair adds, embeddings and gradients.
  const perPair = (memory[2].lossBytes - memory[1].lossBytes) / (128 * 16);
  expect(perPair).toBe(4 * 4 * large.embedding);
  expect(memory[1].peakBytes).toBe(Math.max(memory[1].towerBytes, memory[1].lossBytes));
  expect(memory[1].towerBytes).toBeLessThan(unsplit.memory.peakBytes / 4);
  expect(memory[2].hostBytes).toBe(2 * 2 * 4 * 256 * 16 * large.embedding);
  expect(memory[2].peakBytes).toBe(
    memory[2].arenaBytes + memory[2].inputBytes + memory[2].outputBytes,
  );
});

test('refuses another number of micro-batches than it was compiled for', async () => {
  const config = { model, optimizer, batch: 4 };
  expect(() => compileTwoTowersCachedStep({ ...config, microBatches: 0 })).toThrow(
    'compileCachedStep: microBatches must be a positive integer, got 0',
  );
  const step = compileTwoTowersCachedStep({ ...config, microBatches: 3 });
  const { parameters, state } = freshState();
  const schedule = scheduleInput(1, 0, optimizer);
  const error = await failure(
    step.run({ parameters, state, averages: {}, schedule, entered: {}, batches: [pairs(0, 0, 4)] }),
  );
  expect(error.message).toBe('train step: batches must be 3, got 1');
  disposeArrays(parameters);
  disposeArrays(state);
  step.dispose();
});

import type { Spec, Tensor } from '../../lib/graph';
import { compile, gradient } from '../../lib/graph';
import type { TwoTowersInput, TwoTowersParameters } from '../../lib/model';
import { twoTowers, twoTowersInputSpecs, twoTowersParameters, variant } from '../../lib/model';
import { sigmoidLoss } from '../../lib/loss';
import type { PlanConfig } from '../../lib/plan';
import { activationBytes, forwardOperations, gpus, parametersOf, planStep } from '../../lib/plan';

const b16: PlanConfig = { model: variant('B/16'), gpu: gpus.h200, gpus: 1, batch: 256 };

test.each([
  ['B/16', 46.8, 11.0, 375234050],
  ['L/16', 162.6, 39.1, 881526786],
  ['So400m/16', 220.5, 53.1, 1135670962],
  ['g-opt/16', 599.0, 53.1, 1871393906],
] as const)('%s: operations of a pair and parameters', (name, vision, text, parameters) => {
  const model = variant(name);
  const operations = forwardOperations(model);
  expect(operations.vision / 1e9).toBeCloseTo(vision, 1);
  expect(operations.text / 1e9).toBeCloseTo(text, 1);
  expect(operations.decoder).toBe(0);
  expect(parametersOf(model)).toBe(parameters);
});

test('a decoder adds operations and parameters, three times the sequences three times the work', () => {
  const model = variant('B/16');
  const one = forwardOperations(model, { depth: 6, sequences: 1 });
  const three = forwardOperations(model, { depth: 6, sequences: 3 });
  expect(three.decoder).toBe(3 * one.decoder);
  // Both tables of 256,000 tokens are most of it.
  expect(parametersOf(model, { depth: 6, sequences: 3 }) - parametersOf(model)).toBeGreaterThan(
    2 * 256000 * 768,
  );
});

test('gives back the step it was measured on', () => {
  const { pairsPerSecond, fits, time } = planStep({ ...b16, checkpoint: false });
  expect(fits).toBe(true);
  expect(Math.abs(pairsPerSecond / 2596 - 1)).toBeLessThan(0.01);
  expect(time.reduction).toBe(0);
  expect(time.embeddings).toBe(0);
});

test('activations that are kept are what the planner of programs needs, to a fifth', () => {
  const model = variant('S/16', { vocabulary: 1000 });
  const parameters = twoTowersParameters<Spec>(model, ({ dtype, shape }) => ({ dtype, shape }));
  const arenas = [2, 6].map((batch) => {
    const program = compile(
      'step',
      ({ parameters: tree, input }: { parameters: unknown; input: unknown }) => {
        const tensors = tree as TwoTowersParameters<Tensor>;
        const output = twoTowers(tensors, model, input as TwoTowersInput<Tensor>);
        return { gradients: gradient(sigmoidLoss(output, tensors), tensors) };
      },
      { parameters, input: twoTowersInputSpecs(model, batch) },
    );
    const { arenaBytes } = program.memory;
    program.dispose();
    return arenaBytes;
  });
  const perPair = (arenas[1] - arenas[0]) / 4;
  expect(Math.abs(perPair / activationBytes(model, 4).kept - 1)).toBeLessThan(0.2);
});

test('memory is the sum of its parts, and sharding divides what it says', () => {
  const config: PlanConfig = { ...b16, gpus: 64, batch: 32768, checkpoint: true, microBatch: 64 };
  const [data, zero1, fsdp] = (['data', 'zero1', 'fsdp'] as const).map((sharding) =>
    planStep({ ...config, sharding }),
  );
  for (const { memory } of [data, zero1, fsdp]) {
    const { total, ...parts } = memory;
    expect(Object.values(parts).reduce((sum, bytes) => sum + bytes, 0)).toBeCloseTo(total, 0);
  }
  expect(zero1.memory.moments).toBeCloseTo(data.memory.moments / 64, 0);
  expect(zero1.memory.weights).toBe(data.memory.weights);
  expect(fsdp.memory.weights).toBeLessThan(data.memory.weights / 3);
  // An all-reduce sends what a reduce-scatter and a gather of float32 send.
  expect(data.traffic.gradients).toBeCloseTo(zero1.traffic.gradients + zero1.traffic.parameters, 0);
});

test('chooses what fits, and says when nothing does', () => {
  const large: PlanConfig = { ...b16, model: variant('g-opt/16'), gpu: gpus.a100 };
  const chosen = planStep({ ...large, gpus: 8, batch: 32768 });
  expect(chosen.fits).toBe(true);
  expect(32768 / 8 / chosen.microBatch).toBeGreaterThan(1);
  const none = planStep({ ...large, gpus: 1, batch: 4096, microBatch: 4096, checkpoint: false });
  expect(none.fits).toBe(false);
  expect(none.binds).toBe('memory');
  const small = planStep({ ...b16, gpus: 1, batch: 32768, checkpoint: false });
  expect(small.microBatch).toBeLessThan(32768);
  expect(small.fits).toBe(true);
});

test('more GPUs are faster while the batch is large enough', () => {
  const times = [8, 16, 32, 64].map(
    (count) => planStep({ ...b16, gpus: count, batch: 32768, sharding: 'fsdp' }).time.total,
  );
  for (const [i, seconds] of times.slice(1).entries()) {
    expect(seconds).toBeLessThan(times[i]);
  }
});

test('a ring keeps two blocks where a gather keeps the batch', () => {
  const config: PlanConfig = { ...b16, gpus: 256, batch: 65536, checkpoint: true, microBatch: 64 };
  const gather = planStep({ ...config, sharding: 'data' });
  const ring = planStep({ ...config, sharding: 'data', exchange: 'ring' });
  expect(ring.memory.embeddings).toBeLessThan(gather.memory.embeddings / 10);
});

test.each([
  [{ gpus: 3 }, /batch must be a multiple of gpus/],
  [{ gpus: 0 }, /gpus must be a positive integer/],
  [{ microBatch: 100 }, /batch must be a multiple of gpus times microBatch/],
])('refuses %j', (changes, message) => {
  expect(() => planStep({ ...b16, ...changes })).toThrow(message);
});

import { compile, gradient } from '../../lib/graph';
import { sigmoidLoss } from '../../lib/loss';
import type { ModelConfig, TextTowerOptions } from '../../lib/model';
import { initialize, twoTowers, twoTowersInputSpecs, twoTowersParameters } from '../../lib/model';
import type { Value } from '../nn/evaluate';
import {
  bytes,
  evaluate,
  integers,
  maxDifference,
  random,
  randomParameter,
  values,
} from '../nn/evaluate';
import { fixedConfig, naflexConfig } from '../nn/towers';

const batch = 4;
const idValues = Array.from({ length: batch * 6 }, (_, i) => (i * 7 + 3) % 31);
const ids = integers([batch, 6], idValues);
const fixed = { vision: { images: random('images', [batch, 3, 13, 13], 0.5) }, ids };
const naflex = {
  vision: {
    patches: random('patches', [batch, 9, 48], 0.5),
    shapes: integers([batch, 2], [3, 3, 2, 4, 1, 9, 4, 2]),
    mask: bytes(
      [batch, 9],
      Array.from({ length: batch * 9 }, (_, i) => (i % 18 === 17 ? 0 : 1)),
    ),
  },
  ids,
};

function train(
  config: ModelConfig,
  input: object,
  options: TextTowerOptions = {},
): Promise<Record<string, Float32Array>> {
  const parameters = twoTowersParameters(config, randomParameter);
  return evaluate({ parameters, input: input as typeof fixed }, (x) => {
    const loss = sigmoidLoss(twoTowers(x.parameters, config, x.input, options), x.parameters);
    return { loss, gradients: gradient(loss, x.parameters) };
  });
}

describe.each([
  ['fixed', fixedConfig, fixed],
  ['naflex', naflexConfig, naflex],
] as const)('%s layout', (_, config, input) => {
  test('the loss reaches every parameter but the biases of the keys', async () => {
    const results = await train(config, input);
    const paths: string[] = [];
    twoTowersParameters(config, ({ path }) => paths.push(path));
    for (const path of paths) {
      const largest = Math.max(...results[`gradients.${path}`].map(Math.abs));
      // Softmax does not see a shift common to all keys: that gradient is exactly zero.
      if (path.endsWith('key.bias')) expect([path, largest < 1e-6]).toEqual([path, true]);
      else expect([path, largest > 1e-6]).toEqual([path, true]);
    }
  });

  test('checkpointing gives the same loss and gradients, bit for bit', async () => {
    const plain = await train(config, input);
    expect(await train(config, input, { checkpoint: true })).toEqual(plain);
  });

  test('computing the pooled text token alone gives the same gradients', async () => {
    const plain = await train(config, input);
    const only = await train(config, input, { pooledOnly: true });
    for (const [name, expected] of Object.entries(plain)) {
      if (!name.startsWith('gradients.')) continue;
      expect([name, maxDifference(only[name], expected) < 1e-5]).toEqual([name, true]);
    }
  });
});

test('a difference quotient of the loss equals the gradient along its direction', async () => {
  const step = 1e-3;
  const direction = (path: string, shape: readonly number[]): Value =>
    random(`along/${path}`, shape);
  const lossAt = async (distance: number): Promise<number> => {
    const parameters = twoTowersParameters(fixedConfig, (spec) => {
      const along = direction(spec.path, spec.shape).data;
      const { data } = randomParameter(spec);
      return values(
        spec.shape,
        data.map((value, i) => value + distance * along[i]),
      );
    });
    const { loss } = await evaluate({ parameters, input: fixed }, (x) => ({
      loss: sigmoidLoss(twoTowers(x.parameters, fixedConfig, x.input), x.parameters),
    }));
    return loss[0];
  };
  const gradients = await train(fixedConfig, fixed);
  let slope = 0;
  twoTowersParameters(fixedConfig, ({ path, shape }) => {
    const along = direction(path, shape).data;
    gradients[`gradients.${path}`].forEach((value, i) => (slope += value * along[i]));
  });
  const quotient = ((await lossAt(step)) - (await lossAt(-step))) / (2 * step);
  expect(Math.abs(quotient / slope - 1)).toBeLessThan(0.02);
});

test('a fresh model starts near the loss of unrelated pairs', async () => {
  const parameters = initialize(fixedConfig, 3);
  const program = compile(
    'initial loss',
    (x) => ({ loss: sigmoidLoss(twoTowers(x.parameters, fixedConfig, x.input), x.parameters) }),
    {
      parameters: twoTowersParameters(fixedConfig, (spec) => spec),
      input: twoTowersInputSpecs(fixedConfig, batch),
    },
  );
  const { loss } = await program.run({
    parameters,
    input: { vision: { images: fixed.vision.images.data }, ids: ids.data },
  });
  // Between all pairs alike (cosine 1) and all pairs opposed (cosine −1).
  const [value] = await loss.read();
  expect(value).toBeGreaterThan(Math.log(2));
  expect(value).toBeLessThan(20 + 3 * Math.log(2));
  loss.dispose();
  program.dispose();
});

test('towers without a head have no loss', async () => {
  const config = { ...fixedConfig, vision: { ...fixedConfig.vision, pool: 'none' } } as const;
  await expect(train(config, fixed)).rejects.toThrow(
    'twoTowers: vision.pool must be map, got none',
  );
});

test('images and texts of different number are refused', async () => {
  const input = { ...fixed, ids: integers([2, 6], idValues.slice(0, 12)) };
  await expect(train(fixedConfig, input)).rejects.toThrow(
    'twoTowers: ids must have 4 rows, one per image, got 2',
  );
});

import type { ModelConfig, TextConfig, TextTowerOptions } from '../../lib/model';
import { textInputSpec, textParameters, textTower } from '../../lib/model';
import type { Value } from '../nn/evaluate';
import { evaluate, integers, maxDifference, ndTree, random, randomParameter } from '../nn/evaluate';
import { linear } from '../reference/linear';
import { ndArray } from '../reference/nd_array';
import { fixedConfig } from '../nn/towers';

const { width, length } = fixedConfig.text;
const ids = integers([2, length], [4, 9, 30, 1, 0, 0, 7, 7, 2, 1, 0, 0]);

function withPool(pool: TextConfig['pool']): ModelConfig {
  return { ...fixedConfig, text: { ...fixedConfig.text, pool } };
}

function run(
  config: ModelConfig,
  input: Value = ids,
  options: TextTowerOptions = {},
): Promise<Record<string, Float32Array>> {
  const parameters = textParameters(config, randomParameter);
  return evaluate({ parameters, input }, (x) => textTower(x.parameters, config, x.input, options));
}

test('gives tokens, pooled, projected and unit embedding, every stage tapped', async () => {
  const result = await run(fixedConfig);
  expect(Object.keys(result)).toEqual(
    expect.arrayContaining([
      'text.embedded',
      'text.blocks.0.attention',
      'text.blocks.1.output',
      'text.tokens',
      'text.pooled',
      'text.projected',
      'text.embedding',
    ]),
  );
  expect(result.tokens).toHaveLength(2 * length * width);
  expect(result.projected).toHaveLength(2 * fixedConfig.embedding);
  expect(Math.hypot(...result.embedding.subarray(0, fixedConfig.embedding))).toBeCloseTo(1, 5);
});

describe('pools', () => {
  const token = (tokens: Float32Array, b: number, t: number): Float32Array =>
    tokens.subarray((b * length + t) * width, (b * length + t + 1) * width);

  test.each([
    ['last', length - 1],
    ['first', 0],
  ] as const)('%s takes token %d', async (pool, index) => {
    const { tokens, pooled } = await run(withPool(pool));
    expect(pooled.subarray(0, width)).toEqual(token(tokens, 0, index));
    expect(pooled.subarray(width)).toEqual(token(tokens, 1, index));
  });

  test('mean takes the mean of all tokens, padding included', async () => {
    const { tokens, pooled } = await run(withPool('mean'));
    for (let b = 0; b < 2; b++) {
      for (let d = 0; d < width; d++) {
        let sum = 0;
        for (let t = 0; t < length; t++) sum += token(tokens, b, t)[d];
        expect(pooled[b * width + d]).toBeCloseTo(sum / length, 5);
      }
    }
  });

  test('map pools by attention with a head of its own', async () => {
    const result = await run(withPool('map'));
    const last = await run(withPool('last'));
    expect(result.tokens).toEqual(last.tokens);
    expect(result.pooled).toHaveLength(2 * width);
    expect(maxDifference(result.pooled, last.pooled)).toBeGreaterThan(1e-2);
  });

  test('the head is a linear layer with bias over what was pooled', async () => {
    const { pooled, projected } = await run(fixedConfig);
    const { head } = ndTree(textParameters(fixedConfig, randomParameter));
    const expected = linear(ndArray([2, width], pooled), head.weight, head.bias);
    expect(maxDifference(projected, expected.data)).toBeLessThan(1e-5);
  });
});

test('padding is seen: another padding id gives another embedding', async () => {
  const other = integers(ids.shape, [4, 9, 30, 1, 5, 0, 7, 7, 2, 1, 0, 0]);
  const before = await run(fixedConfig);
  const after = await run(fixedConfig, other);
  const { embedding: size } = fixedConfig;
  expect(
    maxDifference(before.projected.subarray(0, size), after.projected.subarray(0, size)),
  ).toBeGreaterThan(1e-3);
  expect(
    maxDifference(before.projected.subarray(size), after.projected.subarray(size)),
  ).toBeLessThan(1e-5);
});

test('attention is bidirectional: the first token sees the last', async () => {
  const other = integers(ids.shape, [4, 9, 30, 1, 0, 5, 7, 7, 2, 1, 0, 0]);
  const before = await run(withPool('first'));
  const after = await run(withPool('first'), other);
  expect(maxDifference(before.projected, after.projected)).toBeGreaterThan(1e-4);
});

test.each(['last', 'first'] as const)(
  'pooledOnly gives the same embedding, pool %s',
  async (pool) => {
    const full = await run(withPool(pool));
    const only = await run(withPool(pool), ids, { pooledOnly: true });
    expect(Object.keys(only)).not.toContain('tokens');
    expect(only['text.blocks.1.output']).toHaveLength(2 * width);
    expect(maxDifference(only.projected, full.projected)).toBeLessThan(1e-5);
  },
);

test.each(['mean', 'map'] as const)(
  'pooledOnly leaves pool %s, which reads every token, alone',
  async (pool) => {
    const full = await run(withPool(pool));
    expect(await run(withPool(pool), ids, { pooledOnly: true })).toEqual(full);
  },
);

test('wrong ids are refused', async () => {
  await expect(run(fixedConfig, integers([2, 5], new Int32Array(10)))).rejects.toThrow(
    'textTower: ids must have shape [2, 6], got [2, 5]',
  );
  await expect(run(fixedConfig, random('ids', [2, length]))).rejects.toThrow(
    'textTower: ids must be int32',
  );
  await expect(run(fixedConfig, integers([1, length], [0, 1, 2, 3, 4, 31]))).rejects.toThrow(/31/);
});

test('textInputSpec is a batch of padded texts', () => {
  expect(textInputSpec(fixedConfig, 3)).toEqual({ dtype: 'int32', shape: [3, length] });
});

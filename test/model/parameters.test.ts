import { flatten } from '../../lib/graph';
import type { ModelConfig, ParameterSpec } from '../../lib/model';
import {
  initialValues,
  initialize,
  parameterCount,
  parameterTable,
  textParameters,
  twoTowersParameters,
  variant,
  visionParameters,
} from '../../lib/model';
import { fixedConfig, naflexConfig } from '../nn/towers';

// Large enough for tight statistics, small enough to be quick.
const config = variant('Ti/16', { imageSize: 64, vocabulary: 500, length: 16 });

function spec(path: string, of: ModelConfig = config): ParameterSpec {
  const found = parameterTable(of).find((entry) => entry.path === path);
  if (found === undefined) throw new Error(`no parameter ${path}`);
  return found;
}

describe('parameterTable', () => {
  test('lists every leaf of the tree once, in its order', () => {
    const table = parameterTable(fixedConfig);
    const tree = twoTowersParameters(fixedConfig, (entry) => entry);
    const leaves = flatten(tree);
    expect(leaves.map(({ path }) => path)).toEqual(table.map(({ path }) => path));
    expect(leaves.map(({ leaf }) => leaf)).toEqual(table);
    expect(new Set(table.map(({ path }) => path)).size).toBe(table.length);
  });

  test('has the tensors of a checkpoint, query, key and value of the head being apart', () => {
    // 2 scalars; 16 per block and 2 + 2 + 2 beside in text; 3 + 2 + 15 beside in vision.
    expect(parameterTable(variant('B/16'))).toHaveLength(2 + 6 + 16 * 12 + 5 + 16 * 12 + 15);
  });

  test('names and shapes', () => {
    const shapes = Object.fromEntries(
      parameterTable(fixedConfig).map(({ path, shape }) => [path, shape.join(' ')]),
    );
    expect(shapes).toMatchObject({
      'vision.patchEmbedding.weight': '24 48',
      'vision.positions': '9 24',
      'vision.blocks.1.norm1.weight': '24',
      'vision.blocks.1.attention.query.weight': '24 24',
      'vision.blocks.1.mlp.fc1.weight': '40 24',
      'vision.blocks.1.mlp.fc2.weight': '24 40',
      'vision.blocks.1.mlp.fc2.bias': '24',
      'vision.head.probe': '1 24',
      'vision.head.attention.out.bias': '24',
      'text.tokens': '31 16',
      'text.positions': '6 16',
      'text.head.weight': '24 16',
      'text.head.bias': '24',
      logitScale: '1',
      logitBias: '1',
    });
    expect(Object.keys(shapes)).not.toContain('text.pool.probe');
  });

  test('towers alone have the same leaves under the same names', () => {
    const paths: string[] = [];
    visionParameters(fixedConfig, ({ path }) => paths.push(path));
    textParameters(fixedConfig, ({ path }) => paths.push(path));
    expect([...paths, 'logitScale', 'logitBias']).toEqual(
      parameterTable(fixedConfig).map(({ path }) => path),
    );
  });

  test('a headless vision tower and a MAP-pooled text tower', () => {
    const paths = parameterTable({
      ...naflexConfig,
      vision: { ...naflexConfig.vision, pool: 'none' },
      text: { ...naflexConfig.text, pool: 'map' },
    }).map(({ path }) => path);
    expect(paths.some((path) => path.startsWith('vision.head'))).toBe(false);
    expect(paths).toContain('text.pool.probe');
  });

  test('decay: the matrices of linear layers and nothing else', () => {
    for (const { path, decay } of parameterTable(config)) {
      const linear = /(patchEmbedding|query|key|value|out|fc1|fc2|text\.head)\.weight$/.test(path);
      expect([path, decay]).toEqual([path, linear]);
    }
    const decayed = parameterTable(variant('B/16', { imageSize: 224 })).filter(
      ({ decay }) => decay,
    );
    // Per block 4 D² + 2 D M; the MAP head has one block's; patches and head.
    const block = 4 * 768 ** 2 + 2 * 768 * 3072;
    expect(parameterCount(decayed)).toBe(25 * block + 2 * 768 ** 2);
  });

  test('an impossible config is refused', () => {
    expect(() => parameterTable({ ...fixedConfig, embedding: 3 })).toThrow(
      'model config: embedding',
    );
  });
});

interface Statistics {
  readonly mean: number;
  readonly deviation: number;
  readonly min: number;
  readonly max: number;
  readonly kurtosis: number;
}

function statistics(values: Float32Array): Statistics {
  let [sum, min, max] = [0, Infinity, -Infinity];
  for (const value of values) {
    sum += value;
    min = value < min ? value : min;
    max = value > max ? value : max;
  }
  const mean = sum / values.length;
  let [square, fourth] = [0, 0];
  for (const value of values) {
    square += (value - mean) ** 2;
    fourth += (value - mean) ** 4;
  }
  const variance = square / values.length;
  return {
    mean,
    deviation: Math.sqrt(variance),
    min,
    max,
    kurtosis: fourth / values.length / variance ** 2,
  };
}

describe('initialValues', () => {
  const seed = 20;

  // path, standard deviation, largest possible value, kurtosis (normal 3, uniform 1.8, normal
  // truncated at ±2σ 2.3654)
  const width = 192;
  const lecun = (fanIn: number): [number, number, number] => {
    const deviation = 1 / Math.sqrt(fanIn);
    return [deviation, (2 * deviation) / 0.87962566, 2.3654];
  };
  const xavier = (fanIn: number, fanOut: number): [number, number, number] => {
    const limit = Math.sqrt(6 / (fanIn + fanOut));
    return [limit / Math.sqrt(3), limit, 1.8];
  };
  const normal = (deviation: number): [number, number, number] => [deviation, Infinity, 3];
  test.each<[string, number, number, number]>([
    ['vision.patchEmbedding.weight', ...lecun(3 * 16 * 16)],
    ['text.head.weight', ...lecun(width)],
    ['vision.blocks.0.attention.query.weight', ...xavier(width, width)],
    ['vision.blocks.11.attention.out.weight', ...xavier(width, width)],
    ['text.blocks.3.attention.value.weight', ...xavier(width, width)],
    ['vision.head.attention.key.weight', ...xavier(width, width)],
    ['vision.blocks.5.mlp.fc1.weight', ...xavier(width, 768)],
    ['text.blocks.5.mlp.fc2.weight', ...xavier(width, 768)],
    ['vision.head.mlp.fc2.weight', ...xavier(width, 768)],
    ['vision.positions', ...normal(1 / Math.sqrt(width))],
    ['text.positions', ...normal(1 / Math.sqrt(width))],
    ['text.tokens', ...normal(1 / Math.sqrt(width))],
    ['vision.blocks.2.mlp.fc1.bias', ...normal(1e-6)],
    ['text.blocks.2.mlp.fc2.bias', ...normal(1e-6)],
    ['vision.head.probe', ...xavier(1, width)],
  ])('%s', (path, deviation, limit, kurtosis) => {
    const values = initialValues(spec(path), seed);
    const found = statistics(values);
    const n = values.length;
    // Four standard errors of each statistic.
    expect(Math.abs(found.mean)).toBeLessThan((4 * deviation) / Math.sqrt(n));
    const spread = Math.sqrt((kurtosis - 1) / n) / 2;
    expect(Math.abs(found.deviation / deviation - 1)).toBeLessThan(4 * spread);
    expect(Math.max(-found.min, found.max)).toBeLessThanOrEqual(limit * (1 + 1e-6));
    if (n > 10000) expect(Math.abs(found.kurtosis - kurtosis)).toBeLessThan(0.15);
    if (n > 10000 && limit < Infinity) {
      expect(Math.max(-found.min, found.max)).toBeGreaterThan(0.99 * limit);
    }
  });

  test('constants: biases 0, norms 1 and 0, t = ln 10, b = −10', () => {
    for (const entry of parameterTable(fixedConfig)) {
      if (!/(^logit|norm|norm1|norm2|bias)/.test(entry.path) || /fc[12]\.bias/.test(entry.path)) {
        continue;
      }
      const norm = /norm[12]?\.weight$/.test(entry.path);
      const expected =
        entry.path === 'logitScale'
          ? Math.fround(Math.LN10)
          : entry.path === 'logitBias'
            ? -10
            : norm
              ? 1
              : 0;
      expect([entry.path, new Set(initialValues(entry, seed))]).toEqual([
        entry.path,
        new Set([expected]),
      ]);
    }
  });

  test('every parameter has its own stream, the same whatever else the model has', () => {
    const values = (path: string, of: ModelConfig = config): Float32Array =>
      initialValues(spec(path, of), seed).subarray(0, 16);
    const query = values('vision.blocks.0.attention.query.weight');
    expect(values('vision.blocks.0.attention.query.weight')).toEqual(query);
    expect(values('vision.blocks.0.attention.key.weight')).not.toEqual(query);
    expect(values('vision.blocks.1.attention.query.weight')).not.toEqual(query);
    const reseeded = initialValues(spec('vision.blocks.0.attention.query.weight'), seed + 1);
    expect(reseeded.subarray(0, 16)).not.toEqual(query);
    const other = variant('Ti/32', { imageSize: 96, vocabulary: 77, length: 9 });
    expect(values('vision.blocks.0.attention.query.weight', other)).toEqual(query);
  });
});

describe('initialize', () => {
  test('gives the tree of initialValues', () => {
    const model = initialize(fixedConfig, 5);
    for (const entry of parameterTable(fixedConfig)) {
      const leaf = flatten(model).find(({ path }) => path === entry.path)?.leaf;
      expect(leaf).toEqual(initialValues(entry, 5));
    }
  });

  test('takes other starting logits', () => {
    const model = initialize(fixedConfig, 5, { logitScale: 1, logitBias: -Math.log(16) });
    expect(model.logitScale).toEqual(Float32Array.of(1));
    expect(model.logitBias).toEqual(Float32Array.of(-Math.log(16)));
  });

  test('a wrong seed is refused', () => {
    expect(() => initialize(fixedConfig, -1)).toThrow('seed must be an integer');
  });
});

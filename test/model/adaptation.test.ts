import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import type { AdaptationTarget, ModelConfig } from '../../lib/model';
import {
  adaptModel,
  parameterTable,
  patchAxis,
  resizePositions,
  variant,
  visionParameters,
  visionTower,
} from '../../lib/model';
import { alongAxis, linearAxis } from '../../lib/model/axis_map';
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

function noise(count: number, stream: string): Float32Array {
  const values = new Float32Array(count);
  new Philox4x32(5, stream).fillNormal(values, 1);
  return values;
}

function difference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a).toHaveLength(b.length);
  return Math.max(...Array.from({ length: a.length }, (_, i) => Math.abs(a[i] - b[i])));
}

describe('patchAxis', () => {
  test('from 2 to 4, written out', () => {
    const expected = [0.65, -0.15, 0.45, 0.05, 0.05, 0.45, -0.15, 0.65];
    expect(difference(patchAxis(2, 4).weights, expected)).toBeLessThan(1e-12);
  });

  // First row and Frobenius norm.
  test.each([
    [16, 14, [1.076868, 0.000714, -0.002618, 0.004712], 5.053158],
    [14, 16, [0.999282, -0.225892, 0.088202, -0.040797], 4.8273],
    [16, 32, [0.666667, -0.222222, 0.074074, -0.024691], 3.905125],
    [32, 16, [1, 1, 0, 0], 5.656854],
  ])('from %d to %d', (from, to, row, norm) => {
    const { weights } = patchAxis(from, to);
    expect(difference(weights.slice(0, 4), row)).toBeLessThan(1e-6);
    expect(Math.abs(Math.hypot(...weights) - norm)).toBeLessThan(1e-6);
  });

  // A P A = A and P A P = P with both products symmetric, A = Rᵀ.
  test.each([
    [16, 14],
    [14, 16],
    [3, 7],
    [31, 32],
    [1, 4],
    [5, 1],
    [12, 12],
  ])('from %d to %d is the pseudo-inverse', (from, to) => {
    const P = patchAxis(from, to).weights;
    const R = linearAxis(from, to, false).weights;
    const product = (transposed: boolean): number[] => {
      // Rᵀ P (from, from), or P Rᵀ (to, to).
      const [size, inner] = transposed ? [from, to] : [to, from];
      return Array.from({ length: size * size }, (_, at) => {
        const [i, j] = [Math.floor(at / size), at % size];
        let sum = 0;
        for (let k = 0; k < inner; k++) {
          sum += transposed ? R[k * from + i] * P[k * from + j] : P[i * from + k] * R[j * from + k];
        }
        return sum;
      });
    };
    const left = product(true);
    const right = product(false);
    for (const [square, size] of [
      [left, from],
      [right, to],
    ] as const) {
      const turned = square.map((_, at) => square[(at % size) * size + Math.floor(at / size)]);
      expect(difference(square, turned)).toBeLessThan(1e-10);
    }
    const again = Array.from({ length: from * to }, (_, at) => {
      const [i, j] = [Math.floor(at / to), at % to];
      let sum = 0;
      for (let k = 0; k < from; k++) sum += left[i * from + k] * R[j * from + k];
      return sum;
    });
    const transpose = again.map((_, at) => R[(at % to) * from + Math.floor(at / to)]);
    expect(difference(again, transpose)).toBeLessThan(1e-10);
    const itself = Array.from({ length: to * from }, (_, at) => {
      const [i, j] = [Math.floor(at / from), at % from];
      let sum = 0;
      for (let k = 0; k < to; k++) sum += right[i * to + k] * P[k * from + j];
      return sum;
    });
    expect(difference(itself, P)).toBeLessThan(1e-10);
  });
});

// What a constant patch gives stays; of patches that shrink, where their rows of R add up to one.
test.each([
  [16, 14],
  [32, 16],
  [14, 16],
  [16, 32],
  [3, 7],
  [31, 32],
])('columns of the map from %d to %d sum to one', (from, to) => {
  const { weights } = patchAxis(from, to);
  for (let j = 0; j < from; j++) {
    let column = 0;
    for (let i = 0; i < to; i++) column += weights[i * from + j];
    expect(Math.abs(column - 1)).toBeLessThan(1e-12);
  }
});

describe('resizePositions', () => {
  const { cases } = JSON.parse(
    readFileSync(join(__dirname, '..', 'golden', 'model', 'position_grid.json'), 'utf8'),
  ) as { cases: { n: number; m: number; grid: number[]; result: number[] }[] };

  test.each(cases)('cubic, $n × $n to $m × $m as torch does', ({ m, grid, result }) => {
    const resized = resizePositions(Float32Array.from(grid), 2, m, 'cubic');
    expect(difference(result, resized)).toBeLessThan(1e-6);
  });

  // The cubic kernel with a = −0.75 at distances 0.25, 0.75, 1.25 and 1.75.
  test('cubic, one to two, written out', () => {
    const line = [1, 10, 100, 1000];
    const grid = Float32Array.from({ length: 16 }, (_, i) => line[i % 4]);
    const resized = resizePositions(grid, 1, 8, 'cubic');
    const [a, b, c, d] = [-0.0351562, 0.2617188, 0.8789062, -0.1054688];
    expect(resized[3]).toBeCloseTo(d * 1 + c * 10 + b * 100 + a * 1000, 3);
    expect(resized[4]).toBeCloseTo(a * 1 + b * 10 + c * 100 + d * 1000, 3);
  });

  test.each([
    [12, 0, [0.7, 0.3]],
    [12, 1, [0, 0.5, 0.5]],
    [11, 0, [0.642857, 0.357143]],
    [11, 1, [0, 0.377778, 0.555556, 0.066667]],
    [24, 1, [0.5, 0.5]],
    [36, 1, [0.833333, 0.166667]],
  ])('linear, 16 to %d: row %d', (to, row, expected) => {
    const { weights } = linearAxis(16, to, true);
    const actual = weights.slice(16 * row, 16 * (row + 1));
    expect(
      difference(actual, [...expected, ...Array<number>(16 - expected.length).fill(0)]),
    ).toBeLessThan(1e-6);
  });

  test.each(['linear', 'corner', 'cubic'] as const)(
    '%s: a constant stays, and so does the same size',
    (method) => {
      const constant = new Float32Array(25).fill(0.7);
      for (const side of [1, 3, 8]) {
        const resized = resizePositions(constant, 1, side, method);
        expect(difference(resized, new Float32Array(side * side).fill(0.7))).toBeLessThan(1e-6);
      }
      expect(resizePositions(constant, 1, 5, method)).toBe(constant);
    },
  );

  test('corner: the corners are those of the old grid', () => {
    const grid = noise(16, 'corners');
    const resized = resizePositions(grid, 1, 7, 'corner');
    expect([resized[0], resized[6], resized[42], resized[48]]).toEqual([
      grid[0],
      grid[3],
      grid[12],
      grid[15],
    ]);
  });
});

/** Values of all parameters of a model, other than those it starts with. */
function randomParameters(config: ModelConfig): Map<string, Float32Array> {
  return new Map(
    parameterTable(config).map(({ path, shape }) => [
      path,
      noise(
        shape.reduce((a, b) => a * b),
        path,
      ),
    ]),
  );
}

describe('adaptModel', () => {
  test('gives every parameter of the new model its shape, and leaves the others as they are', () => {
    const targets: AdaptationTarget[] = [
      { imageSize: 22 },
      { patch: 3 },
      { patch: 5, imageSize: 21 },
      { layout: 'naflex', positions: 25 },
      { layout: 'naflex', patch: 6, positions: 9 },
    ];
    for (const target of targets) {
      const { config, adapt, changes } = adaptModel(fixedConfig, target);
      const old = randomParameters(fixedConfig);
      for (const { path, shape } of parameterTable(config)) {
        const values = old.get(path) ?? new Float32Array();
        const adapted = adapt(path, values);
        expect([path, adapted.length]).toEqual([path, shape.reduce((a, b) => a * b)]);
        expect(adapted === values).toBe(!changes(path));
        if (changes(path)) expect(path).toMatch(/^vision\.(patchEmbedding\.weight|positions)$/u);
      }
      expect(config.text).toBe(fixedConfig.text);
    }
  });

  test('the published sizes', () => {
    const so400m = variant('So400m/16', { imageSize: 256 });
    expect(adaptModel(so400m, { patch: 14, imageSize: 224 }).config).toEqual(
      variant('So400m/14', { imageSize: 224 }),
    );
    expect(adaptModel(so400m, { patch: 14, imageSize: 384 }).config.vision.positions).toBe(729);
    expect(adaptModel(so400m, { layout: 'naflex' }).config).toEqual(
      variant('So400m/16', { layout: 'naflex' }),
    );
    const naflex = variant('B/16', { layout: 'naflex' });
    expect(adaptModel(naflex, { layout: 'fixed' }).config).toEqual(variant('B/16'));
  });

  test.each(['fixed', 'naflex'] as const)(
    'a resized patch answers the resized kernel: %s',
    (layout) => {
      const from = layout === 'fixed' ? fixedConfig : naflexConfig;
      const { adapt } = adaptModel(from, { patch: 7 });
      const { width } = from.vision;
      const kernel = noise(width * 48, 'kernel');
      const resized = adapt('vision.patchEmbedding.weight', kernel);
      const x = noise(48, 'patch');
      const [outer, colours] = layout === 'fixed' ? [3, 1] : [1, 3];
      const axis = linearAxis(4, 7, false);
      const rows = alongAxis(axis, x, outer, 4 * colours);
      const larger = alongAxis(axis, rows, outer * 7, colours);
      for (let d = 0; d < width; d++) {
        let [before, after] = [0, 0];
        for (let i = 0; i < 48; i++) before += kernel[d * 48 + i] * x[i];
        for (let i = 0; i < 147; i++) after += resized[d * 147 + i] * larger[i];
        expect(Math.abs(after - before)).toBeLessThan(1e-5);
      }
    },
  );

  test('from one layout to the other and back is where it began', () => {
    const there = adaptModel(fixedConfig, { layout: 'naflex', positions: 9 });
    const back = adaptModel(there.config, { layout: 'fixed', imageSize: 13 });
    expect(back.config).toEqual(fixedConfig);
    for (const [path, values] of randomParameters(fixedConfig)) {
      expect(back.adapt(path, there.adapt(path, values))).toEqual(values);
    }
  });

  test('NaFlex at the full square grid is the fixed model', async () => {
    const fixed: ModelConfig = {
      ...fixedConfig,
      vision: { ...naflexConfig.vision, layout: 'fixed', imageSize: 12 },
    };
    const { config, adapt } = adaptModel(fixed, { layout: 'naflex', positions: 9 });
    const images = random('images', [2, 3, 12, 12]);
    // Row (b, gy, gx) holds (y, x, colour) of its patch.
    const patches = Float32Array.from({ length: images.data.length }, (_, at) => {
      const [b, patch, y, x] = [432, 48, 12, 3].map((step) => Math.floor(at / step));
      const [row, column] = [Math.floor((patch % 9) / 3) * 4 + (y % 4), (patch % 3) * 4 + (x % 4)];
      return images.data[((b * 3 + (at % 3)) * 12 + row) * 12 + column];
    });
    const before = await evaluate(
      { parameters: visionParameters(fixed, randomParameter), input: { images } },
      ({ parameters, input }) => ({ tokens: visionTower(parameters, fixed, input).tokens }),
    );
    const parameters = visionParameters(config, ({ path, shape }) => {
      const old = parameterTable(fixed).find((spec) => spec.path === path);
      const { data } = randomParameter({ path, shape: old?.shape ?? shape });
      return values(shape, adapt(path, Float32Array.from(data)));
    });
    const input = {
      patches: values([2, 9, 48], patches),
      shapes: integers([2, 2], [3, 3, 3, 3]),
      mask: bytes([2, 9], Array<number>(18).fill(1)),
    };
    const after = await evaluate({ parameters, input }, (x) => ({
      tokens: visionTower(x.parameters, config, x.input).tokens,
    }));
    expect(maxDifference(after.tokens, before.tokens)).toBeLessThan(1e-5);
    expect(maxDifference(after['vision.embedding'], before['vision.embedding'])).toBeLessThan(1e-6);
  });

  test('moments: m as the parameter, v anew or by squared weights', () => {
    const target = { patch: 5, imageSize: 20 };
    const [m, v] = [noise(24 * 48, 'm'), noise(24 * 48, 'v').map((value) => value * value)];
    const path = 'vision.patchEmbedding.weight';
    const plain = adaptModel(fixedConfig, target);
    const reset = plain.adaptMoments(path, m, v);
    expect(reset.m).toEqual(plain.adapt(path, m));
    expect(reset.v).toEqual(new Float32Array(24 * 75));
    expect(reset.reset).toBe(true);
    const mapped = adaptModel(fixedConfig, target, { secondMoment: 'squared' });
    const second = mapped.adaptMoments(path, m, v);
    expect(second.reset).toBe(false);
    // Variances of a sum of independent parts: one unit of variance at a time.
    const P = patchAxis(4, 5).weights;
    for (const [y, x, value] of [
      [0, 0, second.v[0]],
      [2, 4, second.v[14]],
    ]) {
      let expected = 0;
      for (let i = 0; i < 4; i++) {
        for (let j = 0; j < 4; j++) expected += (P[y * 4 + i] * P[x * 4 + j]) ** 2 * v[i * 4 + j];
      }
      expect(Math.abs(value - expected)).toBeLessThan(1e-5 * expected);
    }
  });

  test('moments that are only put in another order keep their count', () => {
    const { adapt, adaptMoments } = adaptModel(fixedConfig, { layout: 'naflex', positions: 9 });
    const [m, v] = [noise(24 * 48, 'm'), noise(24 * 48, 'v')];
    const path = 'vision.patchEmbedding.weight';
    expect(adaptMoments(path, m, v)).toEqual({
      m: adapt(path, m),
      v: adapt(path, v),
      reset: false,
    });
    expect(adaptMoments('text.positions', m, v)).toEqual({ m, v, reset: false });
  });

  test.each<[AdaptationTarget, string]>([
    [{ layout: 'naflex', imageSize: 20 }, 'imageSize must be absent in the naflex layout, got 20'],
    [{ positions: 9 }, 'positions must be absent in the fixed layout, got 9'],
    [
      { layout: 'naflex', positions: 8 },
      'vision.positions must be the square of a grid side, got 8',
    ],
    [{ imageSize: 3 }, 'vision.imageSize must be at least the patch size 4, got 3'],
    [{ patch: 2.5 }, 'vision.patch must be a positive integer, got 2.5'],
  ])('%j is refused', (target, message) => {
    expect(() => adaptModel(fixedConfig, target)).toThrow(message);
  });

  test('values of another model are refused', () => {
    const { adapt } = adaptModel(fixedConfig, { imageSize: 20 });
    expect(() => adapt('vision.positions', new Float32Array(5))).toThrow(
      'adapt: vision.positions must have 216 elements, got 5',
    );
  });
});

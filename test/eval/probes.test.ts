import { Philox4x32 } from '../../lib/array/random';
import { choleskySolver, symmetricEigen } from '../../lib/array/symmetric';
import {
  DenseProbe,
  evaluateDenseProbe,
  fewShot,
  ridgeProbe,
  ridgeProbes,
  SegmentationScore,
  trainDenseProbe,
} from '../../lib/eval';
import type { DenseExample, LabelledRows, RidgeProbe } from '../../lib/eval';
import { addGradient } from '../../lib/eval/dense_probe';
import { describeGolden } from '../golden_cases/golden';

function normals(count: number, stream: string): Float32Array {
  const values = new Float32Array(count);
  new Philox4x32(9, stream).fillNormal(values, 1);
  return values;
}

describe('symmetric matrices', () => {
  const sizes = [1, 2, 3, 17, 40];

  // Of rank n, or n/2 where every second column of the factor is zero.
  function positive(n: number, rank: number): Float64Array {
    const factor = normals(n * n, `factor ${String(n)}`);
    const matrix = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        for (let k = 0; k < rank; k++) matrix[i * n + j] += factor[i * n + k] * factor[j * n + k];
      }
    }
    return matrix;
  }

  test.each(sizes)('eigenvectors are orthonormal and rebuild the matrix: %d', (n) => {
    for (const matrix of [
      positive(n, n),
      positive(n, Math.ceil(n / 2)),
      new Float64Array(n * n),
      Float64Array.from({ length: n * n }, (_, at) => (at % n === Math.floor(at / n) ? 3 : 0)),
    ]) {
      const { values, vectors } = symmetricEigen(matrix, n);
      for (let i = 0; i < n; i++) {
        for (let j = 0; j < n; j++) {
          let [product, rebuilt] = [0, 0];
          for (let k = 0; k < n; k++) {
            product += vectors[i * n + k] * vectors[j * n + k];
            rebuilt += values[k] * vectors[k * n + i] * vectors[k * n + j];
          }
          expect(Math.abs(product - (i === j ? 1 : 0))).toBeLessThan(1e-12 * n);
          expect(Math.abs(rebuilt - matrix[i * n + j])).toBeLessThan(1e-12 * n * n);
        }
      }
    }
  });

  test.each(sizes)('Cholesky solves: %d', (n) => {
    const matrix = positive(n, n);
    for (let i = 0; i < n; i++) matrix[i * n + i] += 1;
    const x = Float64Array.from(normals(n, 'x'));
    const b = Float64Array.from({ length: n }, (_, i) =>
      x.reduce((sum, value, k) => sum + matrix[i * n + k] * value, 0),
    );
    choleskySolver(matrix, n)(b);
    for (let i = 0; i < n; i++) expect(Math.abs(b[i] - x[i])).toBeLessThan(1e-9);
  });

  test('what cannot be solved is refused', () => {
    expect(() => choleskySolver(Float64Array.of(1, 2, 2, 1), 2)).toThrow('positive definite');
    expect(() => symmetricEigen(Float64Array.of(1, NaN, NaN, 1), 2)).toThrow('finite numbers');
  });
});

describeGolden('bv_evaluators', (golden) => {
  describe.each(['n_ge_d', 'n_lt_d'])('few-shot probe, %s', (name) => {
    const tensor = (part: string): readonly number[] => [...golden.tensor(part).data];
    const features = (part: string): { data: Float32Array; width: number } => {
      const { data, shape } = golden.tensor(`in/fewshot/${name}/${part}`);
      return { data: Float32Array.from(data), width: shape[1] };
    };
    const { fewshot } = golden.json.config as {
      readonly fewshot: { readonly classes: number; readonly l2_powers: number[] };
    };
    const compare = (probe: RidgeProbe, power: number): void => {
      const folder = `out/fewshot/${name}/l2_${String(power)}`;
      const test = features('x_test');
      for (const [part, actual] of [
        [`${folder}/weights`, probe.weights],
        [`${folder}/test_scores`, probe.scores(test)],
        [`out/fewshot/${name}/mean`, probe.mean],
        [`out/fewshot/${name}/std_plus_eps`, probe.deviation],
      ] as const) {
        const expected = tensor(part);
        expect([part, actual.length]).toEqual([part, expected.length]);
        const values: ArrayLike<number> = actual;
        const worst = Math.max(...expected.map((value, i) => Math.abs(value - values[i])));
        expect([part, worst <= golden.atol(part)]).toEqual([part, true]);
      }
      const labels = tensor(`in/fewshot/${name}/y_test`);
      const predicted = probe.predict(test);
      const right = labels.filter((label, i) => predicted[i] === label).length / labels.length;
      expect(right).toBeCloseTo(tensor(`${folder}/accuracy`)[0], 6);
    };

    test.each(fewshot.l2_powers)('closed form, l2 = 2^%d', (power) => {
      const labels = Int32Array.from(tensor(`in/fewshot/${name}/y_train`));
      compare(ridgeProbe(features('x_train'), labels, fewshot.classes, 2 ** power), power);
    });

    test('by eigendecomposition, all l2 at once', () => {
      const labels = Int32Array.from(tensor(`in/fewshot/${name}/y_train`));
      const ridges = fewshot.l2_powers.map((power) => 2 ** power);
      const probes = ridgeProbes(features('x_train'), labels, fewshot.classes, ridges);
      probes.forEach((probe, i) => {
        compare(probe, fewshot.l2_powers[i]);
      });
    });
  });
});

describe('fewShot', () => {
  const width = 6;

  // Three classes around three corners; the distance decides how easy they are.
  function clusters(perClass: number, distance: number, stream: string): LabelledRows {
    const labels = Int32Array.from({ length: 3 * perClass }, (_, i) => i % 3);
    const data = normals(labels.length * width, stream).map(
      (value, i) => value + (i % width === labels[Math.floor(i / width)] ? distance : 0),
    );
    return { data, width, labels };
  }

  test('finds classes that lie apart, and not those that do not', () => {
    const pool = clusters(30, 6, 'pool');
    const { accuracy, bySeed } = fewShot(pool, clusters(50, 6, 'test'), 3, { ridge: 1 });
    expect(accuracy).toBeGreaterThan(0.97);
    expect(bySeed).toHaveLength(3);
    const lost = fewShot(clusters(30, 0, 'pool'), clusters(50, 0, 'test'), 3, { ridge: 1 });
    expect(lost.accuracy).toBeLessThan(0.5);
  });

  test('its examples follow from the seed', () => {
    const [pool, test] = [clusters(30, 1, 'pool'), clusters(50, 1, 'test')];
    const once = (seeds: readonly number[]): readonly number[] =>
      fewShot(pool, test, 3, { seeds, shots: 4 }).bySeed.map(({ count }) => count);
    expect(once([1, 2, 3])).toEqual(once([1, 2, 3]));
    expect(once([1, 2, 3])).not.toEqual(once([4, 5, 6]));
  });

  test.each([
    ['a class with too few examples', 31, 3, 'class 0 must have 31 examples, got 30'],
    ['labels beyond the classes', 5, 2, 'labels must be from 0 to 1, got 2'],
  ])('%s is refused', (_, shots, classes, message) => {
    const pool = clusters(30, 1, 'pool');
    const run = (): unknown =>
      shots > 30 ? fewShot(pool, pool, classes, { shots }) : ridgeProbe(pool, pool.labels, classes);
    expect(run).toThrow(message);
  });
});

test('intersection over union, written out', () => {
  const score = new SegmentationScore(4);
  score.add(Uint8Array.of(0, 0, 1, 1, 2, 3), Uint8Array.of(0, 1, 1, 1, 255, 0));
  // Class 0: one of three; class 1: two of three; class 2 never counts; class 3: none of one.
  expect(score.byClass).toEqual([1 / 3, 2 / 3, NaN, 0]);
  expect(score.meanIoU).toBeCloseTo(1 / 3, 12);
  expect(score.accuracy).toBeCloseTo(3 / 5, 12);
  expect(() => {
    score.add(Uint8Array.of(4), Uint8Array.of(0));
  }).toThrow('classes must be below 4, got 4');
  expect(() => {
    score.add(Uint8Array.of(1), Uint8Array.of(0, 1));
  }).toThrow('predictions must be one per label, 2, got 1');
});

describe('dense probe', () => {
  const width = 5;
  const grid = [3, 4] as const;

  // Each cell of the grid has one class; its tokens say it in one coordinate, under noise.
  function examples(count: number, signal: number, stream: string): DenseExample[] {
    const random = new Philox4x32(4, stream);
    const [height, width_] = [12, 16];
    return Array.from({ length: count }, () => {
      const cells = Array.from({ length: 12 }, () => random.integer(3));
      const tokens = Float32Array.from({ length: 12 * width }, (_, i) => {
        const own = cells[Math.floor(i / width)] === i % width ? signal : 0;
        return own + 0.5 * random.normal() + (i % width) * 10;
      });
      const labels = Uint8Array.from({ length: height * width_ }, (_, at) => {
        const [y, x] = [Math.floor(at / width_), at % width_];
        const border = y % 4 === 0 || x % 4 === 0;
        return border ? 255 : cells[Math.floor(y / 4) * 4 + Math.floor(x / 4)];
      });
      return { tokens, grid, target: { labels, height, width: width_ } };
    });
  }

  test('reads classes that tokens hold, and none that they do not', () => {
    const options = { classes: 3, steps: 60, batch: 4, learningRate: 0.1 };
    const probe = trainDenseProbe(examples(12, 4, 'train'), options);
    const seen = evaluateDenseProbe(probe, examples(6, 4, 'test'));
    expect(seen.meanIoU).toBeGreaterThan(0.85);
    const blind = trainDenseProbe(examples(12, 0, 'train'), options);
    expect(evaluateDenseProbe(blind, examples(6, 0, 'test')).meanIoU).toBeLessThan(0.4);
    expect(
      evaluateDenseProbe(trainDenseProbe(examples(12, 4, 'train'), options), examples(6, 4, 'test'))
        .byClass,
    ).toEqual(seen.byClass);
  });

  test('its gradient is the slope of its loss', () => {
    const [example] = examples(1, 2, 'slope');
    const weights = Float64Array.from(normals((width + 1) * 3, 'weights'));
    const probe = (w: Float64Array): DenseProbe =>
      new DenseProbe(3, new Float64Array(width), new Float64Array(width).fill(3), w);
    const x = probe(weights).standardize(example);
    const gradient = new Float64Array(weights.length);
    addGradient(probe(weights), example, x, 1, gradient);
    const along = normals(weights.length, 'direction');
    const lossAt = (distance: number): number =>
      addGradient(
        probe(weights.map((value, i) => value + distance * along[i])),
        example,
        x,
        1,
        new Float64Array(weights.length),
      );
    const slope = gradient.reduce((sum, value, i) => sum + value * along[i], 0);
    expect((lossAt(1e-5) - lossAt(-1e-5)) / 2e-5).toBeCloseTo(slope, 6);
  });

  test('tokens and labels that do not fit are refused', () => {
    const [example] = examples(1, 1, 'refused');
    const run = (change: Partial<DenseExample>, classes = 3): (() => unknown) => {
      return () => trainDenseProbe([example, { ...example, ...change }], { classes });
    };
    expect(run({ tokens: new Float32Array(7) })).toThrow('example 1 must have 3 · 4 tokens');
    expect(run({ target: { ...example.target, height: 13 } })).toThrow(
      '13 · 16 labels below 3, got 60 values, 192 labels',
    );
    expect(run({}, 2)).toThrow('and the class 2');
    expect(() => trainDenseProbe([], { classes: 3 })).toThrow('got 0 and 3');
  });
});

import { Philox4x32 } from '../../lib/array/random';
import type { BiasExample } from '../../lib/data';
import { biasReport, ClipTheBias, keeps } from '../../lib/data';

const options = { targets: [0.5, 0.3], labels: 2 };

// The first attribute is too frequent and goes with the first label; the second is as wanted, and goes
// against the second label.
function* biased(count: number, seed: number): Generator<BiasExample> {
  const random = new Philox4x32(seed, 'biased');
  const draw = (share: number): number => (random.uniform() < share ? 1 : 0);
  for (let i = 0; i < count; i++) {
    const attributes = [draw(0.53), draw(0.3)];
    const labels = [
      draw(attributes[0] === 1 ? 0.28 : 0.2),
      draw(attributes[1] === 1 ? 0.15 : 0.25),
    ];
    yield { attributes, labels };
  }
}

function fitted(): ClipTheBias {
  const rough = new ClipTheBias(options);
  for (const example of biased(300_000, 1)) rough.update(example);
  const fair = new ClipTheBias({ ...options, rate: 1e-4 });
  fair.restore(rough.state());
  for (const example of biased(300_000, 3)) fair.update(example);
  return fair;
}

describe('ClipTheBias', () => {
  const fair = fitted();

  test('both biases fall to their tolerances, and as much is kept as was asked', () => {
    const report = biasReport(biased(100_000, 2), options, (example) => fair.weight(example));
    expect(report.examples).toBe(100_000);
    expect(report.before.representation).toBeGreaterThan(0.025);
    expect(report.before.association).toBeGreaterThan(0.018);
    // A tenth more than the tolerances for the noise of the sample.
    expect(report.after.representation).toBeLessThan(0.011);
    expect(report.after.parity).toBeLessThan(0.011);
    // ε_D + ε_R E[y], labels being rarer than a quarter.
    expect(report.after.association).toBeLessThan(0.0125);
    expect(Math.abs(report.kept - 0.9)).toBeLessThan(0.01);
  });

  test('drawing by the weights does the same, and the same again', () => {
    const draw = (example: BiasExample, index: number): number =>
      keeps(fair.weight(example), 7, index) ? 1 : 0;
    const report = biasReport(biased(100_000, 2), options, draw);
    expect(report.after.representation).toBeLessThan(0.014);
    expect(report.after.association).toBeLessThan(0.014);
    expect(Math.abs(report.kept - 0.9)).toBeLessThan(0.01);
    expect(biasReport(biased(100_000, 2), options, draw)).toEqual(report);
  });

  test('bias, written out', () => {
    const examples = [
      { attributes: [1], labels: [1] },
      { attributes: [1], labels: [0] },
      { attributes: [0], labels: [0] },
      { attributes: [1], labels: [1] },
    ];
    const weights = [1, 0, 1, 0];
    const report = biasReport(examples, { targets: [0.5], labels: 1 }, (_, i) => weights[i]);
    expect(report).toEqual({
      examples: 4,
      kept: 0.5,
      before: {
        representation: 0.25,
        association: 0.125,
        parity: 0.25,
        shares: [0.75],
        covariances: [[0.125]],
      },
      after: {
        representation: 0,
        association: 0.25,
        parity: 0.25,
        shares: [0.5],
        covariances: [[0.25]],
      },
    });
  });

  test('a stream without bias keeps its examples alike', () => {
    const plain = new ClipTheBias({ targets: [0.5], labels: 1 });
    const random = new Philox4x32(3);
    const example = (): BiasExample => ({
      attributes: [random.integer(2)],
      labels: [random.integer(2)],
    });
    for (let i = 0; i < 50_000; i++) plain.update(example());
    for (let i = 0; i < 20; i++) {
      expect(Math.abs(plain.weight(example()) - 0.9)).toBeLessThan(0.03);
    }
  });

  test('goes on from its state', () => {
    const [whole, first, second] = [0, 1, 2].map(() => new ClipTheBias(options));
    const examples = [...biased(2000, 5)];
    for (const example of examples) whole.update(example);
    for (const example of examples.slice(0, 900)) first.update(example);
    second.restore(JSON.parse(JSON.stringify(first.state())) as ReturnType<ClipTheBias['state']>);
    for (const example of examples.slice(900)) second.update(example);
    expect(second.state()).toEqual(whole.state());
  });

  test('one step, written out', () => {
    const one = new ClipTheBias({ targets: [0.5], labels: 1, rate: 0.1 });
    const example = { attributes: [1], labels: [1] };
    expect(one.update(example)).toBe(0.9);
    // a = ±0.5 − 0.01 for both bounds: the two positive features gain 0.1 · 0.9 · 0.49.
    const { multipliers, mean } = one.state();
    expect(multipliers.map((v) => Number(v.toFixed(12)))).toEqual([0.0441, 0, 0.0441, 0]);
    expect(mean).toBe(0);
    expect(one.weight(example)).toBeCloseTo(0.9 - 2 * 0.0441 * 0.49, 12);
    expect(one.weight({ attributes: [0], labels: [1] })).toBeCloseTo(
      Math.min(1, 0.9 + 2 * 0.0441 * 0.51),
      12,
    );
    expect(one.weight(example, 0.5)).toBeCloseTo(0.5 - 2 * 0.0441 * 0.49, 12);
  });

  test.each([
    [{ targets: [1.5] }, 'targets must be shares from 0 to 1, got 1.5'],
    [{ mean: 1 }, 'mean must be between 0 and 1, got 1'],
    [{ labels: -1 }, 'labels must be an integer from 0, got -1'],
    [{ rate: 0 }, 'rate must be positive, got 0'],
  ])('%j is refused', (changes, message) => {
    expect(() => new ClipTheBias({ ...options, ...changes })).toThrow(message);
  });

  test('examples of another form, and weights that are all zero, are refused', () => {
    const other = { attributes: [1], labels: [0, 1] };
    expect(() => fair.weight(other)).toThrow('must have 2 attributes and 2 labels, got 1 and 2');
    expect(() => biasReport(biased(3, 1), options, () => 0)).toThrow('positive sum, got 0');
  });
});

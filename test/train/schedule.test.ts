import { cosineSchedule } from '../../lib/train';

describe('cosineSchedule', () => {
  // SigLIP 2: 40e9 examples in batches of 32,768, warm-up 20,000 steps (arXiv 2502.14786 §2.1), times 1e-3.
  const published = { totalSteps: 1220703, warmupSteps: 20000 };

  test.each([
    [610352, 5.13e-4],
    [976562, 9.86e-5],
    [1098633, 2.53e-5],
    [1159668, 6.36e-6],
  ])('learning rate at step %d', (step, rate) => {
    expect(Math.abs(1e-3 * cosineSchedule(step, published) - rate)).toBeLessThan(rate * 0.005);
  });

  test('the first update is exactly zero, and the end is', () => {
    expect(cosineSchedule(0, published)).toBe(0);
    expect(cosineSchedule(1220703, published)).toBe(0);
  });

  test('a warm-up that does not fit is refused', () => {
    expect(() => cosineSchedule(0, { totalSteps: 5, warmupSteps: 5 })).toThrow(/warmupSteps/);
  });
});

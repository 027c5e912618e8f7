import { cosineSchedule, ScheduleProgress } from '../../lib/train';

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

describe('ScheduleProgress', () => {
  const schedule = { totalSteps: 100, warmupSteps: 10 };

  test('a range goes on where the one before it ended', () => {
    const progress = new ScheduleProgress(schedule, { start: 80, end: 95 });
    expect(progress.updates).toBe(15);
    expect(progress.multiplier(0)).toBe(cosineSchedule(80, schedule));
    expect(progress.isOver(14)).toBe(false);
    expect(progress.isOver(15)).toBe(true);
  });

  test('stretched, half batches count as halves (SigLIP 2 §2.4.2)', () => {
    const progress = new ScheduleProgress(schedule, { start: 90, stretch: 3.75 });
    expect(progress.updates).toBe(38);
    expect(progress.multiplier(7.5)).toBeCloseTo(cosineSchedule(92, schedule), 12);
    expect(progress.isOver(37)).toBe(false);
    expect(progress.isOver(37.5)).toBe(true);
  });

  // The NaFlex fork at 90 % (SigLIP 2, arXiv 2502.14786 §2.4.2).
  test('the published NaFlex run', () => {
    const published = { totalSteps: 1220703, warmupSteps: 20000 };
    const start = 0.9 * published.totalSteps;
    const progress = new ScheduleProgress(published, { start, stretch: 3.75 });
    expect(Math.abs(progress.updates - 457763)).toBeLessThanOrEqual(1);
    expect(1e-3 * progress.multiplier(0)).toBeCloseTo(2.53e-5, 7);
    expect(1e-3 * progress.multiplier(progress.updates / 2)).toBeCloseTo(6.36e-6, 8);
    expect(progress.multiplier(progress.updates)).toBeCloseTo(0, 12);
  });

  test.each([{ start: 5, end: 5 }, { end: 101 }, { stretch: 0 }, { start: -1 }])(
    'the range %j is refused',
    (range) => {
      expect(() => new ScheduleProgress(schedule, range)).toThrow(/range must be/);
    },
  );
});

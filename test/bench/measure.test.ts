import { measure, median } from '../../bench/measure';

test('the median of an even number of values lies between the middle two', () => {
  expect(median([4, 1, 3])).toBe(3);
  expect(median([4, 1, 3, 2])).toBe(2.5);
});

describe('measure', () => {
  test('runs contenders in turns, every other round backwards, after the warm-up', async () => {
    const calls: string[] = [];
    const contender = (name: string, seconds: readonly number[]) => {
      let run = 0;
      return {
        name,
        run: () => {
          calls.push(name);
          return Promise.resolve(seconds[run++ % seconds.length]);
        },
      };
    };
    // One warm-up run each, then rounds; a disturbed machine may add rounds, never fewer than four.
    const { seconds, ratios, rounds, rejected } = await measure(
      [contender('a', [1]), contender('b', [2])],
      { rounds: 4, mostRounds: 40, warmups: 1 },
    );
    expect(calls.slice(0, 2)).toEqual(['a', 'b']);
    expect(calls.slice(2, 10).join('')).toBe('abbaabba');
    expect(rounds + rejected).toBe((calls.length - 2) / 2);
    expect(seconds.get('b')).toBe(2);
    expect(ratios.get('b')).toBe(2);
    expect(ratios.get('a')).toBe(1);
  });

  test('times a contender that has no clock of its own', async () => {
    const { seconds } = await measure(
      [
        {
          name: 'sleeper',
          run: async () => {
            await new Promise((resolve) => setTimeout(resolve, 20));
            return undefined;
          },
        },
      ],
      { rounds: 1, mostRounds: 1, warmups: 0 },
    );
    // Timers may fire a millisecond early.
    expect(seconds.get('sleeper')).toBeGreaterThan(0.018);
  });
});

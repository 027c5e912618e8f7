import type { NextLogits } from '../../lib/embed/search';
import { logSoftmax, search } from '../../lib/embed/search';

// A language of five tokens whose probabilities depend on all tokens before, and 4 ends a sequence. The
// likeliest first token leads to nothing likely.
const END = 4;
const table: Readonly<Record<string, readonly number[]>> = {
  '': [0.5, 0.4, 0.05, 0.04, 0.01],
  '0': [0.2, 0.2, 0.2, 0.2, 0.2],
  '1': [0.02, 0.02, 0.9, 0.03, 0.03],
  '1 2': [0.02, 0.02, 0.02, 0.02, 0.92],
};
const otherwise = [0.1, 0.1, 0.1, 0.1, 0.6];

/** The language as a decoder would give it: the newest tokens and whom they continue. */
function language(): NextLogits {
  let live: readonly (readonly number[])[] = [[]];
  return (tokens, parents) => {
    live = tokens.length === 0 ? live : parents.map((parent, i) => [...live[parent], tokens[i]]);
    const rows = live.map((ids) => (table[ids.join(' ')] ?? otherwise).map(Math.log));
    return Promise.resolve(Float32Array.from(rows.flat()));
  };
}

test('greedy takes the likeliest token each time', async () => {
  const { ids, logProbability } = await search(language(), END, 3, {});
  // After 0 all are alike, and the first is taken.
  expect(ids).toEqual([0, 0]);
  expect(logProbability).toBeCloseTo(Math.log(0.5 * 0.2 * 0.6), 5);
});

test('a beam finds the likelier sequence', async () => {
  const { ids, logProbability } = await search(language(), END, 3, { beams: 2 });
  expect(ids).toEqual([1, 2]);
  expect(logProbability).toBeCloseTo(Math.log(0.4 * 0.9 * 0.92), 5);
});

test('as many beams as there are sequences find the best of all', async () => {
  const best = { ids: [] as number[], p: 0 };
  const visit = (ids: number[], p: number): void => {
    (table[ids.join(' ')] ?? otherwise).forEach((q, token) => {
      if (token === END || ids.length === 2) {
        const all = token === END ? ids : [...ids, token];
        if (p * q > best.p) Object.assign(best, { ids: all, p: p * q });
      } else visit([...ids, token], p * q);
    });
  };
  visit([], 1);
  const { ids, logProbability } = await search(language(), END, 3, { beams: 64 });
  expect(ids).toEqual(best.ids);
  expect(logProbability).toBeCloseTo(Math.log(best.p), 5);
});

test('the limit ends a sequence', async () => {
  const { ids } = await search(language(), END, 1, { beams: 3 });
  expect(ids).toHaveLength(1);
});

test('draws follow the distribution, the same for the same seed', async () => {
  const first = new Map<number, number>();
  const draws = 2000;
  for (let seed = 0; seed < draws; seed++) {
    const { ids } = await search(language(), END, 1, { temperature: 1, seed });
    const token = ids[0] ?? END;
    first.set(token, (first.get(token) ?? 0) + 1);
  }
  table[''].forEach((p, token) => {
    const count = first.get(token) ?? 0;
    // Five standard deviations.
    expect(Math.abs(count - p * draws)).toBeLessThan(5 * Math.sqrt(p * draws));
  });
  const options = { temperature: 1, seed: 11 };
  expect(await search(language(), END, 3, options)).toEqual(
    await search(language(), END, 3, options),
  );
});

test('the nucleus leaves unlikely tokens out', async () => {
  for (let seed = 0; seed < 200; seed++) {
    const { ids } = await search(language(), END, 1, { temperature: 1, topP: 0.6, seed });
    expect([0, 1]).toContain(ids[0]);
  }
});

test('a low temperature is greedy', async () => {
  const { ids } = await search(language(), END, 1, { temperature: 0.01, seed: 5 });
  expect(ids).toEqual([0]);
});

test('log softmax sums up to one, also of large logits', () => {
  const scores = logSoftmax(Float32Array.of(1000, 999, -1000));
  expect(scores.reduce((sum, score) => sum + Math.exp(score), 0)).toBeCloseTo(1, 12);
});

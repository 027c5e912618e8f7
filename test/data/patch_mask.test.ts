import { Philox4x32 } from '../../lib/array/random';
import { maskBatch, patchMask } from '../../lib/data';

const grid = { rows: 16, columns: 16 };

function masked(mask: Uint8Array): number {
  return mask.reduce((sum, on) => sum + on, 0);
}

test.each([
  [16, 16, 128],
  [27, 27, 365],
  [3, 3, 5],
  [1, 1, 1],
])('random masks of %d × %d hide exactly half: %d', (rows, columns, count) => {
  for (let i = 0; i < 50; i++) {
    const mask = patchMask(new Philox4x32(5, i), { rows, columns });
    expect(masked(mask)).toBe(count);
    expect(mask.every((on) => on === 0 || on === 1)).toBe(true);
  }
});

test('every patch is hidden as often as any other', () => {
  const counts = new Array<number>(256).fill(0);
  for (let i = 0; i < 2000; i++) {
    patchMask(new Philox4x32(5, i), grid).forEach((on, n) => (counts[n] += on));
  }
  // Half of 2,000 with a standard deviation of 22: five of them.
  for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(112);
});

test('another ratio', () => {
  expect(masked(patchMask(new Philox4x32(5), grid, { ratio: 0.75 }))).toBe(192);
  expect(masked(patchMask(new Philox4x32(5), grid, { ratio: 0 }))).toBe(0);
  expect(masked(patchMask(new Philox4x32(5), grid, { ratio: 1 }))).toBe(256);
});

describe('blocks', () => {
  const masks = Array.from({ length: 200 }, (_, i) =>
    patchMask(new Philox4x32(5, i), grid, { kind: 'block' }),
  );

  test('never hide more than half, and mostly about as much', () => {
    const counts = masks.map(masked);
    expect(Math.max(...counts)).toBeLessThanOrEqual(128);
    const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length;
    expect(mean).toBeGreaterThan(115);
  });

  test('lie together: a hidden patch mostly has a hidden neighbour to the right', () => {
    const share = (mask: Uint8Array): number => {
      const pairs = Array.from(mask.keys()).filter((n) => n % 16 < 15 && mask[n] === 1);
      return pairs.filter((n) => mask[n + 1] === 1).length / pairs.length;
    };
    const mean = masks.reduce((sum, mask) => sum + share(mask), 0) / masks.length;
    expect(mean).toBeGreaterThan(0.7); // scattered ones have one half
  });
});

test('a batch: rows and weights of the masked patches', () => {
  const randoms = [0, 1, 2].map((i) => new Philox4x32(9, i));
  const { mask, rows, weights } = maskBatch(randoms, grid);
  expect(mask.length).toBe(3 * 256);
  expect(Array.from(rows)).toEqual(Array.from(mask.keys()).filter((row) => mask[row] === 1));
  expect(new Set(weights)).toEqual(new Set([Math.fround(1 / (3 * 128))]));
  expect(mask.subarray(256, 512)).toEqual(patchMask(new Philox4x32(9, 1), grid));
});

test('rows that fill up count nothing', () => {
  const randoms = Array.from({ length: 40 }, (_, i) => new Philox4x32(9, i));
  const small = { rows: 5, columns: 5 };
  const { mask, rows, weights } = maskBatch(randoms, small, { kind: 'block', ratio: 0.9 });
  expect(rows.length).toBe(40 * 23); // ⌊22.5 + ½⌋ each
  for (let b = 0; b < 40; b++) {
    const own = Array.from({ length: 23 }, (_, i) => b * 23 + i).filter((i) => weights[i] > 0);
    const hidden = Array.from({ length: 25 }, (_, n) => b * 25 + n).filter((n) => mask[n] === 1);
    expect(own.map((i) => rows[i])).toEqual(hidden);
    const sum = own.reduce((total, i) => total + weights[i], 0);
    expect(sum).toBeCloseTo(hidden.length > 0 ? 1 / 40 : 0, 6);
  }
  expect(weights.some((weight) => weight === 0)).toBe(true);
});

test.each([
  [{ rows: 0, columns: 3 }, {}, 'rows and columns must be positive integers'],
  [grid, { ratio: 1.5 }, 'ratio must be in [0, 1]'],
])('%j %j is refused', (size, options, message) => {
  expect(() => patchMask(new Philox4x32(1), size, options)).toThrow(message);
});

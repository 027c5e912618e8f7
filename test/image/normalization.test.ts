import { normalizationTable } from '../../lib/image';

const SIGLIP = {
  rescaleFactor: 0.00392156862745098,
  mean: [0.5, 0.5, 0.5],
  std: [0.5, 0.5, 0.5],
} as const;

describe('normalizationTable', () => {
  // transformers 5.18.0, NumPy path.
  test.each([
    [0, -1],
    [1, -0.9921568632125854],
    [64, -0.498039186000824],
    [127, -0.003921568393707275],
    [128, 0.003921627998352051],
    [200, 0.5686274766921997],
    [254, 0.9921568632125854],
    [255, 1],
  ])('byte %i is %p in every bit', (byte, expected) => {
    const table = normalizationTable(SIGLIP);
    expect(table[byte]).toBe(expected);
    expect(table[512 + byte]).toBe(expected);
  });

  test('colours have their own mean and spread; steps can be turned off', () => {
    const table = normalizationTable({ rescaleFactor: 1, mean: [0, 10, 0], std: [1, 2, 1] });
    expect([table[7], table[256 + 7], table[512 + 255]]).toEqual([7, -1.5, 255]);
  });
});

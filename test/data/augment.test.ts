import { Philox4x32 } from '../../lib/array/random';
import { augment, checkAugment, type AugmentOptions } from '../../lib/data/augment';

const SIZE = 16;

/** White with a coloured rectangle in the upper left part. */
function drawing(): Uint8Array {
  const pixels = new Uint8Array(SIZE * SIZE * 3).fill(255);
  for (let y = 2; y < 7; y++) {
    for (let x = 3; x < 10; x++) pixels.set([200, 60, 20], (y * SIZE + x) * 3);
  }
  return pixels;
}

function change(options: AugmentOptions, seed = 1, outSize = SIZE): Uint8Array {
  const out = new Uint8Array(outSize * outSize * 3);
  augment(drawing(), SIZE, options, new Philox4x32(seed), out, outSize);
  return out;
}

const ALL: AugmentOptions = {
  rotate: 20,
  scale: [0.8, 1.2],
  stretch: 0.1,
  shear: 0.1,
  shift: 0.1,
  mirror: 0.5,
  hue: 0.1,
  grey: 0.2,
  gain: 0.3,
  offset: 0.15,
};

describe('augment', () => {
  test('without changes the image is copied exactly', () => {
    expect(change({})).toEqual(drawing());
  });

  test('a mirror turns left and right', () => {
    const mirrored = change({ mirror: 1 });
    const original = drawing();
    for (let y = 0; y < SIZE; y++) {
      for (let x = 0; x < SIZE; x++) {
        const at = (y * SIZE + x) * 3;
        const from = (y * SIZE + SIZE - 1 - x) * 3;
        expect([...mirrored.subarray(at, at + 3)]).toEqual([...original.subarray(from, from + 3)]);
      }
    }
  });

  test('scale keeps the area in proportion, centre fixed, white outside', () => {
    const dark = (pixels: Uint8Array): number =>
      pixels.reduce((sum, value) => sum + 255 - value, 0);
    const smaller = change({ scale: [0.5, 0.5] });
    expect(dark(smaller) / dark(drawing())).toBeCloseTo(0.25, 1);
    expect([...smaller.subarray(0, 3)]).toEqual([255, 255, 255]);
  });

  test('another output size is the same picture', () => {
    const doubled = change({}, 1, 2 * SIZE);
    expect([...doubled.subarray((8 * 32 + 12) * 3, (8 * 32 + 12) * 3 + 3)]).toEqual([200, 60, 20]);
    expect([...doubled.subarray(0, 3)]).toEqual([255, 255, 255]);
  });

  test('grey takes the luma, hue keeps the sum of the channels', () => {
    const grey = change({ grey: 1 });
    const luma = Math.round(0.299 * 200 + 0.587 * 60 + 0.114 * 20);
    const at = (4 * SIZE + 5) * 3;
    expect([...grey.subarray(at, at + 3)]).toEqual([luma, luma, luma]);
    const turned = change({ hue: 0.05 });
    const [r, g, b] = turned.subarray(at, at + 3);
    expect(Math.abs(r + g + b - 280)).toBeLessThanOrEqual(2);
    expect([r, g, b]).not.toEqual([200, 60, 20]);
    expect([...turned.subarray(0, 3)]).toEqual([255, 255, 255]);
  });

  test('gain and offset stay within their strengths', () => {
    const at = (4 * SIZE + 5) * 3;
    for (let seed = 0; seed < 20; seed++) {
      const [r, g, b] = change({ gain: 0.3, offset: 0.1 }, seed).subarray(at, at + 3);
      for (const [value, original] of [
        [r, 200],
        [g, 60],
        [b, 20],
      ]) {
        expect(value).toBeGreaterThanOrEqual(Math.max(0, original * 0.7 - 26.5));
        expect(value).toBeLessThanOrEqual(Math.min(255, original * 1.3 + 26.5));
      }
    }
  });

  test('is a function of the random numbers and takes sixteen of them', () => {
    expect(change(ALL, 3)).toEqual(change(ALL, 3));
    expect(change(ALL, 3)).not.toEqual(change(ALL, 4));
    for (const options of [{}, ALL]) {
      const random = new Philox4x32(0);
      augment(drawing(), SIZE, options, random, new Uint8Array(SIZE * SIZE * 3), SIZE);
      expect(random.position).toBe(16);
    }
  });

  test('strengths outside their range are refused', () => {
    expect(() => {
      checkAugment({ grey: 1.5 });
    }).toThrow('augment: grey must be from 0 to 1, got 1.5');
    expect(() => {
      checkAugment({ scale: [1.2, 0.8] });
    }).toThrow(/scale must be \[low, high\]/);
    expect(() => {
      checkAugment({ rotate: Number.NaN });
    }).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }) as Error);
    checkAugment(ALL);
  });
});

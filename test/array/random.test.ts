import { Philox4x32, philoxBlock } from '../../lib/array/random';

const words = (counter: [number, number, number, number], key: [number, number]): string[] => {
  const out = new Uint32Array(4);
  philoxBlock(...counter, ...key, out);
  return Array.from(out, (word) => word.toString(16).padStart(8, '0'));
};

// Known answers published with the algorithm (Random123, kat_vectors, philox4x32 10).
describe('philoxBlock', () => {
  test.each<[[number, number, number, number], [number, number], string]>([
    [[0, 0, 0, 0], [0, 0], '6627e8d5 e169c58d bc57ac4c 9b00dbd8'],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      '408f276d 41c83b0e a20bc7c6 6d5451fd',
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      'd16cfe09 94fdcceb 5001e420 24126ea1',
    ],
  ])('counter %j, key %j', (counter, key, expected) => {
    expect(words(counter, key).join(' ')).toBe(expected);
  });
});

describe('Philox4x32', () => {
  const draw = (random: Philox4x32, n: number): number[] =>
    Array.from({ length: n }, () => random.uint32());

  test('repeats for one seed and stream, differs for another', () => {
    const first = draw(new Philox4x32(7, 'a'), 20);
    expect(draw(new Philox4x32(7, 'a'), 20)).toEqual(first);
    expect(draw(new Philox4x32(7, 'b'), 20)).not.toEqual(first);
    expect(draw(new Philox4x32(8, 'a'), 20)).not.toEqual(first);
    expect(draw(new Philox4x32(7, 1), 20)).not.toEqual(draw(new Philox4x32(7, 2), 20));
  });

  test('all 53 bits of seed and stream count', () => {
    const high = 2 ** 40;
    expect(draw(new Philox4x32(high), 4)).not.toEqual(draw(new Philox4x32(0), 4));
    expect(draw(new Philox4x32(0, high), 4)).not.toEqual(draw(new Philox4x32(0, 0), 4));
  });

  test('position is the state', () => {
    const random = new Philox4x32(3);
    const all = draw(random, 50);
    expect(random.position).toBe(50);
    for (const start of [0, 1, 17, 49]) {
      random.position = start;
      expect(random.uint32()).toBe(all[start]);
    }
    random.position = 2 ** 40; // beyond the lowest word of the counter
    const far = random.uint32();
    random.position = 2 ** 40;
    expect(random.uint32()).toBe(far);
  });

  test('uniform, normal and integer have the right moments', () => {
    const random = new Philox4x32(11, 'moments');
    const n = 40000;
    const uniform = Array.from({ length: n }, () => random.uniform(-1, 3));
    const normal = Array.from({ length: n }, () => random.normal(2, 0.5));
    const mean = (x: number[]): number => x.reduce((sum, v) => sum + v, 0) / x.length;
    expect(Math.abs(mean(uniform) - 1)).toBeLessThan((4 * 4) / Math.sqrt(12 * n));
    expect(Math.min(...uniform)).toBeGreaterThanOrEqual(-1);
    expect(Math.max(...uniform)).toBeLessThan(3);
    expect(Math.abs(mean(normal) - 2)).toBeLessThan((4 * 0.5) / Math.sqrt(n));
    const spread = mean(normal.map((v) => (v - 2) ** 2));
    expect(Math.abs(spread / 0.25 - 1)).toBeLessThan(4 * Math.sqrt(2 / n));
    const range = mean(uniform.map((v) => (v - 1) ** 2));
    expect(Math.abs(Math.sqrt(range * 12) / 4 - 1)).toBeLessThan(0.02);

    const counts = new Array<number>(6).fill(0);
    for (let i = 0; i < n; i++) {
      const value = random.integer(6);
      counts[value] = (counts[value] ?? 0) + 1;
    }
    const chi2 = counts.reduce((sum, count) => sum + (count - n / 6) ** 2 / (n / 6), 0);
    expect(chi2).toBeLessThan(20.5); // 99.9 % point of chi-square with 5 degrees of freedom
  });

  test('fills: pairs of normals are independent, truncation holds, odd lengths are filled', () => {
    const random = new Philox4x32(5);
    const normal = new Float32Array(40001);
    random.fillNormal(normal, 2);
    expect(normal[40000]).not.toBe(0);
    let square = 0;
    let product = 0;
    for (let i = 0; i < 40000; i += 2) {
      const [a, b] = [normal[i] ?? NaN, normal[i + 1] ?? NaN];
      square += a * a + b * b;
      product += a * b;
    }
    expect(Math.abs(square / 40000 / 4 - 1)).toBeLessThan(0.03);
    expect(Math.abs(product / 20000 / 4)).toBeLessThan(0.03);

    const truncated = new Float32Array(40000);
    random.fillTruncatedNormal(truncated, 3, 2);
    expect(Math.max(...truncated)).toBeLessThanOrEqual(6);
    expect(Math.min(...truncated)).toBeGreaterThanOrEqual(-6);
    const variance = truncated.reduce((sum, v) => sum + v * v, 0) / truncated.length;
    expect(Math.abs(Math.sqrt(variance) / 3 / 0.87962566 - 1)).toBeLessThan(0.02);
  });

  test('rejects what is out of range', () => {
    expect(() => new Philox4x32(-1)).toThrow('Philox4x32: seed must be an integer from 0');
    expect(() => new Philox4x32(0, 0.5)).toThrow('stream must be');
    expect(() => new Philox4x32(0).integer(0)).toThrow('n must be an integer from 1 to 2^32');
  });
});

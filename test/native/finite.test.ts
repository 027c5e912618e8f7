import { loadAddon } from '../../lib/native/load';
import { codeOf } from './steps';

const addon = loadAddon();

// Longer than a piece that is looked at as a whole, and no multiple of it.
const count = 2500;

test.each([NaN, Infinity, -Infinity])('%s is found at its first place', (value) => {
  for (const place of [0, 7, 1023, 1024, 2047, count - 1]) {
    const values = new Float32Array(count).fill(1);
    values[place] = value;
    values[count - 1] = value;
    expect(addon.firstNotFinite(values)).toBe(place);
  }
});

test('all other numbers are finite', () => {
  const most = 3.4028234663852886e38;
  expect(addon.firstNotFinite(Float32Array.of(0, -0, most, -most, 1e-45, -1e-45))).toBe(-1);
  expect(addon.firstNotFinite(new Float32Array())).toBe(-1);
});

test('what is no Float32Array is refused', () => {
  for (const value of [undefined, [1], new Float64Array(1), new Uint8Array(4)]) {
    const call = (): number => addon.firstNotFinite(value as unknown as Float32Array);
    expect(codeOf(call)).toBe('ERR_ARGUMENT');
  }
});

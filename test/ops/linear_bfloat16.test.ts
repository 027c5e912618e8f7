import { DeviceArray } from '../../lib/array';
import { compile } from '../../lib/graph';
import { float32 } from '../../lib/native/spec';
import { packedLinear } from '../../lib/ops';
import { toBfloat16 } from '../reference/cast';
import { linear } from '../reference/linear';
import type { NdArray } from '../reference/nd_array';
import { map, ndArray } from '../reference/nd_array';
import { Random } from '../reference/random';
import { describeOp } from './describe_op';
import { multiplyPacked } from './packed_layer';

const { bytes, pack, layer } = packedLinear.bfloat16;

describeOp('linear_bfloat16');

const multiply = (x: NdArray, weight: NdArray): Promise<ArrayLike<number>> =>
  multiplyPacked((input, matrix, outputs) => layer(input, pack(matrix), outputs), x, weight);

test('the bytes of a packed weight', () => {
  expect(bytes(1, 1)).toBe(2 * 64 * 4);
  expect(bytes(65, 5)).toBe(2 * 128 * 8);
  expect(bytes(2304, 768)).toBe(2 * 2304 * 768);
});

// One input: the product is one rounding of each operand.
test('rounds to the nearest, ties to even', async () => {
  const values = [
    1,
    1 + 2 ** -8,
    1 + 3 * 2 ** -8,
    1 + 2 ** -8 + 2 ** -20,
    -1 - 2 ** -9,
    0.1,
    1e-30,
    3.3e38,
  ];
  const x = map(ndArray([values.length, 1], values), Math.fround);
  const expected = Array.from(x.data, toBfloat16);
  expect(expected.slice(0, 4)).toEqual([1, 1, 1 + 2 ** -6, 1 + 2 ** -7]);
  expect(Array.from(await multiply(x, ndArray([1, 1], [1])))).toEqual(expected);
  expect(Array.from(await multiply(ndArray([1, 1], [1]), x))).toEqual(expected);
});

test('NaN stays NaN and infinity infinity', async () => {
  const x = ndArray([5, 2], [NaN, 1, Infinity, 1, -Infinity, 1, Infinity, -Infinity, 2, 3]);
  const y = [NaN, Infinity, -Infinity, NaN, 5];
  const one = ndArray([1, 2], [1, 1]);
  expect(Array.from(await multiply(x, one))).toEqual(y);
  expect(Array.from(await multiply(one, x))).toEqual(y);
});

test('every NaN, also one whose upper bits are those of an infinity', async () => {
  const bits = Uint32Array.of(0x7f800001, 0xff800001, 0x7fffffff, 0xffffffff);
  const program = compile('nan', (t) => ({ y: layer(t.x, pack(t.weight), 1) }), {
    x: float32(4, 1),
    weight: float32(1, 1),
  });
  const inputs = {
    x: DeviceArray.from(new Float32Array(bits.buffer), [4, 1]),
    weight: DeviceArray.from(Float32Array.of(1), [1, 1]),
  };
  const { y } = await program.run(inputs);
  expect(Array.from(await y.read())).toEqual([NaN, NaN, NaN, NaN]);
  for (const array of [...Object.values(inputs), y]) array.dispose();
  program.dispose();
});

test('is the product itself up to the roundings', async () => {
  const random = new Random(9);
  const [M, K, N] = [11, 150, 33];
  const x = random.array([M, K], (r) => r.normal());
  const weight = random.array([N, K], (r) => r.normal());
  const y = await multiply(x, weight);
  const exact = linear(x, weight);
  const bounds = linear(map(x, Math.abs), map(weight, Math.abs));
  const worst = exact.data.reduce(
    (most, value, i) => Math.max(most, Math.abs(y[i] - value) / bounds.data[i]),
    0,
  );
  // Each operand is off by 2⁻⁹ at most.
  expect(worst).toBeLessThan(2 * 2 ** -9 + 2 ** -17);
  expect(worst).toBeGreaterThan(2 ** -14);
});

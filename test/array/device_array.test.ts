import { runInNewContext } from 'node:vm';
import { bfloat16, DeviceArray, float32, HostParts, int32, uint8 } from '../../lib/array';
import { SiglipError } from '../../lib/errors';
import { codeOf, rejectionOf } from '../native/steps';

test.each([
  ['float32', Float32Array.of(1, -2.5, NaN, 4, 5, 6)],
  ['int32', Int32Array.of(1, -2, 3, 4, 5, 6)],
  ['uint8', Uint8Array.of(1, 2, 3, 255, 0, 6)],
  ['bfloat16', Uint16Array.of(0x3f80, 0xc020, 0x7fc0, 1, 0, 0xffff)],
] as const)('%s goes to the device and back', async (dtype, data) => {
  const array = DeviceArray.from(data, [2, 3]);
  expect(array.dtype).toBe(dtype);
  expect(array.shape).toEqual([2, 3]);
  expect(array.bytes).toBe(data.byteLength);
  const back = await array.read();
  expect(back).toBeInstanceOf(data.constructor);
  expect(back).toEqual(data);
  array.dispose();
});

test('several arrays go to the device one behind the other', async () => {
  const parts = new HostParts([Float32Array.of(1, 2), Float32Array.of(3, 4)]);
  using array = DeviceArray.from(parts, [2, 2]);
  expect(array.dtype).toBe('float32');
  expect([...(await array.read())]).toEqual([1, 2, 3, 4]);
  expect(codeOf(() => DeviceArray.from(parts, [3]))).toBe('ERR_SHAPE');
  const mixed = (): unknown =>
    new HostParts<Float32Array | Int32Array>([Float32Array.of(1), Int32Array.of(1)]);
  expect(codeOf(mixed)).toBe('ERR_DTYPE');
});

test('the shape may be left out, and is a copy', () => {
  const shape = [3, 1];
  using plain = DeviceArray.from(new Float32Array(3));
  using shaped = DeviceArray.from(new Float32Array(3), shape);
  shape[0] = 5;
  expect(plain.shape).toEqual([3]);
  expect(shaped.shape).toEqual([3, 1]);
});

test('a part of a larger buffer is copied as that part', async () => {
  using array = DeviceArray.from(Float32Array.of(0, 1, 2, 3).subarray(1, 3));
  expect(await array.read()).toEqual(Float32Array.of(1, 2));
});

test('zeros are zeros', async () => {
  for (const spec of [float32(3, 2), int32(7), uint8(5), bfloat16(3)]) {
    using array = DeviceArray.zeros(spec);
    expect(array).toMatchObject(spec);
    expect([...(await array.read())].every((x) => x === 0)).toBe(true);
  }
});

test('write replaces the contents, and the data may be reused at once', async () => {
  using array = DeviceArray.zeros(float32(2));
  const data = Float32Array.of(1, 2);
  array.write(data);
  data.fill(0);
  expect(await array.read()).toEqual(Float32Array.of(1, 2));
});

test('an array of another realm is as good', async () => {
  const foreign = runInNewContext('Float32Array.of(1, 2)') as Float32Array;
  expect(foreign).not.toBeInstanceOf(Float32Array);
  using array = DeviceArray.from(foreign);
  expect([...(await array.read())]).toEqual([1, 2]);
});

test('dispose ends it, also by using, and may be repeated', async () => {
  const array = DeviceArray.zeros(float32(2));
  {
    using inner = array;
    expect(inner.disposed).toBe(false);
  }
  array.dispose();
  expect(array.disposed).toBe(true);
  expect(await rejectionOf(array.read())).toBe('ERR_DISPOSED');
  expect(
    codeOf(() => {
      array.write(new Float32Array(2));
    }),
  ).toBe('ERR_DISPOSED');
});

test.each([
  [[]],
  [[0]],
  [[-1]],
  [[1.5]],
  [[2, 0]],
  [[1, 1, 1, 1, 1, 1, 1]],
  [[NaN]],
  [[2 ** 40, 2 ** 40]],
])('the shape %p is refused', (shape) => {
  expect(codeOf(() => DeviceArray.zeros(float32(...shape)))).toBe('ERR_SHAPE');
  expect(codeOf(() => DeviceArray.from(new Float32Array(1), shape))).toBe('ERR_SHAPE');
});

test('lengths and dtypes that do not fit are refused', () => {
  expect(() => DeviceArray.from(new Float32Array(5), [2, 3])).toThrow(
    new SiglipError('ERR_SHAPE', 'DeviceArray.from: data must have 6 elements for [2, 3], got 5'),
  );
  expect(codeOf(() => DeviceArray.from(new Float64Array(2) as never))).toBe('ERR_DTYPE');
  expect(codeOf(() => DeviceArray.from([1, 2] as never))).toBe('ERR_DTYPE');
  expect(codeOf(() => DeviceArray.zeros({ dtype: 'float16' as never, shape: [1] }))).toBe(
    'ERR_DTYPE',
  );
  using array: DeviceArray = DeviceArray.zeros(float32(2));
  expect(
    codeOf(() => {
      array.write(new Float32Array(3));
    }),
  ).toBe('ERR_SHAPE');
  expect(
    codeOf(() => {
      array.write(new Int32Array(2));
    }),
  ).toBe('ERR_DTYPE');
});

test('what no machine can hold is refused', () => {
  expect(codeOf(() => DeviceArray.zeros(float32(2 ** 20, 2 ** 20)))).toBe('ERR_OUT_OF_MEMORY');
});

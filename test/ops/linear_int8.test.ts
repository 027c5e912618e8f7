import { compile } from '../../lib/graph';
import { loadAddon } from '../../lib/native/load';
import { float32 } from '../../lib/native/spec';
import { linearInt8, linearInt8Bytes, packLinearInt8 } from '../../lib/ops';
import { linear } from '../reference/linear';
import { levels, quantise } from '../reference/linear_int8';
import type { NdArray } from '../reference/nd_array';
import { ndArray } from '../reference/nd_array';
import { Random } from '../reference/random';
import { describeOp } from './describe_op';
import { multiplyPacked } from './packed_layer';

const { features } = loadAddon().describe();

describeOp('linear_int8');

const multiply = (x: NdArray, weight: NdArray): Promise<ArrayLike<number>> =>
  multiplyPacked(
    (input, matrix, outputs) => linearInt8(input, packLinearInt8(matrix), outputs),
    x,
    weight,
  );

const [M, K, N] = [13, 37, 70];
const random = new Random(5);
const normal = (shape: readonly number[]): NdArray => random.array(shape, (r) => r.normal());

test('the bytes of a packed weight', () => {
  expect(linearInt8Bytes(1, 1)).toBe(64 * 12);
  expect(linearInt8Bytes(64, 4)).toBe(64 * 12);
  expect(linearInt8Bytes(65, 5)).toBe(128 * 16);
  expect(linearInt8Bytes(2304, 768)).toBe(2304 * 776);
});

test('is the product itself up to half a step of each operand', async () => {
  const [x, weight] = [normal([M, K]), normal([N, K])];
  const y = await multiply(x, weight);
  const exact = linear(x, weight);
  const stepsX = quantise(x, levels(K, features.includes('vnni'))).scales;
  const stepsW = quantise(weight, 127).scales;
  let worst = 0;
  for (let m = 0; m < M; m++) {
    for (let n = 0; n < N; n++) {
      let bound = 1e-5;
      for (let k = 0; k < K; k++) {
        const [dx, dw] = [stepsX[m] / 2, stepsW[n] / 2];
        bound += Math.abs(x.data[m * K + k]) * dw + Math.abs(weight.data[n * K + k]) * dx + dx * dw;
      }
      worst = Math.max(worst, Math.abs(y[m * N + n] - exact.data[m * N + n]) / bound);
    }
  }
  expect(worst).toBeLessThanOrEqual(1);
  expect(worst).toBeGreaterThan(0.01);
});

test.each([NaN, Infinity, -Infinity])('%p in a row of x makes that row NaN', async (value) => {
  const x = normal([M, K]);
  const clean = Array.from(await multiply(x, ndArray([N, K], new Array<number>(N * K).fill(0.5))));
  for (const at of [0, 17, K - 1]) {
    const spoilt = ndArray(x.shape, x.data);
    spoilt.data[4 * K + at] = value;
    const y = Array.from(
      await multiply(spoilt, ndArray([N, K], new Array<number>(N * K).fill(0.5))),
    );
    expect(y.slice(0, 4 * N)).toEqual(clean.slice(0, 4 * N));
    expect(y.slice(4 * N, 5 * N).every(Number.isNaN)).toBe(true);
    expect(y.slice(5 * N)).toEqual(clean.slice(5 * N));
  }
});

test.each([NaN, Infinity, -Infinity])('%p in the weight makes that output NaN', async (value) => {
  const weight = normal([N, K]);
  weight.data[7 * K + 30] = value;
  const y = Array.from(await multiply(normal([M, K]), weight));
  expect(y.map(Number.isNaN)).toEqual(y.map((_, i) => i % N === 7));
});

test('magnitudes below 2^-100 count as zeros, those from there on do not', async () => {
  const weight = ndArray([2, 3], [1, 1, 1, 2 ** 60, 0, 0]);
  const least = 2 ** -100;
  const x = ndArray([3, 3], [least / 2, 1e-44, -least / 2, least, 0, 0, 1e-45, 0, 0]);
  expect(Array.from(await multiply(x, weight))).toEqual([
    0,
    0,
    expect.closeTo(least, 1e-36),
    expect.closeTo(2 ** -40, 1e-18),
    0,
    0,
  ]);
});

test('sums of the largest integers do not overflow', async () => {
  const inputs = 131072;
  const ones = ndArray([1, inputs], new Float64Array(inputs).fill(1));
  expect(await multiply(ones, ones)).toEqual(Float32Array.of(inputs));
  expect(await multiply(ndArray([1, inputs], new Float64Array(inputs).fill(-1)), ones)).toEqual(
    Float32Array.of(-inputs),
  );
});

test('more inputs than a sum holds are refused', () => {
  expect(() =>
    compile('pack', ({ weight }) => packLinearInt8(weight), {
      weight: float32(1, 131073),
    }),
  ).toThrow('linear_int8: the last axis of weight must be at most 131072, got 131073');
});

import { attention, pooledAttention } from '../../lib/nn';
import { visionParameters } from '../../lib/model';
import * as ops from '../../lib/ops';
import { attention as referenceAttention } from '../reference/attention';
import { linear } from '../reference/linear';
import type { Linear } from '../reference/model';
import type { NdArray } from '../reference/nd_array';
import type { Value } from './evaluate';
import {
  bytes,
  evaluate,
  integers,
  maxDifference,
  nd,
  ndTree,
  random,
  randomParameter,
  values,
} from './evaluate';
import { fixedConfig } from './towers';

const { width, heads } = fixedConfig.vision;
const parameters = visionParameters(fixedConfig, randomParameter).blocks[0].attention;

function reference(x: Value, memory: Value, keyMask?: Value): NdArray {
  const { query, key, value, out } = ndTree(parameters);
  const project = (tokens: NdArray, p: Linear): NdArray => linear(tokens, p.weight, p.bias);
  const mixed = referenceAttention(
    project(nd(x), query),
    project(nd(memory), key),
    project(nd(memory), value),
    keyMask === undefined ? { heads } : { heads, keyMask: nd(keyMask) },
  );
  return project(mixed, out);
}

test('self-attention', async () => {
  const x = random('x', [2, 5, width]);
  const { y } = await evaluate({ x, parameters }, (inputs) => ({
    y: attention(inputs.x, inputs.x, inputs.parameters, { heads }),
  }));
  expect(maxDifference(y, reference(x, x).data)).toBeLessThan(1e-5);
});

test('attention of other queries to masked tokens', async () => {
  const x = random('x', [2, 2, width]);
  const memory = random('memory', [2, 5, width]);
  const mask = bytes([2, 5], [1, 1, 1, 0, 0, 0, 1, 1, 1, 1]);
  const { y } = await evaluate({ x, memory, mask, parameters }, (inputs) => ({
    y: attention(inputs.x, inputs.memory, inputs.parameters, { heads, keyMask: inputs.mask }),
  }));
  expect(maxDifference(y, reference(x, memory, mask).data)).toBeLessThan(1e-5);
});

test('self-attention of packed rows is that of every sequence alone', async () => {
  const x = random('x', [9, width]);
  const segments = integers([3], [0, 3, 8]);
  const { y } = await evaluate({ x, segments, parameters }, (inputs) => ({
    y: attention(inputs.x, inputs.x, inputs.parameters, { heads, segments: inputs.segments }),
  }));
  for (const [begin, end] of [
    [0, 3],
    [3, 8],
  ]) {
    const rows = x.data.subarray(begin * width, end * width);
    const alone = values([1, end - begin, width], rows);
    const expected = reference(alone, alone).data;
    expect(maxDifference(y.subarray(begin * width, end * width), expected)).toBeLessThan(1e-5);
  }
});

describe('pooledAttention, without keys and values, is attention of a single query', () => {
  const memory = random('memory', [2, 5, width]);

  test.each([
    ['of one query for all', undefined],
    ['to masked tokens', bytes([2, 5], [1, 0, 1, 0, 1, 0, 0, 1, 1, 1])],
  ])('%s', async (_, mask) => {
    const x = random('x', [1, width]);
    const { y } = await evaluate({ x, memory, mask, parameters }, (inputs) => ({
      y: pooledAttention(inputs.x, inputs.memory, inputs.parameters, {
        heads,
        keyMask: inputs.mask,
      }),
    }));
    const twice = values([2, 1, width], [...x.data, ...x.data]);
    expect(maxDifference(y, reference(twice, memory, mask).data)).toBeLessThan(1e-5);
  });

  test('of a query each', async () => {
    const x = random('x', [2, width]);
    const { y } = await evaluate({ x, memory, parameters }, (inputs) => ({
      y: pooledAttention(inputs.x, inputs.memory, inputs.parameters, { heads }),
    }));
    const queries = values([2, 1, width], x.data);
    expect(maxDifference(y, reference(queries, memory).data)).toBeLessThan(1e-5);
  });

  test('to packed tokens', async () => {
    const x = random('x', [1, width]);
    const rows = values([11, width], [...memory.data, ...random('spare', [1, width]).data]);
    const segments = integers([3], [0, 5, 10]);
    const { y } = await evaluate({ x, rows, segments, parameters }, (inputs) => ({
      y: pooledAttention(inputs.x, inputs.rows, inputs.parameters, {
        heads,
        segments: inputs.segments,
      }),
    }));
    const twice = values([2, 1, width], [...x.data, ...x.data]);
    expect(maxDifference(y, reference(twice, memory).data)).toBeLessThan(1e-5);
  });
});

describe('limits of the keys in a decoder', () => {
  const [B, T, D, rows] = [2, 3, 4, 7];
  const q = random('q', [B, T, D]);
  const k = random('k', [rows, D]);
  const run = (starts: readonly number[]): Promise<Record<string, Float32Array>> =>
    evaluate({ q, k, keySegments: integers([B + 1], starts) }, (x) => ({
      o: ops.attention(x.q, x.k, x.k, { heads: 2, keySegments: x.keySegments }),
    }));

  test.each([
    [[1, 3, 7], 'key_segments[0] must be 0, got 1'],
    [[0, 5, 3], 'key_segments[2] must be in [5, 7], got 3'],
    [[0, 5, 8], 'key_segments[2] must be in [5, 7], got 8'],
  ])('refuses starts %j', async (starts, message) => {
    await expect(run(starts)).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining(message) as string,
    });
  });

  test('refuses two at once', async () => {
    const causal = bytes([B], [1, 0]);
    const keyMask = bytes([B, T], [1, 1, 1, 1, 1, 1]);
    await expect(
      evaluate({ q, causal, keyMask }, (x) => ({
        o: ops.attention(x.q, x.q, x.q, { heads: 2, causal: x.causal, keyMask: x.keyMask }),
      })),
    ).rejects.toThrow('attention: keyMask must be absent with causal, got both');
  });
});

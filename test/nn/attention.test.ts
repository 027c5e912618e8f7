import { attention } from '../../lib/nn';
import { visionParameters } from '../../lib/model';
import { attention as referenceAttention } from '../reference/attention';
import { linear } from '../reference/linear';
import type { Linear } from '../reference/model';
import type { NdArray } from '../reference/nd_array';
import type { Value } from './evaluate';
import { bytes, evaluate, maxDifference, nd, ndTree, random, randomParameter } from './evaluate';
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

import { compile } from '../../lib/graph';
import { block, blockAtToken } from '../../lib/nn';
import { visionParameters } from '../../lib/model';
import { attention as referenceAttention } from '../reference/attention';
import { add } from '../reference/elementwise';
import { gelu } from '../reference/gelu';
import { layerNorm } from '../reference/layer_norm';
import { linear } from '../reference/linear';
import type { LayerNorm, Linear } from '../reference/model';
import type { NdArray } from '../reference/nd_array';
import { evaluate, maxDifference, nd, ndTree, random, randomParameter } from './evaluate';
import { fixedConfig } from './towers';

const { width, heads } = fixedConfig.vision;
const eps = 1e-6;
const parameters = visionParameters(fixedConfig, randomParameter).blocks[0];
const x = random('x', [2, 5, width]);

test('x + attention(norm1(x)), then + mlp(norm2(·)), every stage tapped', async () => {
  const result = await evaluate({ x, parameters }, (inputs) => ({
    y: block(inputs.x, inputs.parameters, { heads, eps }),
  }));
  const p = ndTree(parameters);
  const project = (tokens: NdArray, q: Linear): NdArray => linear(tokens, q.weight, q.bias);
  const norm = (tokens: NdArray, q: LayerNorm): NdArray => layerNorm(tokens, q.weight, q.bias, eps);
  const normed = norm(nd(x), p.norm1);
  const { query, key, value, out } = p.attention;
  const mixed = referenceAttention(
    project(normed, query),
    project(normed, key),
    project(normed, value),
    { heads },
  );
  const attended = project(mixed, out);
  const middle = add(nd(x), attended);
  const transformed = project(gelu(project(norm(middle, p.norm2), p.mlp.fc1)), p.mlp.fc2);
  const expected = add(middle, transformed);
  expect(maxDifference(result.attention, attended.data)).toBeLessThan(1e-5);
  expect(maxDifference(result.attentionResidual, middle.data)).toBeLessThan(1e-5);
  expect(maxDifference(result.mlp, transformed.data)).toBeLessThan(1e-5);
  expect(maxDifference(result.output, expected.data)).toBeLessThan(1e-5);
  expect(result.y).toEqual(result.output);
});

test.each([0, 3, 4])('blockAtToken gives token %d of the block', async (token) => {
  const all = await evaluate({ x, parameters }, (inputs) => ({
    y: block(inputs.x, inputs.parameters, { heads, eps }),
  }));
  const one = await evaluate({ x, parameters }, (inputs) => ({
    y: blockAtToken(inputs.x, token, inputs.parameters, { heads, eps }),
  }));
  const expected = [0, 1].flatMap((b) => {
    const start = (b * 5 + token) * width;
    return [...all.y.subarray(start, start + width)];
  });
  expect(maxDifference(one.y, expected)).toBeLessThan(1e-6);
});

test('bias, GELU and residuals run inside of the products: nine kernels', () => {
  const program = compile(
    'block',
    (inputs) => ({ y: block(inputs.x, inputs.parameters, { heads, eps }) }),
    { x, parameters },
  );
  const count = (kernel: string): number =>
    program.steps.filter((step) => step.kernel === `${kernel}_forward`).length;
  expect([count('layer_norm'), count('linear'), count('attention')]).toEqual([2, 6, 1]);
  expect(program.steps).toHaveLength(9);
  program.dispose();
});

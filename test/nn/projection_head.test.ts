import { projectionFeatures, unitPrototypes } from '../../lib/nn';
import { gelu, geluErf } from '../reference/gelu';
import { l2Normalize } from '../reference/l2_normalize';
import { linear } from '../reference/linear';
import { evaluate, maxDifference, ndTree, random } from './evaluate';

const inputs = {
  x: random('x', [5, 6]),
  head: {
    fc1: { weight: random('fc1.weight', [10, 6]), bias: random('fc1.bias', [10]) },
    fc2: { weight: random('fc2.weight', [10, 10], 0.4), bias: random('fc2.bias', [10]) },
    fc3: { weight: random('fc3.weight', [4, 10], 0.4), bias: random('fc3.bias', [4]) },
    prototypes: random('prototypes', [7, 4]),
  },
};
const { x, head } = ndTree(inputs);

test.each([
  ['erf', geluErf],
  ['tanh', gelu],
] as const)('features with the %s form of GELU', async (form, activation) => {
  const { y } = await evaluate(inputs, (t) => ({
    y: projectionFeatures(t.x, t.head, { gelu: form }),
  }));
  const first = activation(linear(x, head.fc1.weight, head.fc1.bias));
  const second = activation(linear(first, head.fc2.weight, head.fc2.bias));
  const expected = l2Normalize(linear(second, head.fc3.weight, head.fc3.bias), 1e-12);
  expect(maxDifference(y, expected.data)).toBeLessThan(1e-6);
});

test('prototypes have unit length, whatever theirs was', async () => {
  const { y } = await evaluate(inputs, (t) => ({ y: unitPrototypes(t.head) }));
  expect(maxDifference(y, l2Normalize(head.prototypes, 1e-12).data)).toBeLessThan(1e-6);
});

import { mlp } from '../../lib/nn';
import { gelu } from '../reference/gelu';
import { linear } from '../reference/linear';
import { evaluate, maxDifference, ndTree, random } from './evaluate';

test('fc2(gelu(fc1(x)))', async () => {
  const inputs = {
    x: random('x', [2, 3, 6]),
    parameters: {
      fc1: { weight: random('fc1.weight', [10, 6]), bias: random('fc1.bias', [10]) },
      fc2: { weight: random('fc2.weight', [6, 10], 0.3), bias: random('fc2.bias', [6]) },
    },
  };
  const { y } = await evaluate(inputs, ({ x, parameters }) => ({ y: mlp(x, parameters) }));
  const { x, parameters } = ndTree(inputs);
  const hidden = gelu(linear(x, parameters.fc1.weight, parameters.fc1.bias));
  const expected = linear(hidden, parameters.fc2.weight, parameters.fc2.bias);
  expect(maxDifference(y, expected.data)).toBeLessThan(1e-5);
});

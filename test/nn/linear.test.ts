import { linear } from '../../lib/nn';
import { linear as reference } from '../reference/linear';
import { evaluate, maxDifference, nd, random } from './evaluate';

test('x · weightᵀ + bias over the last axis', async () => {
  const inputs = {
    x: random('x', [2, 3, 5]),
    parameters: { weight: random('weight', [7, 5]), bias: random('bias', [7]) },
  };
  const { y } = await evaluate(inputs, ({ x, parameters }) => ({ y: linear(x, parameters) }));
  const { weight, bias } = inputs.parameters;
  expect(maxDifference(y, reference(nd(inputs.x), nd(weight), nd(bias)).data)).toBeLessThan(1e-5);
});

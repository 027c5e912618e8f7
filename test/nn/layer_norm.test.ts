import { layerNorm } from '../../lib/nn';
import { layerNorm as reference } from '../reference/layer_norm';
import { evaluate, maxDifference, nd, random } from './evaluate';

test.each([1e-6, 0.5])('normalises rows with eps %d', async (eps) => {
  const inputs = {
    x: random('x', [2, 3, 5]),
    parameters: { weight: random('weight', [5]), bias: random('bias', [5]) },
  };
  const { y } = await evaluate(inputs, ({ x, parameters }) => ({
    y: layerNorm(x, parameters, { eps }),
  }));
  const { weight, bias } = inputs.parameters;
  const expected = reference(nd(inputs.x), nd(weight), nd(bias), eps);
  expect(maxDifference(y, expected.data)).toBeLessThan(1e-5);
});

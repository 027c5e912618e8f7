import { addPositions, addResizedPositions } from '../../lib/nn';
import { positionResize } from '../reference/position_resize';
import { evaluate, integers, maxDifference, nd, random } from './evaluate';

const width = 4;

test('fixed positions are the same for every image', async () => {
  const inputs = { tokens: random('tokens', [2, 9, width]), positions: random('p', [9, width]) };
  const { y } = await evaluate(inputs, (x) => ({ y: addPositions(x.tokens, x.positions) }));
  const expected = inputs.tokens.data.map(
    (value, i) => value + inputs.positions.data[i % (9 * width)],
  );
  expect(y).toEqual(expected);
});

test('NaFlex positions are resized to each grid; padding gets none', async () => {
  const inputs = {
    tokens: random('tokens', [3, 12, width]),
    grid: random('grid', [9, width]),
    shapes: integers([3, 2], [3, 3, 2, 6, 4, 1]),
  };
  const { y } = await evaluate(inputs, (x) => ({
    y: addResizedPositions(x.tokens, x.grid, x.shapes),
  }));
  const added = Float32Array.from(y, (value, i) => value - inputs.tokens.data[i]);
  const expected = positionResize(nd(inputs.grid), nd(inputs.shapes), 12);
  expect(maxDifference(added, expected.data)).toBeLessThan(1e-5);
  expect(maxDifference(added.subarray(0, 9 * width), inputs.grid.data)).toBeLessThan(1e-6);
  expect([...added.subarray(9 * width, 12 * width)].every((value) => value === 0)).toBe(true);
});

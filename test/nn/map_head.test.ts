import { mapHead } from '../../lib/nn';
import { visionParameters } from '../../lib/model';
import type { Value } from './evaluate';
import { bytes, evaluate, maxDifference, random, randomParameter, values } from './evaluate';
import { fixedConfig } from './towers';

const { width, heads } = fixedConfig.vision;
const { head: parameters } = visionParameters(fixedConfig, randomParameter);
const [batch, tokens] = [2, 6];
const x = random('tokens', [batch, tokens, width]);
const options = { heads, eps: 1e-6 };

// The listed tokens of every image.
function pick(order: readonly number[]): Value {
  const data = Array.from({ length: batch }, (_, b) =>
    order.map((token) => {
      const start = (b * tokens + token) * width;
      return [...x.data.subarray(start, start + width)];
    }),
  );
  return values([batch, order.length, width], data.flat(2));
}

async function pool(input: Value, mask?: Value): Promise<Float32Array> {
  const { y } = await evaluate({ input, mask, parameters }, (inputs) => {
    if (inputs.parameters === undefined) throw new Error('the tower has a head');
    return { y: mapHead(inputs.input, inputs.parameters, { ...options, keyMask: inputs.mask }) };
  });
  return y;
}

test('gives one vector per image', async () => {
  expect(await pool(x)).toHaveLength(batch * width);
});

test('the order of tokens has no effect', async () => {
  const permuted = pick([3, 0, 5, 1, 4, 2]);
  expect(maxDifference(await pool(permuted), await pool(x))).toBeLessThan(1e-5);
});

test('a token counts: leaving one out changes the result', async () => {
  expect(maxDifference(await pool(pick([0, 1, 2, 3, 4])), await pool(x))).toBeGreaterThan(1e-3);
});

test('masking a token equals deleting it', async () => {
  const mask = bytes([batch, tokens], [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1]);
  expect(maxDifference(await pool(x, mask), await pool(pick([0, 2, 3, 5])))).toBeLessThan(1e-5);
});

test('what a masked token holds has no effect, whatever it is', async () => {
  const mask = bytes([batch, tokens], [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0]);
  const spoiled = values(x.shape, x.data);
  for (let b = 0; b < batch; b++)
    spoiled.data.fill(1e6, (b * tokens + 3) * width, (b + 1) * tokens * width);
  expect(await pool(spoiled, mask)).toEqual(await pool(x, mask));
});

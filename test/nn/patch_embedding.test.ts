import { imagePatchEmbedding, rowPatchEmbedding } from '../../lib/nn';
import { evaluate, maxDifference, random, values } from './evaluate';

const patch = 3;
const side = 7; // the last pixel of a side is not seen
const width = 5;
const images = random('images', [2, 3, side, side]);
const weight = random('weight', [width, 3 * patch * patch], 0.2);
const bias = random('bias', [width]);

// A convolution of stride and kernel `patch`, written out.
function convolution(): number[] {
  const result: number[] = [];
  for (let b = 0; b < 2; b++) {
    for (let cell = 0; cell < 4; cell++) {
      const [top, left] = [patch * Math.floor(cell / 2), patch * (cell % 2)];
      for (let d = 0; d < width; d++) {
        let sum = bias.data[d];
        for (let c = 0; c < 3; c++) {
          for (let y = 0; y < patch; y++) {
            for (let x = 0; x < patch; x++) {
              const pixel = images.data[((b * 3 + c) * side + top + y) * side + left + x];
              sum += pixel * weight.data[((d * 3 + c) * patch + y) * patch + x];
            }
          }
        }
        result.push(sum);
      }
    }
  }
  return result;
}

test('images: a convolution with weight (D, c, y, x), border dropped', async () => {
  const { tokens } = await evaluate({ images, parameters: { weight, bias } }, (inputs) => ({
    tokens: imagePatchEmbedding(inputs.images, patch, inputs.parameters),
  }));
  expect(maxDifference(tokens, convolution())).toBeLessThan(1e-5);
});

test('rows: the same with patches and weight in (y, x, c) order', async () => {
  const rows: number[] = [];
  for (let b = 0; b < 2; b++) {
    for (let cell = 0; cell < 4; cell++) {
      const [top, left] = [patch * Math.floor(cell / 2), patch * (cell % 2)];
      for (let y = 0; y < patch; y++) {
        for (let x = 0; x < patch; x++) {
          for (let c = 0; c < 3; c++) {
            rows.push(images.data[((b * 3 + c) * side + top + y) * side + left + x]);
          }
        }
      }
    }
  }
  const reordered: number[] = [];
  for (let d = 0; d < width; d++) {
    for (let cell = 0; cell < patch * patch; cell++) {
      for (let c = 0; c < 3; c++) reordered.push(weight.data[(d * 3 + c) * patch * patch + cell]);
    }
  }
  const inputs = {
    rows: values([2, 4, 3 * patch * patch], rows),
    parameters: { weight: values(weight.shape, reordered), bias },
  };
  const { tokens } = await evaluate(inputs, (x) => ({
    tokens: rowPatchEmbedding(x.rows, x.parameters),
  }));
  expect(maxDifference(tokens, convolution())).toBeLessThan(1e-5);
});

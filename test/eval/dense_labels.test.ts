import { Siglip2 } from '../../lib';
import { Philox4x32 } from '../../lib/array/random';
import type { DenseExample } from '../../lib/eval';
import {
  drawingPalette,
  evaluateDenseProbe,
  maskLabels,
  paletteLabels,
  trainDenseProbe,
} from '../../lib/eval';
import type { RawImage } from '../../lib/image';
import { modelFolder } from '../embed/random_model';

test('the nearest colour of the palette, with or without alpha', () => {
  const data = Uint8Array.from([250, 250, 250, 9, 9, 30, 0, 0, 255, 255, 210, 20]);
  const image: RawImage = { data, width: 2, height: 2, channels: 3 };
  expect(paletteLabels(image)).toEqual({ labels: Uint8Array.of(0, 1, 5, 3), height: 2, width: 2 });
  const alpha = Uint8Array.from({ length: 16 }, (_, i) =>
    i % 4 === 3 ? 7 : data[3 * Math.floor(i / 4) + (i % 4)],
  );
  expect(paletteLabels({ ...image, data: alpha, channels: 4 })).toEqual(paletteLabels(image));
  expect(() => paletteLabels({ ...image, width: 3 })).toThrow(
    'image must have 2 × 3 pixels of 3 or 4 channels, got 12 bytes of 3',
  );
});

test('masks at another size hold no label that was not there', () => {
  const data = Uint8Array.from({ length: 8 * 4 }, (_, i) => (i % 8 < 4 ? 7 : 255));
  const mask: RawImage = { data, width: 8, height: 4, channels: 1 };
  expect(maskLabels(mask)).toEqual({ labels: data, height: 4, width: 8 });
  expect(maskLabels(mask, 4)).toEqual({
    labels: Uint8Array.of(7, 7, 255, 255, 7, 7, 255, 255),
    height: 2,
    width: 4,
  });
  expect(maskLabels(mask, 16).labels).toHaveLength(16 * 8);
});

describe('on the tokens of a model', () => {
  const folder = modelFolder('fixed');
  const side = 28;

  // Half planes of two colours of the palette.
  function drawing(random: Philox4x32): RawImage {
    const [first, second] = [random.integer(4), 4 + random.integer(4)];
    const [nx, ny] = [random.normal(), random.normal()];
    const data = Uint8Array.from({ length: 3 * side * side }, (_, at) => {
      const [x, y] = [Math.floor(at / 3) % side, Math.floor(at / 3 / side)];
      const inside = nx * (x - side / 2) + ny * (y - side / 2) > 0;
      return drawingPalette[inside ? first : second][at % 3];
    });
    return { data, width: side, height: side, channels: 3 };
  }

  test('even a random tower keeps colours where they are', async () => {
    using model = await Siglip2.load(folder());
    const random = new Philox4x32(1, 'drawings');
    const examples: DenseExample[] = [];
    for (let i = 0; i < 48; i++) {
      const image = drawing(random);
      examples.push({ ...(await model.imageTokens(image)), target: paletteLabels(image) });
    }
    const options = { classes: drawingPalette.length, steps: 60, batch: 8, learningRate: 0.1 };
    const probe = trainDenseProbe(examples.slice(0, 32), options);
    const { meanIoU, accuracy } = evaluateDenseProbe(probe, examples.slice(32));
    // Chance is an eighth.
    expect(accuracy).toBeGreaterThan(0.7);
    expect(meanIoU).toBeGreaterThan(0.5);
  });
});

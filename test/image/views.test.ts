import { Philox4x32 } from '../../lib/array/random';
import { drawView } from '../../lib/data';
import type { ImageView, RgbImage } from '../../lib/image';
import { renderViews } from '../../lib/image';
import { resizeReference } from '../reference/resize';
import { viewReference } from '../reference/views';
import { formulaImage } from './formula_image';

const image = formulaImage(61, 83);
const plain: ImageView = {
  crop: { left: 7, top: 11, width: 40, height: 33 },
  flip: false,
  grey: false,
  blur: 0,
};
const still = { order: [], brightness: 1, contrast: 1, saturation: 1, hue: 0 } as const;

async function render(views: readonly ImageView[], size = 24): Promise<Uint8Array> {
  return renderViews([{ image, views }], size);
}

function expectWithinOneLevel(actual: Uint8Array, expected: readonly number[]): void {
  expect(actual.length).toBe(expected.length);
  const wrong = Array.from(actual).flatMap((level, i) =>
    Math.abs(level - expected[i]) <= 1 ? [] : [[i, level, expected[i]]],
  );
  expect(wrong).toEqual([]);
}

test.each<[string, Partial<ImageView>]>([
  ['a crop', {}],
  ['a pixel', { crop: { left: 82, top: 60, width: 1, height: 1 } }],
  ['everything', { crop: { left: 0, top: 0, width: 83, height: 61 } }],
  ['flip', { flip: true }],
  ['brightness', { jitter: { ...still, order: ['brightness'], brightness: 1.4 } }],
  ['contrast', { jitter: { ...still, order: ['contrast'], contrast: 0.6 } }],
  ['more contrast', { jitter: { ...still, order: ['contrast'], contrast: 1.4 } }],
  ['saturation', { jitter: { ...still, order: ['saturation'], saturation: 1.7 } }],
  ['hue', { jitter: { ...still, order: ['hue'], hue: 0.1 } }],
  ['hue the other way', { jitter: { ...still, order: ['hue'], hue: -0.5 } }],
  ['grey', { grey: true }],
  ['a little blur', { blur: 0.1 }],
  ['blur', { blur: 1.3 }],
  ['blur that reaches over the border', { blur: 9 }],
  [
    'everything at once',
    {
      flip: true,
      jitter: {
        order: ['hue', 'contrast', 'saturation', 'brightness'],
        brightness: 0.7,
        contrast: 1.3,
        saturation: 1.2,
        hue: 0.08,
      },
      blur: 1.9,
    },
  ],
])('%s is that of the reference, within one level', async (_, change) => {
  const view = { ...plain, ...change };
  expectWithinOneLevel(await render([view]), viewReference(image, view, 24));
});

test('a crop alone has the bits of Pillow', async () => {
  const { left, top, width, height } = plain.crop;
  const data = Uint8Array.from(
    Array.from({ length: height }, (_, y) => {
      const begin = 3 * ((top + y) * image.width + left);
      return [...image.data.subarray(begin, begin + 3 * width)];
    }).flat(),
  );
  const crop: RgbImage = { data, width, height, channels: 3 };
  for (const resample of ['bicubic', 'bilinear'] as const) {
    const rendered = await renderViews([{ image, views: [plain] }], 24, { resample });
    expect(rendered).toEqual(resizeReference(crop, 24, 24, resample).data);
  }
});

test('the order of changes counts', async () => {
  const jitter = { brightness: 1.4, contrast: 0.6, saturation: 1, hue: 0 };
  const [first, second] = await Promise.all(
    [['brightness', 'contrast'] as const, ['contrast', 'brightness'] as const].map((order) =>
      render([{ ...plain, jitter: { ...jitter, order } }]),
    ),
  );
  expect(first).not.toEqual(second);
});

test('many images in one call, in their order', async () => {
  const other = formulaImage(30, 20);
  const random = new Philox4x32(3, 'views');
  const own = Array.from({ length: 3 }, () => drawView(random, 'local', image));
  const others = Array.from({ length: 2 }, () => drawView(random, 'global', other));
  const together = await renderViews(
    [
      { image, views: own },
      { image: other, views: others },
    ],
    16,
  );
  expect(together.length).toBe(5 * 16 * 16 * 3);
  expect(together.subarray(0, 3 * 768)).toEqual(await render(own, 16));
  expect(together.subarray(3 * 768)).toEqual(
    await renderViews([{ image: other, views: others }], 16),
  );
  own.forEach((view, i) => {
    expectWithinOneLevel(together.subarray(i * 768, (i + 1) * 768), viewReference(image, view, 16));
  });
});

test('pixels may change once the call has returned', async () => {
  const mutable = formulaImage(61, 83);
  const rendered = renderViews([{ image: mutable, views: [plain] }], 24);
  mutable.data.fill(0);
  expect(await rendered).toEqual(await render([plain]));
});

test('no images give no bytes', async () => {
  expect(await renderViews([], 24)).toEqual(new Uint8Array(0));
});

test.each<[string, Partial<ImageView>, string]>([
  ['crop', { crop: { left: 50, top: 0, width: 34, height: 5 } }, 'width must be in [1, 33]'],
  ['blur', { blur: -1 }, 'sigma must be in'],
  ['blur', { blur: NaN }, 'sigma must be in'],
  ['hue', { jitter: { ...still, order: ['hue'], hue: 0.7 } }, 'hue must be in'],
])('another %s is refused', async (_, change, message) => {
  const refused = render([{ ...plain, ...change }]);
  await expect(refused).rejects.toMatchObject({ code: 'ERR_ARGUMENT' });
  await expect(refused).rejects.toThrow(message);
});

test('another size is refused', async () => {
  await expect(render([plain], 0)).rejects.toThrow('size must be a positive integer');
});

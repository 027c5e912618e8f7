// The precisions a model can be loaded in, and what holds in each: the same bits in any batch.
import { Siglip2 } from '../../lib';
import type { LoadOptions } from '../../lib';
import { packedLinear, precisions } from '../../lib/ops';
import { failure } from '../failure';
import { ids, image, modelFolder, patches, randomConfig } from './random_model';

const fixed = modelFolder('fixed');
const naflex = modelFolder('naflex');

function cosine(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

async function embeddings(folder: string, options: LoadOptions): Promise<Float32Array[]> {
  using model = await Siglip2.load(folder, options);
  const naflexModel = model.config.vision.layout === 'naflex';
  const images = naflexModel ? [patches(3, 5, 1), patches(7, 7, 2)] : [image(1), image(2)];
  return [...(await model.embedImages(images)), ...(await model.embedTexts([ids(1), ids(2)]))];
}

describe.each([
  ['fixed', fixed],
  ['naflex', naflex],
])('%s', (_, folder) => {
  test.each([
    ['bfloat16', 0.9999],
    ['int8', 0.999],
  ] as const)('%s is near float32 and not the same', async (precision, least) => {
    const exact = await embeddings(folder(), {});
    expect(await embeddings(folder(), { precision: 'float32' })).toEqual(exact);
    const narrow = await embeddings(folder(), { precision });
    narrow.forEach((vector, i) => {
      expect(cosine(vector, exact[i])).toBeGreaterThan(least);
      expect(vector).not.toEqual(exact[i]);
    });
  });
});

test.each(precisions)(
  '%s: a vector has the same bits in a batch of any size',
  async (precision) => {
    using model = await Siglip2.load(fixed(), { precision });
    const images = Array.from({ length: 41 }, (_, i) => image(i));
    const texts = Array.from({ length: 41 }, (_, i) => ids(i));
    const [single] = await model.embedImages([images[0]]);
    const [text] = await model.embedTexts([texts[0]]);
    for (const batchSize of [2, 7, 33, 41]) {
      const all = await model.embedImages(images.slice(0, batchSize), { batchSize });
      expect(all[0]).toEqual(single);
      const allTexts = await model.embedTexts(texts.slice(0, batchSize), { batchSize });
      expect(allTexts[0]).toEqual(text);
    }
  },
);

test('the weights of the blocks are held in the form in which they are read', async () => {
  const { vision } = randomConfig('fixed');
  const { width, depth, mlpWidth } = vision;
  const bytesIn = (precision: 'float32' | 'bfloat16' | 'int8'): number => {
    const { bytes } = packedLinear[precision];
    const projections = 4 * bytes(width, width);
    return depth * (projections + bytes(mlpWidth, width) + bytes(width, mlpWidth));
  };
  const held: number[] = [];
  for (const precision of precisions) {
    using model = await Siglip2.load(fixed(), { precision, towers: 'vision' });
    held.push(model.weightBytes - bytesIn(precision));
  }
  expect(held[0]).toBeGreaterThan(0);
  expect(held).toEqual(precisions.map(() => held[0]));
});

test('another word is refused', async () => {
  const options = { precision: 'float16' } as unknown as LoadOptions;
  const error = await failure(Siglip2.load(fixed(), options));
  expect(error.code).toBe('ERR_ARGUMENT');
  expect(error.message).toMatch(
    /precision must be 'float32' or 'bfloat16' or 'int8', got 'float16'/u,
  );
});

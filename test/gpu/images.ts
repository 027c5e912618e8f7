// Images resized on a GPU: the bytes of the CPU, whatever the pictures.
import type { Device } from '../../lib/array';
import { DeviceArray } from '../../lib/array';
import { Siglip2 } from '../../lib/embed';
import { SiglipError } from '../../lib/errors';
import type { Pixels, RawImage } from '../../lib/image';
import { FixedProcessor } from '../../lib/image';
import type { Placed, Recipe } from '../../lib/image/pixels';
import { preparePixels } from '../../lib/image/pixels';
import { initialize, variant } from '../../lib/model';
import { defaultPreprocessor, saveCheckpoint } from '../../lib/weights';
import type { FixedPreprocessor } from '../../lib/weights/preprocessor_config';
import type { Figures, Runner } from './runner';
import { must } from './runner';
import { inFolder } from './towers';

type Format = Pixels['format'];
type Size = readonly [width: number, height: number];

const CHANNELS: Readonly<Record<Format, number>> = {
  grey: 1,
  greyAlpha: 2,
  rgb: 3,
  rgba: 4,
  cmyk: 4,
};
const FORMATS = Object.keys(CHANNELS) as Format[];

const RECIPES: readonly Pick<Recipe, 'resample' | 'backend'>[] = [
  ...(['nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming'] as const).map((resample) => ({
    resample,
    backend: 'pillow' as const,
  })),
  ...(['bilinear', 'bicubic'] as const).map((resample) => ({
    resample,
    backend: 'torchvision' as const,
  })),
];

/** Numbers that repeat with the seed. */
class Draw {
  private state: number;

  constructor(seed: number) {
    this.state = Math.imul(seed + 1, 0x9e3779b1) >>> 0 || 1;
  }

  word(): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return this.state >>> 0;
  }

  /** From 1 on. */
  upTo(most: number): number {
    return 1 + (this.word() % most);
  }

  bytes(count: number): Uint8Array {
    const words = new Uint32Array(Math.ceil(count / 4));
    for (let i = 0; i < words.length; i++) words[i] = this.word();
    return new Uint8Array(words.buffer, 0, count);
  }
}

function pixelsOf(draw: Draw, [width, height]: Size, format: Format): Pixels {
  const data = draw.bytes(width * height * CHANNELS[format]);
  // Full contrast shows sums that leave the range of a byte.
  if (draw.upTo(2) === 1) data.forEach((byte, i) => (data[i] = byte < 128 ? 0 : 255));
  const background =
    draw.upTo(2) === 1 ? ([draw.upTo(256) - 1, 7, 250] as [number, number, number]) : undefined;
  return { data, width, height, format, background, owned: true };
}

function placedOf(pictures: readonly (readonly [Pixels, Size])[]): {
  placed: Placed[];
  bytes: number;
} {
  let bytes = 0;
  const placed = pictures.map(([pixels, [width, height]]) => {
    const one = { pixels, width, height, offset: bytes };
    bytes += 3 * width * height;
    return one;
  });
  return { placed, bytes };
}

/** Both sides, which must agree. */
async function compare(
  device: Device,
  pictures: readonly (readonly [Pixels, Size])[],
  recipe: Pick<Recipe, 'resample' | 'backend'>,
): Promise<void> {
  const { placed, bytes } = placedOf(pictures);
  const whole: Recipe = { ...recipe, output: { layout: 'bytes' } };
  const expected = new Uint8Array(bytes);
  await preparePixels(placed, whole, expected);
  using array = DeviceArray.from(new Uint8Array(bytes).fill(0x5a), [bytes], device);
  await preparePixels(placed, whole, array);
  const actual = await array.read();
  if (Buffer.compare(actual, expected) === 0) return;
  const at = expected.findIndex((byte, i) => byte !== actual[i]);
  const { pixels, width, height, offset } =
    placed.filter((one) => one.offset <= at).at(-1) ?? placed[0];
  const names = `${pixels.format} ${String(pixels.width)}x${String(pixels.height)} to ${String(width)}x${String(height)}`;
  throw new Error(
    `${recipe.resample} of ${recipe.backend}, ${names}: byte ${String(at - offset)} must be ` +
      `${String(expected[at])}, got ${String(actual[at])}`,
  );
}

const SPECIAL: readonly (readonly [Size, Size])[] = [
  [
    [1, 1],
    [224, 224],
  ],
  [
    [1, 300],
    [5, 7],
  ],
  [
    [300, 1],
    [7, 5],
  ],
  // More than 100 times as high as wide: columns first.
  [
    [3, 301],
    [5, 50],
  ],
  [
    [7, 2000],
    [7, 100],
  ],
  [
    [2, 999],
    [300, 998],
  ],
  // One axis stays, or both.
  [
    [224, 500],
    [224, 224],
  ],
  [
    [500, 224],
    [224, 224],
  ],
  [
    [224, 224],
    [224, 224],
  ],
  // Powers of two, rows in several pieces, one output of very many inputs.
  [
    [2048, 64],
    [256, 8],
  ],
  [
    [4096, 16],
    [128, 16],
  ],
  [
    [9001, 5],
    [300, 3],
  ],
  [
    [20000, 3],
    [1, 1],
  ],
  [
    [40, 30],
    [1000, 700],
  ],
  [
    [3000, 2000],
    [384, 384],
  ],
];

function declareResize(runner: Runner, device: Device): void {
  const group = runner.group('images');
  for (const recipe of RECIPES) {
    group.test(`${recipe.resample} of ${recipe.backend}: the bytes of the CPU`, async () => {
      const draw = new Draw(RECIPES.indexOf(recipe));
      const special = SPECIAL.map(([from, to], i): [Pixels, Size] => [
        pixelsOf(draw, from, FORMATS[(i + draw.upTo(5)) % FORMATS.length]),
        to,
      ]);
      await compare(device, special, recipe);
      for (const format of FORMATS) {
        const random = Array.from({ length: 6 }, (_, i): [Pixels, Size] => {
          const most = i === 0 ? 2500 : 400;
          const from: Size = [draw.upTo(most), draw.upTo(most)];
          return [pixelsOf(draw, from, format), [draw.upTo(448), draw.upTo(448)]];
        });
        await compare(device, random, recipe);
      }
    });
  }

  group.test('more pictures than go up at once, in calls that overlap', async () => {
    const draw = new Draw(99);
    const photo = pixelsOf(draw, [1600, 1200], 'rgb');
    const others = [pixelsOf(draw, [1199, 801], 'rgba'), pixelsOf(draw, [640, 480], 'grey')];
    const pictures = Array.from({ length: 40 }, (_, i): [Pixels, Size] => [
      i % 4 === 3 ? others[i % 2] : photo,
      [224, 224],
    ]);
    const recipe = { resample: 'bicubic', backend: 'pillow' } as const;
    await Promise.all([
      compare(device, pictures, recipe),
      compare(device, pictures.slice(1, 9), recipe),
      compare(device, pictures.slice(7), { resample: 'bilinear', backend: 'torchvision' }),
    ]);
  });

  group.test('what does not fit is refused, and what follows goes on', async () => {
    const draw = new Draw(5);
    const high = pixelsOf(draw, [1, 1 << 20], 'grey');
    const recipe = { resample: 'bilinear', backend: 'torchvision' } as const;
    const { placed, bytes } = placedOf([[high, [1 << 18, 1]]]);
    using array = DeviceArray.zeros({ dtype: 'uint8', shape: [bytes] }, device);
    const error: unknown = await preparePixels(
      placed,
      { ...recipe, output: { layout: 'bytes' } },
      array,
    ).catch((reason: unknown) => reason);
    must(
      error instanceof SiglipError && error.code === 'ERR_OUT_OF_MEMORY',
      () => `it must be ERR_OUT_OF_MEMORY, got ${String(error)}`,
    );
    await compare(device, [[pixelsOf(draw, [300, 200], 'rgb'), [20, 30]]], recipe);
  });
}

function declareEmbedding(runner: Runner, device: Device): void {
  const config = variant('B/16', { imageSize: 224, vocabulary: 1000 });
  const shallow = {
    ...config,
    vision: { ...config.vision, depth: 2 },
    text: { ...config.text, depth: 1 },
  };
  runner.group('images').test('embeddings of images of any size: those of resized ones', () =>
    inFolder(async (folder): Promise<Figures> => {
      await saveCheckpoint(folder, { config: shallow, parameters: initialize(shallow, 7) });
      const draw = new Draw(3);
      const images = (
        [
          [1600, 1200, 3],
          [224, 224, 3],
          [333, 1001, 4],
          [31, 77, 1],
          [500, 40, 2],
          [2000, 1500, 3],
        ] as const
      ).map(([width, height, channels]): RawImage => {
        return { data: draw.bytes(width * height * channels), width, height, channels };
      });
      const processor = new FixedProcessor(defaultPreprocessor(shallow) as FixedPreprocessor);
      const bytes = await processor.pixels(images);
      const resized = images.map((_, i): RawImage => {
        const data = bytes.slice(i * 3 * 224 * 224, (i + 1) * 3 * 224 * 224);
        return { data, width: 224, height: 224, channels: 3 };
      });
      const model = await Siglip2.load(folder, { device, towers: 'vision' });
      try {
        const options = { batchSize: 4 };
        const expected = await model.embedImages(resized, options);
        const actual = await model.embedImages(images, options);
        const { values } = await processor.prepare(images[0]);
        const [[fromPixels], [fromValues]] = await Promise.all([
          model.embedImages([images[0]]),
          model.embedImages([{ pixelValues: values }]),
        ]);
        expected.forEach((vector, i) => {
          must(
            vector.every((value, j) => Object.is(value, actual[i][j])),
            () => `image ${String(i)} must have the embedding of its resized form`,
          );
        });
        const difference = Math.max(
          ...fromValues.map((value, j) => Math.abs(value - fromPixels[j])),
        );
        must(difference < 1e-5, () => `values and pixels must agree, got ${String(difference)}`);
        return { difference };
      } finally {
        model.dispose();
      }
    }),
  );
}

/** Declares them. */
export function declareImages(runner: Runner, device: Device): void {
  declareResize(runner, device);
  declareEmbedding(runner, device);
}

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { RgbImage } from '../../lib/image';
import { resizeImage } from '../../lib/image';
import { Philox4x32 } from '../../lib/array/random';
import { describeGolden } from '../golden_cases/golden';
import { decodeImage } from '../../lib/image';
import { resizeReference } from '../reference/resize';
import { formulaImage, greyImage, red, sha256 } from './formula_image';

type Filter = 'nearest' | 'lanczos' | 'bilinear' | 'bicubic' | 'box' | 'hamming';
interface Resized {
  readonly height: number;
  readonly width: number;
  readonly toHeight: number;
  readonly toWidth: number;
  readonly resample: Filter;
  readonly backend?: 'pillow' | 'torchvision';
  readonly sha256: string;
}

// Results of Pillow 12.3.0, byte sums and hashes of the interleaved bytes.
describe('resizeImage equals Pillow on the formula image', () => {
  test.each<[number, number, number, number, Filter, number, string]>([
    [
      480,
      640,
      224,
      224,
      'bilinear',
      19249666,
      '1a6e0e4f57c71a8fa09aaeef72b1df826a505f616e7b6f66f1ccddae37396758',
    ],
    [
      480,
      640,
      224,
      224,
      'bicubic',
      19246065,
      '43796e40d238ce9e3f425f936634dd692df522f4e0fb0249a3b2e32ff9559be6',
    ],
    [
      480,
      640,
      224,
      288,
      'bilinear',
      24747875,
      '84907850171bc29d9d6e823103733837ad9b4354b8bc5ba2b5956d30af9c5666',
    ],
    [
      480,
      640,
      224,
      288,
      'bicubic',
      24738234,
      'a471b2c10d03fdc1583035cbc0ae1fd69864981439974b5dd802815abda6496e',
    ],
    [
      100,
      150,
      384,
      384,
      'bilinear',
      56367538,
      'c2d6939bbc7b0ad792540e63d62bdb4f07db3744bd4edce02ae65cf80e127310',
    ],
    [
      100,
      150,
      384,
      384,
      'bicubic',
      56368058,
      '4c2a6ba0baaa30c7c91c18cdf1312510f3f65532b93fca5fc45b19e545615022',
    ],
    [
      1080,
      1920,
      256,
      256,
      'bilinear',
      25133265,
      '751fa7cf086d76710fed4911c82d71498e9db1226ba06ff314fec8e98b581a2d',
    ],
    [
      1080,
      1920,
      256,
      256,
      'bicubic',
      25133699,
      '975b0bc67cd345da67b7de268679aef2dbb7ce065e06c2117bec621a12c15c3f',
    ],
  ])('%i×%i to %i×%i, %s', async (height, width, toHeight, toWidth, filter, sum, hash) => {
    const { data } = await resizeImage(formulaImage(height, width), toWidth, toHeight, filter);
    expect(data.reduce((total, value) => total + value, 0)).toBe(sum);
    expect(sha256(data)).toBe(hash);
  });

  const { resized } = JSON.parse(
    readFileSync(join(__dirname, '..', 'golden', 'image', 'pillow.json'), 'utf8'),
  ) as { resized: Resized[] };
  test.each(resized)(
    '$height×$width to $toHeight×$toWidth, $resample $backend',
    async ({ height, width, toHeight, toWidth, resample, backend, sha256: hash }) => {
      const { data } = await resizeImage(
        formulaImage(height, width),
        toWidth,
        toHeight,
        resample,
        backend,
      );
      expect(sha256(data)).toBe(hash);
    },
  );
});

describe('resizeImage, small cases by value', () => {
  test('a step edge and a checkerboard', async () => {
    const board = greyImage(2, 2, [0, 255, 255, 0]);
    expect(red(await resizeImage(board, 4, 4, 'bilinear'))).toEqual([
      0, 64, 191, 255, 64, 96, 159, 191, 191, 159, 96, 64, 255, 191, 64, 0,
    ]);
    const edge = greyImage(1, 4, [0, 0, 255, 255]);
    expect(red(await resizeImage(edge, 2, 1, 'bilinear'))).toEqual([36, 219]);
  });

  test('one channel, 5×7 to 3×4', async () => {
    const image = formulaImage(5, 7);
    expect(red(await resizeImage(image, 4, 3, 'bilinear'))).toEqual([
      61, 128, 127, 163, 151, 142, 148, 140, 106, 125, 142, 131,
    ]);
    expect(red(await resizeImage(image, 4, 3, 'bicubic'))).toEqual([
      57, 131, 126, 162, 155, 148, 148, 139, 103, 127, 143, 130,
    ]);
  });

  test('the result never shares memory with the input', async () => {
    const image = formulaImage(4, 4);
    const same = await resizeImage(image, 4, 4, 'bicubic');
    expect(same.data).toEqual(image.data);
    same.data.fill(0);
    expect(image.data[3]).toBe(37);
  });

  test.each([0, -1, 1.5, NaN, Infinity])('refuses the size %p', async (size) => {
    await expect(resizeImage(formulaImage(4, 4), size, 4, 'bilinear')).rejects.toThrow(
      `resizeImage: width must be a positive integer, got ${String(size)}`,
    );
  });

  test('refuses a filter it does not have', async () => {
    const image = formulaImage(4, 4);
    await expect(resizeImage(image, 2, 2, 'cubic' as 'bicubic')).rejects.toThrow(
      'resizeImage: resample must be nearest, lanczos, bilinear, bicubic, box, hamming, got cubic',
    );
    await expect(resizeImage(image, 2, 2, 'lanczos', 'torchvision')).rejects.toThrow(
      'resizeImage: resample must be bilinear, bicubic, got lanczos',
    );
  });
});

describe('resizeImage equals the reference', () => {
  const filters = ['nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming'] as const;
  const expectSame = async (
    [height, width, toHeight, toWidth]: readonly number[],
    filter: Filter,
    backend: 'pillow' | 'torchvision',
  ): Promise<void> => {
    const image = noise(height, width, random);
    const expected = resizeReference(image, toWidth, toHeight, filter, backend);
    const { data } = await resizeImage(image, toWidth, toHeight, filter, backend);
    const at = data.findIndex((value, i) => value !== expected.data[i]);
    expect([height, width, toHeight, toWidth, filter, backend, at, data[at]]).toEqual([
      height,
      width,
      toHeight,
      toWidth,
      filter,
      backend,
      -1,
      undefined,
    ]);
  };
  const random = new Philox4x32(5, 'resize');

  test.each([
    [1, 1, 1, 1],
    [1, 1, 17, 33],
    [1, 500, 7, 3],
    [500, 1, 3, 7],
    [1, 37, 1, 90],
    [37, 1, 90, 1],
    [5, 6, 5, 60],
    [5, 6, 50, 6],
    [3, 1000, 300, 2],
    [1000, 3, 2, 300],
    [301, 3, 4, 40],
    [301, 3, 302, 2],
    [300, 3, 4, 40],
    [700, 11, 1, 1],
    [64, 64, 63, 65],
    [9, 11, 8, 10],
  ])('%i×%i to %i×%i, every filter', async (...sizes) => {
    for (const filter of filters) await expectSame(sizes, filter, 'pillow');
    for (const filter of ['bilinear', 'bicubic'] as const) {
      await expectSame(sizes, filter, 'torchvision');
    }
  });

  test('random sizes', async () => {
    // Uniform in the logarithm, so that extreme shapes are common.
    const side = (most: number): number => Math.floor(Math.exp(random.uniform() * Math.log(most)));
    for (let round = 0; round < 120; round++) {
      const sizes = [side(400), side(400), side(150), side(150)];
      const filter = filters[random.integer(filters.length)];
      await expectSame(sizes, filter, 'pillow');
      await expectSame(sizes, round % 2 === 0 ? 'bilinear' : 'bicubic', 'torchvision');
    }
  });
});

function noise(height: number, width: number, random: Philox4x32): RgbImage {
  // Blocks of the darkest and the brightest, so that cubic overshoot is cut at both ends.
  const data = Uint8Array.from({ length: 3 * height * width }, () => {
    const value = random.integer(512);
    return value < 256 ? value : value < 384 ? 0 : 255;
  });
  return { data, width, height, channels: 3 };
}

// Photographs through the reference's own processors.
describeGolden('preprocess', (golden) => {
  const sizes: [number, Filter][] = [
    [224, 'bilinear'],
    [224, 'bicubic'],
    [384, 'bilinear'],
  ];
  test.each(['00', '01', '02', '03', '04'])('photograph %s', async (name) => {
    const image = await decodeImage(join(golden.folder, `${name}.png`));
    let compared = 0;
    for (const [size, filter] of sizes) {
      const key = `${name}.fixed${String(size)}.${filter}.uint8`;
      const expected = golden.file('resized.safetensors').get(key);
      if (expected === undefined) continue;
      const { data } = await resizeImage(image, size, size, filter);
      expect(sha256(data)).toBe(sha256(Uint8Array.from(expected.data)));
      compared++;
    }
    expect(compared).toBeGreaterThan(0);
  });
});

// Pictures of what a stage has learned, for the page of its run: captions with the boxes it writes, what the
// pooling head looks at, and the dense features as colours.
import sharp from 'sharp';
import { symmetricEigen } from '../array/symmetric';
import type { Stage } from '../train';
import { trainsDecoder } from '../train';
import type { ImageTokens } from '../embed';
import { Captioner, Siglip2 } from '../embed';
import type { RgbImage } from '../image';
import type { Box } from '../text';
import type { Picture, PictureRow } from './run_page';

/** A drawing with its name. */
export interface NamedImage {
  readonly image: RgbImage;
  readonly name: string;
}

/** Pixels a side of a picture on the page. */
const SIDE = 96;

/** Pictures of some images through the model of a stage. */
export async function stagePictures(
  folder: string,
  stage: Stage,
  images: readonly NamedImage[],
): Promise<PictureRow[]> {
  const dense = await densePictures(folder, images);
  return trainsDecoder(stage) ? [await captionPictures(folder, images), ...dense] : dense;
}

async function captionPictures(folder: string, images: readonly NamedImage[]): Promise<PictureRow> {
  const captioner = await Captioner.load(folder, { device: 'cpu' });
  try {
    const pictures: Picture[] = [];
    for (const { image, name } of images) {
      const { caption, logProbability } = await captioner.caption(image);
      const { box } = await captioner.ground(image, name);
      pictures.push({
        image: await pngUrl(box === undefined ? image : framed(image, box)),
        title: name,
        lines: [
          `writes “${caption}” (log-probability ${logProbability.toFixed(1)})`,
          box === undefined
            ? 'writes no box for the name'
            : `box of the name: ${box.map((value) => value.toFixed(2)).join(' ')}`,
        ],
      });
    }
    return {
      title: 'Captions and boxes',
      text: 'What the decoder writes of drawings of the unseen style, and where it sees their names.',
      pictures,
    };
  } finally {
    captioner.dispose();
  }
}

async function densePictures(folder: string, images: readonly NamedImage[]): Promise<PictureRow[]> {
  const model = await Siglip2.load(folder, { towers: 'vision', device: 'cpu' });
  try {
    const dense: ImageTokens[] = [];
    for (const { image } of images) dense.push(await model.imageTokens(image));
    const { width } = model.config.vision;
    const colours = principalColours(
      dense.map(({ tokens }) => tokens),
      width,
    );
    const pictures = await Promise.all(
      images.map(async ({ name }, i): Promise<Picture> => {
        const [rows, columns] = dense[i].grid;
        const image = { data: colours[i], width: columns, height: rows, channels: 3 } as const;
        return { image: await pngUrl(image), title: name, lines: [] };
      }),
    );
    return [
      {
        title: 'Dense features',
        text: 'The first three principal components of the un-pooled tokens of these drawings, as red, green and blue.',
        pictures,
      },
    ];
  } finally {
    model.dispose();
  }
}

// Components over the tokens of all images together, each stretched to the whole range.
function principalColours(tokens: readonly Float32Array[], width: number): Uint8Array[] {
  const count = tokens.reduce((sum, { length }) => sum + length / width, 0);
  const mean = new Float64Array(width);
  for (const own of tokens) for (let i = 0; i < own.length; i++) mean[i % width] += own[i] / count;
  const covariance = new Float64Array(width * width);
  for (const own of tokens) {
    for (let t = 0; t < own.length; t += width) {
      for (let a = 0; a < width; a++) {
        const da = own[t + a] - mean[a];
        for (let b = 0; b < width; b++) covariance[a * width + b] += da * (own[t + b] - mean[b]);
      }
    }
  }
  const { values, vectors } = symmetricEigen(covariance, width);
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
  const components = tokens.map((own) =>
    Float64Array.from({ length: (own.length / width) * 3 }, (_, i) => {
      const [t, c] = [Math.floor(i / 3) * width, i % 3];
      let sum = 0;
      for (let a = 0; a < width; a++) sum += (own[t + a] - mean[a]) * vectors[order[c] * width + a];
      return sum;
    }),
  );
  const ranges = [0, 1, 2].map((c) => {
    const values = components.flatMap((all) => [...all.filter((_, i) => i % 3 === c)]);
    return [Math.min(...values), Math.max(...values)] as const;
  });
  return components.map((all) =>
    Uint8Array.from(all, (value, i) => {
      const [low, high] = ranges[i % 3];
      return Math.round((255 * (value - low)) / Math.max(high - low, 1e-12));
    }),
  );
}

// A copy with a red frame one pixel wide.
function framed({ data, width, height }: RgbImage, [ymin, xmin, ymax, xmax]: Box): RgbImage {
  const out = Uint8Array.from(data);
  const paint = (row: number, column: number): void => {
    out.set([220, 30, 30], (row * width + column) * 3);
  };
  const at = (value: number, side: number): number =>
    Math.min(side - 1, Math.max(0, Math.round(value * side - 0.5)));
  const [top, bottom] = [at(ymin, height), at(ymax, height)];
  const [left, right] = [at(xmin, width), at(xmax, width)];
  for (let column = left; column <= right; column++) {
    paint(top, column);
    paint(bottom, column);
  }
  for (let row = top; row <= bottom; row++) {
    paint(row, left);
    paint(row, right);
  }
  return { data: out, width, height, channels: 3 };
}

async function pngUrl({ data, width, height }: RgbImage): Promise<string> {
  const png = await sharp(data, { raw: { width, height, channels: 3 } })
    .resize(SIDE, SIDE, { kernel: 'nearest', fit: 'fill' })
    .png()
    .toBuffer();
  return `data:image/png;base64,${png.toString('base64')}`;
}

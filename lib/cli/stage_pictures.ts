// Pictures of what a stage has learned, for the page of its run: captions with the boxes it writes, what the
// pooling head looks at, and the dense features as colours.
import { symmetricEigen } from '../array/symmetric';
import { Philox4x32 } from '../array/random';
import { patchMask } from '../data';
import type { ImageTokens } from '../embed';
import { Captioner, Siglip2 } from '../embed';
import type { RgbImage } from '../image';
import { disposeArrays } from '../graph';
import { gridSide } from '../model';
import type { Box } from '../text';
import type { Recipe, Stage } from '../train';
import { trainsDecoder, trainsSelfDistillation } from '../train';
import { loadCheckpoint, readModelConfig } from '../weights';
import { pngUrl } from './png_url';
import type { Picture, PictureRow } from './run_page';

/** A drawing with its name. */
export interface NamedImage {
  readonly image: RgbImage;
  readonly name: string;
}

/** Pictures of some images through the model of a stage. */
export async function stagePictures(
  folder: string,
  recipe: Recipe,
  stage: Stage,
  images: readonly NamedImage[],
): Promise<PictureRow[]> {
  const dense = await densePictures(folder, images);
  return [
    ...(trainsDecoder(stage) ? [await captionPictures(folder, images)] : []),
    ...(trainsSelfDistillation(stage) ? [await maskPictures(folder, images, recipe)] : []),
    ...dense,
  ];
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
    const attention = await pooledAttentionOf(folder);
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
    const looked = await Promise.all(
      images.map(async ({ image, name }, i): Promise<Picture> => {
        const shown = shaded(image, attention(dense[i].tokens), dense[i].grid);
        return { image: await pngUrl(shown), title: name, lines: [] };
      }),
    );
    return [
      {
        title: 'What the pooling head looks at',
        text: 'The more the head attends to a patch, mean over its heads, the more of it shows.',
        pictures: looked,
      },
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

// What the student does not see: a mask of each image as the stage draws them.
async function maskPictures(
  folder: string,
  images: readonly NamedImage[],
  { distillation: { mask: kind, maskShare: ratio }, seed }: Recipe,
): Promise<PictureRow> {
  const side = gridSide((await readModelConfig(folder)).vision);
  const pictures = await Promise.all(
    images.map(async ({ image, name }, i): Promise<Picture> => {
      const random = new Philox4x32(seed, `picture of a mask ${String(i)}`);
      const mask = patchMask(random, { rows: side, columns: side }, { kind, ratio });
      const seen = Float64Array.from(mask, (masked) => 1 - masked);
      return { image: await pngUrl(shaded(image, seen, [side, side])), title: name, lines: [] };
    }),
  );
  return {
    title: 'Masked patches',
    text: 'What is left of an image for the student to tell the rest from.',
    pictures,
  };
}

// The attention of the MAP head's one query to tokens, mean over its heads, relative to the largest.
async function pooledAttentionOf(folder: string): Promise<(tokens: Float32Array) => Float64Array> {
  const { config, parameters } = await loadCheckpoint(folder);
  const { head } = parameters.vision;
  const { width, heads } = config.vision;
  try {
    if (head === undefined) return (tokens) => new Float64Array(tokens.length / width).fill(1);
    const { query, key } = head.attention;
    const [probe, wq, bq, wk] = await Promise.all(
      [head.probe, query.weight, query.bias, key.weight].map((array) => array.read()),
    );
    const q = Float64Array.from({ length: width }, (_, i) => {
      let sum = bq[i];
      for (let k = 0; k < width; k++) sum += wq[i * width + k] * probe[k];
      return sum;
    });
    const own = width / heads;
    // ⟨q_h, Wk_h x⟩ = ⟨Wk_hᵀ q_h, x⟩; the key's bias shifts all scores of a head alike.
    const asked = Array.from({ length: heads }, (_, h) =>
      Float64Array.from({ length: width }, (_column, k) => {
        let sum = 0;
        for (let i = h * own; i < (h + 1) * own; i++) sum += q[i] * wk[i * width + k];
        return sum / Math.sqrt(own);
      }),
    );
    return (tokens) => {
      const count = tokens.length / width;
      const mean = new Float64Array(count);
      for (const vector of asked) {
        const scores = Float64Array.from({ length: count }, (_, t) =>
          vector.reduce((sum, value, k) => sum + value * tokens[t * width + k], 0),
        );
        const most = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - most));
        const total = weights.reduce((sum, value) => sum + value, 0);
        weights.forEach((value, t) => {
          mean[t] += value / total / heads;
        });
      }
      const most = Math.max(...mean);
      return mean.map((value) => value / most);
    };
  } finally {
    disposeArrays(parameters);
  }
}

// An image whose patches show by their share, on grey.
function shaded(
  { data, width, height }: RgbImage,
  shares: Float64Array,
  [rows, columns]: readonly [number, number],
): RgbImage {
  const grey = 96;
  const out = Uint8Array.from(data, (value, i) => {
    const pixel = Math.floor(i / 3);
    const row = Math.min(rows - 1, Math.floor((Math.floor(pixel / width) * rows) / height));
    const column = Math.min(columns - 1, Math.floor(((pixel % width) * columns) / width));
    const share = shares[row * columns + column];
    return Math.round(share * value + (1 - share) * grey);
  });
  return { data: out, width, height, channels: 3 };
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

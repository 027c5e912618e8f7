// Classes of pixels, for probes of dense features.
import { SiglipError } from '../errors';
import type { Colour, RawImage } from '../image';

/** Paper and the colours that drawings are made of. */
export const drawingPalette: readonly Colour[] = [
  [255, 255, 255],
  [0, 0, 0],
  [220, 50, 50],
  [255, 200, 50],
  [80, 170, 60],
  [60, 140, 220],
  [140, 90, 50],
  [250, 170, 190],
];

/** Labels of the pixels of an image. */
export interface PixelLabels {
  /** (height · width) */
  readonly labels: Uint8Array;
  readonly height: number;
  readonly width: number;
}

/**
 * The nearest colour of a palette (Euclidean in sRGB, ties to the first) of each pixel of a drawing. With
 * {@link drawingPalette} class 0 is the paper: `label > 0` is the drawing.
 */
export function paletteLabels(image: RawImage, palette = drawingPalette): PixelLabels {
  const { data, height, width } = image;
  const channels = expectChannels(image, [3, 4]);
  const labels = new Uint8Array(height * width);
  for (let pixel = 0; pixel < labels.length; pixel++) {
    let nearest = Infinity;
    palette.forEach((colour, label) => {
      let distance = 0;
      for (let k = 0; k < 3; k++) distance += (data[pixel * channels + k] - colour[k]) ** 2;
      if (distance >= nearest) return;
      nearest = distance;
      labels[pixel] = label;
    });
  }
  return { labels, height, width };
}

/**
 * Labels that are stored as the grey values of a picture, at another size: of the pixel at the centre of
 * each, none is mixed from two.
 *
 * @param side - the longer side of the result; default that of the picture
 */
export function maskLabels(mask: RawImage, side = Math.max(mask.height, mask.width)): PixelLabels {
  const channels = expectChannels(mask, [1, 3]);
  const scale = Math.max(mask.height, mask.width) / side;
  const height = Math.max(1, Math.round(mask.height / scale));
  const width = Math.max(1, Math.round(mask.width / scale));
  const labels = new Uint8Array(height * width);
  const centre = (i: number, count: number, extent: number): number =>
    Math.floor(((i + 0.5) * extent) / count);
  for (let y = 0; y < height; y++) {
    const row = centre(y, height, mask.height) * mask.width;
    for (let x = 0; x < width; x++) {
      labels[y * width + x] = mask.data[(row + centre(x, width, mask.width)) * channels];
    }
  }
  return { labels, height, width };
}

function expectChannels(
  { data, height, width, channels }: RawImage,
  allowed: readonly number[],
): number {
  if (allowed.includes(channels) && data.length === height * width * channels) return channels;
  throw new SiglipError(
    'ERR_SHAPE',
    `labels: image must have ${String(height)} × ${String(width)} pixels of ${allowed.join(' or ')} ` +
      `channels, got ${String(data.length)} bytes of ${String(channels)}`,
  );
}

// An image as a page shows it.
import sharp from 'sharp';
import type { RgbImage } from '../image';

/** Pixels a side of a picture on a page. */
const SIDE = 96;

/** The image, stretched to a small square, as a `data:` URL. */
export async function pngUrl({ data, width, height }: RgbImage): Promise<string> {
  const png = await sharp(data, { raw: { width, height, channels: 3 } })
    .resize(SIDE, SIDE, { kernel: 'nearest', fit: 'fill' })
    .png()
    .toBuffer();
  return `data:image/png;base64,${png.toString('base64')}`;
}

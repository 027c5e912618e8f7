import { SiglipError } from '../errors';
import type { ImageBackend, Resample } from '../weights/preprocessor_config';
import { RESAMPLE_CODES } from '../weights/preprocessor_config';
import { pixelsOf, rgbOf } from './pixels';
import type { RawImage, RgbImage } from './pixels';

/**
 * Resizes an image to `width` × `height` pixels, aspect ratio not kept, with the result of Pillow's
 * `Image.convert("RGB").resize` (12.3) in every bit, or with that of torchvision's antialiased resize
 * of uint8 tensors, which has bilinear and bicubic alone. Runs on the device's threads; the pixels
 * are copied before this returns.
 *
 * @throws SiglipError ERR_ARGUMENT for a size or a filter that is none, ERR_IMAGE for an image that
 * does not fit its bytes, ERR_OUT_OF_MEMORY
 * @example
 * const small = await resizeImage(image, 224, 224, 'bilinear');
 */
export async function resizeImage(
  image: RawImage,
  width: number,
  height: number,
  resample: Resample,
  backend: ImageBackend = 'pillow',
): Promise<RgbImage> {
  expectExtent('width', width);
  expectExtent('height', height);
  const filters = backend === 'pillow' ? Object.keys(RESAMPLE_CODES) : ['bilinear', 'bicubic'];
  if (!filters.includes(resample)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `resizeImage: resample must be ${filters.join(', ')}, got ${resample}`,
    );
  }
  return rgbOf(pixelsOf(image), { width, height }, resample, backend);
}

function expectExtent(name: string, extent: number): void {
  if (Number.isSafeInteger(extent) && extent >= 1) return;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `resizeImage: ${name} must be a positive integer, got ${String(extent)}`,
  );
}

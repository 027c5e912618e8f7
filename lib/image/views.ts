// Augmented views of images, rendered natively on the device's threads. What is drawn at random is
// drawn elsewhere (lib/data/views.ts): a view is a function of its numbers.
import { SiglipError } from '../errors';
import type { NativeImageView } from '../native/addon';
import { loadAddon } from '../native/load';
import { RESAMPLE_CODES } from '../weights/preprocessor_config';
import type { RawImage } from './pixels';
import { allocate, nativePixels, pixelsOf } from './pixels';

/** A rectangle in pixels of an image, inside of it. */
export interface Crop {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
}

// The numbers of the native side.
const CHANGES = { brightness: 0, contrast: 1, saturation: 2, hue: 3 } as const;

export type ColourChange = keyof typeof CHANGES;

/**
 * Changes of colour as torchvision's ColorJitter makes them, with L = 0.2989 R + 0.587 G + 0.114 B:
 * brightness f x; contrast f x + (1 − f) · mean of L; saturation f x + (1 − f) L; hue turned in HSV.
 */
export interface ColourJitter {
  /** Which changes are made, first to last. */
  readonly order: readonly ColourChange[];
  /** Factors from 0, 1 for no change. */
  readonly brightness: number;
  readonly contrast: number;
  readonly saturation: number;
  /** Share of a full turn, from −½ to ½. */
  readonly hue: number;
}

/** Everything that makes a view out of an image; in the order in which it is applied. */
export interface ImageView {
  readonly crop: Crop;
  /** Left to right. */
  readonly flip: boolean;
  readonly jitter?: ColourJitter | undefined;
  readonly grey: boolean;
  /**
   * Standard deviation of the blur in pixels of the view, 0 for none. As in Pillow, three box blurs of
   * the same variance stand for the Gaussian.
   */
  readonly blur: number;
}

/** An image and its views. */
export interface ViewedImage {
  readonly image: RawImage;
  readonly views: readonly ImageView[];
}

const NO_JITTER: ColourJitter = { order: [], brightness: 1, contrast: 1, saturation: 1, hue: 0 };

/**
 * Renders views of many images in one native job: every crop is resized to size × size pixels with the
 * bits of Pillow, then flipped, changed in colour and blurred in float32 and rounded once. Pixels are
 * copied before this returns. The result is the same on any number of threads.
 *
 * @param size - side of every view in pixels
 * @param options - `resample`: `'bicubic'` (default, DINO) or `'bilinear'`, both antialiased
 * @returns (V, size, size, 3): the views of the first image, then those of the second, …
 * @throws SiglipError ERR_IMAGE for an image that does not fit its bytes, ERR_ARGUMENT for a size or a
 * view that is none, ERR_OUT_OF_MEMORY
 * @example
 * const random = new Philox4x32(seed, `views/${index}`);
 * const views = Array.from({ length: 8 }, () => drawView(random, 'local', image));
 * const bytes = await renderViews([{ image, views }], 96);
 */
export async function renderViews(
  images: readonly ViewedImage[],
  size: number,
  { resample = 'bicubic' }: { readonly resample?: 'bicubic' | 'bilinear' } = {},
): Promise<Uint8Array> {
  if (!Number.isSafeInteger(size) || size < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `renderViews: size must be a positive integer, got ${String(size)}`,
    );
  }
  const views = images.flatMap(({ views: of }, image) => of.map((view) => nativeView(view, image)));
  const into = allocate(Uint8Array, [views.length, size, size, 3]);
  const pixels = images.map(({ image }) => nativePixels(pixelsOf(image)));
  await loadAddon().renderViews(pixels, views, { filter: RESAMPLE_CODES[resample], size }, into);
  return into;
}

function nativeView(
  { crop, flip, jitter = NO_JITTER, grey, blur }: ImageView,
  image: number,
): NativeImageView {
  const { order, ...factors } = jitter;
  return {
    image,
    ...crop,
    flip,
    order: order.map((change) => CHANGES[change]),
    ...factors,
    grey,
    sigma: blur,
  };
}

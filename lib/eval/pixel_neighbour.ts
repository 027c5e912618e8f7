// The baseline that looks at nothing but pixels: the labelled image with the highest correlation. It
// matches image to image with the labels known, so it says how much of a result on unseen drawings
// is mere likeness.
import { SiglipError } from '../errors';
import { wilson, type Proportion } from './proportion';
import { forEachScores, rankOf } from './scores';

/** Outcome of {@link pixelNeighbour}. */
export interface PixelNeighbourResult {
  readonly top1: Proportion;
  readonly top5: Proportion;
}

/**
 * For each test image, ranks the labels by the best correlation of any gallery image with that
 * label: the cosine of their pixels, less each image's mean.
 *
 * @param images test images, (N, S, S, 3)
 * @param labels their labels, (N), 0 to C − 1
 * @param gallery labelled images, (M, S, S, 3)
 * @param galleryLabels (M)
 * @param size S; the usual baseline has 32
 * @throws ERR_SHAPE when the parts do not fit
 */
export function pixelNeighbour(
  images: Uint8Array,
  labels: Int32Array,
  gallery: Uint8Array,
  galleryLabels: Int32Array,
  size: number,
): PixelNeighbourResult {
  const width = size * size * 3;
  if (images.length !== labels.length * width || gallery.length !== galleryLabels.length * width) {
    throw new SiglipError(
      'ERR_SHAPE',
      `pixelNeighbour: images must be ${String(width)} bytes per label, got ` +
        `${String(images.length)} for ${String(labels.length)} and ` +
        `${String(gallery.length)} for ${String(galleryLabels.length)}`,
    );
  }
  const test = centred(images, width);
  const known = centred(gallery, width);
  const classes = galleryLabels.reduce((most, label) => Math.max(most, label + 1), 0);
  const nearest = new Float64Array(classes);
  let [first, five] = [0, 0];
  forEachScores({ data: test, width }, { data: known, width }, (query, scores) => {
    nearest.fill(-Infinity);
    for (const [row, label] of galleryLabels.entries()) {
      nearest[label] = Math.max(nearest[label], scores[row]);
    }
    const rank = labels[query] < classes ? rankOf(nearest, labels[query]) : classes;
    if (rank < 1) first++;
    if (rank < 5) five++;
  });
  return { top1: wilson(first, labels.length), top5: wilson(five, labels.length) };
}

/** Pixels less the mean over all of the image's pixels and channels, at unit length. */
function centred(pixels: Uint8Array, width: number): Float32Array {
  const out = new Float32Array(pixels.length);
  for (let start = 0; start < pixels.length; start += width) {
    let [sum, squares] = [0, 0];
    for (let i = start; i < start + width; i++) {
      sum += pixels[i];
      squares += pixels[i] * pixels[i];
    }
    const mean = sum / width;
    const norm = Math.sqrt(squares - sum * mean);
    const scale = norm > 0 ? 1 / norm : 0; // an even image is like no other
    for (let i = start; i < start + width; i++) out[i] = (pixels[i] - mean) * scale;
  }
  return out;
}

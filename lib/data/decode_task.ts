// Decoding as a task of its own, here or on a worker thread. What is wrong with an image is a result:
// the pair is skipped and the stream goes on.
import type { ImageReference, RowFailure } from '../corpus';
import { SiglipError, type SiglipErrorCode } from '../errors';
import { decodePixels } from '../image/decode';
import type { Pixels } from '../image/pixels';

// What is wrong with one image; anything else is wrong with the run.
const IMAGE_ERRORS: ReadonlySet<SiglipErrorCode> = new Set(['ERR_IMAGE', 'ERR_FILE', 'ERR_DATA']);

/** An image to decode. */
export interface DecodeTask {
  readonly image: ImageReference;
  /** Largest width · height. Default that of `decodeImage`. */
  readonly maxPixels: number | undefined;
}

/** Pixels nobody else holds, or why there are none. */
export async function decodeTask({ image, maxPixels }: DecodeTask): Promise<Pixels | RowFailure> {
  try {
    const input = 'path' in image ? image.path : image.bytes;
    const pixels = await decodePixels(input, maxPixels === undefined ? {} : { maxPixels });
    // The decoder's own memory cannot leave its thread.
    return { ...pixels, data: new Uint8Array(pixels.data) };
  } catch (error) {
    if (error instanceof SiglipError && IMAGE_ERRORS.has(error.code)) {
      return { code: error.code, reason: error.message };
    }
    throw error;
  }
}

/** The file to give to `WorkerPool` as `module` together with the handler `decodeTask`. */
export const decodeTaskModule = __filename;

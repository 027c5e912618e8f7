// A model as bulk work uses it.
import type { Siglip2 } from '../embed';
import { SiglipError } from '../errors';
import type { BulkModel } from './batches';

export interface BulkModelOptions {
  /** Bring embeddings to unit length. Default true. */
  readonly normalize?: boolean;
  /** Most patches of a NaFlex image. Default: what the checkpoint says. */
  readonly maxPatches?: number;
}

/** The model behind {@link BulkModel}; it stays the caller's to dispose. */
export function bulkModel(
  model: Siglip2,
  { normalize = true, maxPatches }: BulkModelOptions = {},
): BulkModel {
  const images = maxPatches === undefined ? {} : { maxPatches };
  return {
    width: model.config.embedding,
    async prepareImage(image) {
      try {
        return await model.prepareImage('path' in image ? image.path : image.bytes, images);
      } catch (error) {
        // The row is named by whoever reports it; a number in a list of one says nothing.
        if (error instanceof SiglipError && error.cause instanceof SiglipError) throw error.cause;
        throw error;
      }
    },
    embedImages: (prepared) =>
      model.embedImages(prepared, { ...images, normalize, batchSize: prepared.length }),
    embedTexts: (texts) => model.embedTexts(texts, { normalize, batchSize: texts.length }),
  };
}

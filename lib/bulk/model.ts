// A model as bulk work uses it.
import type { ImageReference, Source } from '../corpus';
import { needsOf } from '../corpus';
import type { Siglip2 } from '../embed';
import { expectBoolean, expectInteger } from '../embed/options';
import { SiglipError } from '../errors';
import type { ImageInput, RgbImage } from '../image';
import type { TowerChoice } from '../weights';
import type { BulkModel } from './batches';

export interface BulkModelOptions {
  /** Bring embeddings to unit length. Default true. */
  readonly normalize?: boolean;
  /** Most patches of a NaFlex image. Default: what the checkpoint says. */
  readonly maxPatches?: number;
}

/**
 * The model behind {@link BulkModel}; it stays the caller's to dispose.
 *
 * @throws SiglipError ERR_ARGUMENT for an option outside of its domain
 */
export function bulkModel(model: Siglip2, options: BulkModelOptions = {}): BulkModel {
  const who = 'embed';
  const normalize = expectBoolean(who, 'normalize', options.normalize, true);
  const { maxPatches } = options;
  if (maxPatches !== undefined) expectInteger(who, 'maxPatches', maxPatches, 1);
  const { stages } = model;
  return {
    width: model.config.embedding,
    async prepareImage(image) {
      stages.expectReady(who, 'vision');
      try {
        return await stages.prepareImage(who, inputOf(image), { maxPatches });
      } catch (error) {
        // The row is named by whoever reports it.
        if (error instanceof SiglipError && error.cause instanceof SiglipError) throw error.cause;
        throw error;
      }
    },
    async embedImages(images) {
      stages.expectReady(who, 'vision');
      return stages.embedImages(images, normalize);
    },
    async embedTexts(texts) {
      stages.expectReady(who, 'text');
      const ids = texts.map((text) => stages.prepareText(who, text));
      return stages.embedTexts(ids, normalize);
    },
  };
}

function inputOf(image: ImageReference | RgbImage): ImageInput {
  if ('path' in image) return image.path;
  return 'bytes' in image ? image.bytes : image;
}

/** The towers that sources need, for `Siglip2.load`. */
export function towersOf(sources: readonly Pick<Source, 'what'>[]): TowerChoice {
  const needs = sources.map(({ what }) => needsOf(what));
  if (!needs.some(({ text }) => text)) return 'vision';
  return needs.some(({ image }) => image) ? 'both' : 'text';
}

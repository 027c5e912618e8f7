// Vision tower: patches -> tokens + positions -> blocks -> final norm -> MAP head. No class token,
// no registers, no projection: the pooled token is the embedding before normalisation.
// Sources: big_vision models/vit.py and models/proj/image_text/naflex_vit.py.
import { SiglipError } from '../errors';
import type { Spec, Tensor } from '../graph';
import { describe, expectSpec, extent, float32, int32, scope, tap, uint8 } from '../graph';
import {
  addPositions,
  addPositionsOfSide,
  addResizedPositions,
  encoder,
  imagePatchEmbedding,
  mapHead,
  rowPatchEmbedding,
} from '../nn';
import type { AttentionScope } from '../ops';
import * as ops from '../ops';
import type { FixedVisionConfig, ModelConfig, NaflexVisionConfig } from './config';
import type { VisionParameters } from './parameters';

/** Input of a fixed-resolution tower. */
export interface ImageInput<Leaf> {
  /** (B, 3, S, S) float32, normalised to [−1, 1]. */
  readonly images: Leaf;
}

/** Input of a NaFlex tower: images of different grids, padded to one length L. */
export interface PatchInput<Leaf> {
  /** (B, L, P·P·3) float32 in [−1, 1], a patch flattened as (row, column, colour). */
  readonly patches: Leaf;
  /** (B, 2) int32, rows (gh, gw) with gh·gw ≤ L. */
  readonly shapes: Leaf;
  /** (B, L) uint8: 1 for the gh·gw real patches, 0 for padding. */
  readonly mask: Leaf;
}

/**
 * Input of a NaFlex tower without padding: the patches of one image after the other, so that nothing
 * is computed but real tokens. Rows behind the last image belong to none; they round the number of
 * rows T up, that few programs serve all batches, and must be finite.
 */
export interface PackedInput<Leaf> {
  /** (T, P·P·3) float32 in [−1, 1], a patch flattened as (row, column, colour). */
  readonly patches: Leaf;
  /** (B, 2) int32, rows (gh, gw). */
  readonly shapes: Leaf;
  /** (B + 1) int32: image b in rows [segments[b], segments[b + 1]), gh·gw of them. */
  readonly segments: Leaf;
}

/** Images of a fixed-resolution tower as bytes; see {@link normalizedInput}. */
export interface PixelInput<Leaf> {
  /** (B, S, S, 3) uint8. */
  readonly pixels: Leaf;
  /** (3, 256) float32: the value of each byte of each colour. */
  readonly table: Leaf;
}

/** What a vision tower takes: images where the config's `layout` is fixed, else either of the others. */
export type VisionInput<Leaf> = ImageInput<Leaf> | PatchInput<Leaf> | PackedInput<Leaf>;

/** What a vision tower gives. */
export interface VisionOutput {
  /** (B, N, D), packed (T, D), after the final norm: input of the MAP head, feature of dense tasks. */
  readonly tokens: Tensor;
  /** (B, D) output of the MAP head; absent where the tower is not pooled. */
  readonly pooled: Tensor | undefined;
  /** (B, D) `pooled` at unit length; absent where the tower is not pooled. */
  readonly embedding: Tensor | undefined;
}

export interface VisionTowerOptions {
  /** Recompute blocks in the backward instead of keeping their inside. Default false. */
  readonly checkpoint?: boolean | undefined;
  /** Replaces some embedded patches before positions are added; of a fixed-resolution tower. */
  readonly masked?: MaskedPatches | undefined;
  /**
   * Side of the images of a fixed-resolution tower in pixels, default that of the config. For another
   * one the positions are resized (bilinear, antialiased), as for the local views of self-distillation.
   */
  readonly imageSize?: number | undefined;
}

/** Which patches a vision tower does not see, and what it sees instead. */
export interface MaskedPatches {
  /** (B, N) uint8: not 0 where a patch is replaced. */
  readonly mask: Tensor;
  /** (D) */
  readonly maskToken: Tensor;
}

/** Added to the norm when an embedding is brought to unit length. */
export const EMBEDDING_EPS = 1e-8;

/**
 * Specs of a tower's input, for compile().
 *
 * @param batch - images
 * @param length - tokens L of a NaFlex batch; default: the cells of the position grid
 */
export function visionInputSpecs(
  { vision }: ModelConfig,
  batch: number,
  length = vision.positions,
): VisionInput<Spec> {
  const { patch } = vision;
  if (vision.layout === 'fixed') {
    return { images: float32(batch, 3, vision.imageSize, vision.imageSize) };
  }
  return {
    patches: float32(batch, length, patch * patch * 3),
    shapes: int32(batch, 2),
    mask: uint8(batch, length),
  };
}

/** Specs of a fixed-resolution tower's images as bytes. @throws ERR_CONFIG for another tower */
export function pixelInputSpecs({ vision }: ModelConfig, batch: number): PixelInput<Spec> {
  if (vision.layout !== 'fixed') {
    throw new SiglipError(
      'ERR_CONFIG',
      `pixelInputSpecs: vision.layout must be fixed, got ${vision.layout}`,
    );
  }
  const { imageSize } = vision;
  return { pixels: uint8(batch, imageSize, imageSize, 3), table: float32(3, 256) };
}

/** Records the normalisation of images that come as bytes. */
export function normalizedInput(
  input: PixelInput<Tensor> | VisionInput<Tensor>,
): VisionInput<Tensor> {
  return 'pixels' in input ? { images: ops.normalizePixels(input.pixels, input.table) } : input;
}

/**
 * Specs of a packed NaFlex batch.
 *
 * @param batch - images
 * @param rows - T, the patches of all images and what rounds them up; see packedRows
 */
export function packedInputSpecs(
  { vision: { patch } }: ModelConfig,
  batch: number,
  rows: number,
): PackedInput<Spec> {
  return {
    patches: float32(rows, patch * patch * 3),
    shapes: int32(batch, 2),
    segments: int32(batch + 1),
  };
}

/**
 * The number of rows to pack so many patches into: programs are compiled per shape, and steps of a
 * sixteenth (of 64 at most) keep them few for about 2 % more rows, below 1 % in large batches.
 */
export function packedRows(patches: number): number {
  const step = Math.min(64, Math.max(8, 2 ** (Math.floor(Math.log2(patches)) - 4)));
  return Math.ceil(patches / step) * step;
}

/**
 * Records a vision tower under the scope `vision`.
 *
 * Taps: `patchEmbedding` (before positions), `embedded`, `blocks.{i}.attention`,
 * `blocks.{i}.attentionResidual`, `blocks.{i}.mlp`, `blocks.{i}.output`, `tokens`, `pooled`,
 * `embedding`. A trace with two vision towers puts each into a scope of its own.
 *
 * @throws ERR_SHAPE, ERR_DTYPE when the input does not fit the config.
 */
export function visionTower(
  parameters: VisionParameters<Tensor>,
  config: ModelConfig,
  input: VisionInput<Tensor>,
  options: VisionTowerOptions = {},
): VisionOutput {
  const { vision, layerNormEps: eps } = config;
  return scope('vision', () => {
    const { embedded, ...sequences } =
      vision.layout === 'fixed'
        ? embedImages(parameters, vision, input, options)
        : embedPatches(parameters, vision, input, options);
    const tokens = tap(
      'tokens',
      encoder(tap('embedded', embedded), parameters, {
        heads: vision.heads,
        eps,
        ...sequences,
        checkpoint: options.checkpoint,
      }),
    );
    const { head } = parameters;
    if (head === undefined) return { tokens, pooled: undefined, embedding: undefined };
    const pooled = tap(
      'pooled',
      scope('head', () => mapHead(tokens, head, { heads: vision.heads, eps, ...sequences })),
    );
    const embedding = tap('embedding', ops.l2Normalize(pooled, { eps: EMBEDDING_EPS }));
    return { tokens, pooled, embedding };
  });
}

interface Embedded extends AttentionScope {
  /** (B, N, D), packed (T, D) */
  readonly embedded: Tensor;
}

function embedImages(
  parameters: VisionParameters<Tensor>,
  config: FixedVisionConfig,
  input: VisionInput<Tensor>,
  { imageSize = config.imageSize, masked }: VisionTowerOptions,
): Embedded {
  const { patch } = config;
  if (!('images' in input)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      'visionTower: input must be { images } for a fixed-resolution tower, got NaFlex patches',
    );
  }
  const { images } = input;
  const expected = float32(images.shape[0] ?? 1, 3, imageSize, imageSize);
  expectSpec('visionTower', 'images', images, expected);
  const patches = tap(
    'patchEmbedding',
    imagePatchEmbedding(images, patch, parameters.patchEmbedding),
  );
  const tokens =
    masked === undefined ? patches : ops.maskTokens(patches, masked.mask, masked.maskToken);
  const { positions } = parameters;
  const embedded =
    imageSize === config.imageSize
      ? addPositions(tokens, positions)
      : addPositionsOfSide(tokens, positions, Math.floor(imageSize / patch));
  return { embedded };
}

function embedPatches(
  parameters: VisionParameters<Tensor>,
  { patch }: NaflexVisionConfig,
  input: VisionInput<Tensor>,
  { masked, imageSize }: VisionTowerOptions,
): Embedded {
  if (masked !== undefined || imageSize !== undefined) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      'visionTower: masked and imageSize must be left out for a NaFlex tower, got one of them',
    );
  }
  if (!('patches' in input)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      'visionTower: input must be { patches, shapes, mask } or { patches, shapes, segments } for a NaFlex tower, got images',
    );
  }
  const { patches, shapes } = input;
  const packed = 'segments' in input;
  const rank = packed ? 2 : 3;
  if (patches.shape.length !== rank) {
    throw new SiglipError(
      'ERR_SHAPE',
      `visionTower: patches must have shape ${packed ? '(T, P·P·3)' : '(B, L, P·P·3)'}, got ${describe(patches)}`,
    );
  }
  const lead = patches.shape.slice(0, -1);
  expectSpec('visionTower', 'patches', patches, float32(...lead, patch * patch * 3));
  const batch = packed ? extent(shapes, 0) : extent(patches, 0);
  expectSpec('visionTower', 'shapes', shapes, int32(batch, 2));
  if (packed) expectSpec('visionTower', 'segments', input.segments, int32(batch + 1));
  else expectSpec('visionTower', 'mask', input.mask, uint8(...lead));
  const tokens = tap('patchEmbedding', rowPatchEmbedding(patches, parameters.patchEmbedding));
  const { positions } = parameters;
  return packed
    ? {
        embedded: addResizedPositions(tokens, positions, shapes, input.segments),
        segments: input.segments,
      }
    : { embedded: addResizedPositions(tokens, positions, shapes), keyMask: input.mask };
}

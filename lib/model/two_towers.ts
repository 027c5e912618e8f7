// The two towers side by side. They share nothing but the dimension of their embeddings; the logits
// of a pair are exp(t) · ⟨image, text⟩ + b.
// Source: big_vision models/proj/image_text/two_towers.py.
import { SiglipError } from '../errors';
import type { Spec, Tensor } from '../graph';
import { extent } from '../graph';
import type { ModelConfig } from './config';
import type { TwoTowersParameters } from './parameters';
import type { TextOutput, TextTowerOptions } from './text_tower';
import { textInputSpec, textTower } from './text_tower';
import type { VisionInput, VisionOutput } from './vision_tower';
import { visionInputSpecs, visionTower } from './vision_tower';

/** A batch of image-text pairs: row i of the one belongs to row i of the other. */
export interface TwoTowersInput<Leaf> {
  readonly vision: VisionInput<Leaf>;
  /** (B, T) int32 */
  readonly ids: Leaf;
}

/** Outputs of both towers; the vision tower is pooled. */
export interface TwoTowersOutput {
  readonly vision: VisionOutput & { readonly pooled: Tensor; readonly embedding: Tensor };
  readonly text: TextOutput;
}

/** Specs of a batch, for compile(); see visionInputSpecs. */
export function twoTowersInputSpecs(
  config: ModelConfig,
  batch: number,
  length?: number,
): TwoTowersInput<Spec> {
  return {
    vision: visionInputSpecs(config, batch, length),
    ids: textInputSpec(config, batch),
  };
}

/**
 * Records both towers, under the scopes `vision` and `text`.
 *
 * @throws ERR_CONFIG when the vision tower has no head; ERR_SHAPE, ERR_DTYPE for a wrong batch.
 */
export function twoTowers(
  parameters: TwoTowersParameters<Tensor>,
  config: ModelConfig,
  input: TwoTowersInput<Tensor>,
  options: TextTowerOptions = {},
): TwoTowersOutput {
  // Texts first: over ranks they travel while the larger tower runs.
  const text = textTower(parameters.text, config, input.ids, options);
  const vision = visionTower(parameters.vision, config, input.vision, options);
  const { pooled, embedding } = vision;
  if (pooled === undefined || embedding === undefined) {
    throw new SiglipError(
      'ERR_CONFIG',
      `twoTowers: vision.pool must be map, got ${config.vision.pool}: a tower without a head gives no embedding`,
    );
  }
  const [images, texts] = [extent(embedding, 0), extent(text.embedding, 0)];
  if (images !== texts) {
    throw new SiglipError(
      'ERR_SHAPE',
      `twoTowers: ids must have ${String(images)} rows, one per image, got ${String(texts)}`,
    );
  }
  return { vision: { ...vision, pooled, embedding }, text };
}

// The shape of a model: everything that is fixed before the first weight exists.
import { SiglipError } from '../errors';

/** Sizes of a transformer tower. */
export interface TowerConfig {
  /** Model dimension D. */
  readonly width: number;
  /** Number of blocks. */
  readonly depth: number;
  /** Hidden width M of the MLPs; 4 · width but in So400m. */
  readonly mlpWidth: number;
  /** Attention heads; divides the width. */
  readonly heads: number;
}

interface PatchTowerConfig extends TowerConfig {
  /** Patch size P in pixels. */
  readonly patch: number;
  /** Cells of the learned position grid. */
  readonly positions: number;
  /** `'map'`: attention pooling gives the embedding; `'none'`: tokens only, no head. */
  readonly pool: 'map' | 'none';
}

/** Vision tower for square images of one size; `positions` is ⌊imageSize/patch⌋². */
export interface FixedVisionConfig extends PatchTowerConfig {
  readonly layout: 'fixed';
  /** Side of the image in pixels; what is beyond the last whole patch is not seen. */
  readonly imageSize: number;
}

/** Vision tower for any grid of patches; `positions` is the square grid that is resized to it. */
export interface NaflexVisionConfig extends PatchTowerConfig {
  readonly layout: 'naflex';
}

export type VisionConfig = FixedVisionConfig | NaflexVisionConfig;

export interface TextConfig extends TowerConfig {
  /** Number of token ids. */
  readonly vocabulary: number;
  /** Tokens in every text, padding included: padding is part of the model. */
  readonly length: number;
  /** Which vector of the sequence goes to the head. The released checkpoints use `'last'`. */
  readonly pool: 'last' | 'map' | 'first' | 'mean';
}

/** A SigLIP 2 model. */
export interface ModelConfig {
  readonly vision: VisionConfig;
  readonly text: TextConfig;
  /** Dimension of the common space: the vision width, since nothing projects the MAP output. */
  readonly embedding: number;
  /** Added to the variance in every layer norm; 1e-6 in the released checkpoints. */
  readonly layerNormEps: number;
}

/** Side of the position grid of a vision tower, in cells. */
export function gridSide(vision: VisionConfig): number {
  return vision.layout === 'fixed'
    ? Math.floor(vision.imageSize / vision.patch)
    : Math.sqrt(vision.positions);
}

/**
 * Returns the config if it describes a model that can be built.
 *
 * @throws ERR_CONFIG naming the field, what it must be and what it is.
 */
export function checkConfig(config: ModelConfig): ModelConfig {
  const { vision, text, embedding, layerNormEps } = config;
  checkTower('vision', vision);
  checkTower('text', text);
  checkPositive('vision.patch', vision.patch);
  checkPositive('text.vocabulary', text.vocabulary);
  checkPositive('text.length', text.length);
  checkPositive('embedding', embedding);
  checkMember('vision.layout', vision.layout, ['fixed', 'naflex']);
  checkMember('vision.pool', vision.pool, ['map', 'none']);
  checkMember('text.pool', text.pool, ['last', 'map', 'first', 'mean']);
  if (vision.layout === 'fixed') {
    checkPositive('vision.imageSize', vision.imageSize);
    if (vision.imageSize < vision.patch) {
      refuse(
        'vision.imageSize',
        `at least the patch size ${String(vision.patch)}`,
        vision.imageSize,
      );
    }
    const side = gridSide(vision);
    if (vision.positions !== side * side) {
      const grid = `${String(side)} × ${String(side)} = ${String(side * side)}`;
      refuse('vision.positions', `the number of patches, ${grid}`, vision.positions);
    }
  } else {
    checkPositive('vision.positions', vision.positions);
    if (!Number.isInteger(gridSide(vision))) {
      refuse('vision.positions', 'the square of a grid side', vision.positions);
    }
  }
  if (embedding !== vision.width) {
    refuse(
      'embedding',
      `the vision width ${String(vision.width)} (the vision tower has no projection)`,
      embedding,
    );
  }
  if (!(layerNormEps > 0 && layerNormEps < 1)) {
    refuse('layerNormEps', 'a number between 0 and 1', layerNormEps);
  }
  return config;
}

function checkTower(name: string, tower: TowerConfig): void {
  checkPositive(`${name}.width`, tower.width);
  checkPositive(`${name}.depth`, tower.depth);
  checkPositive(`${name}.mlpWidth`, tower.mlpWidth);
  checkPositive(`${name}.heads`, tower.heads);
  if (tower.width % tower.heads !== 0) {
    refuse(`${name}.heads`, `a divisor of the width ${String(tower.width)}`, tower.heads);
  }
}

function checkPositive(field: string, value: number): void {
  if (!Number.isSafeInteger(value) || value < 1) refuse(field, 'a positive integer', value);
}

function checkMember(field: string, value: string, allowed: readonly string[]): void {
  if (!allowed.includes(value)) refuse(field, `one of ${allowed.join(', ')}`, value);
}

function refuse(field: string, expected: string, actual: unknown): never {
  throw new SiglipError(
    'ERR_CONFIG',
    `model config: ${field} must be ${expected}, got ${String(actual)}`,
  );
}

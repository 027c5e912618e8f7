import { initialize, type ModelConfig, type TwoTowersParameters } from '../../lib/model';

/** A model of a few thousand parameters, towers of different sizes. */
export function smallConfig(layout: 'fixed' | 'naflex', pool: 'map' | 'none' = 'map'): ModelConfig {
  const tower = { width: 12, depth: 2, mlpWidth: 20, heads: 3, patch: 4, positions: 9, pool };
  return {
    vision: layout === 'fixed' ? { ...tower, layout, imageSize: 14 } : { ...tower, layout },
    text: { width: 8, depth: 1, mlpWidth: 10, heads: 2, vocabulary: 17, length: 5, pool: 'last' },
    embedding: 12,
    layerNormEps: 1e-6,
  };
}

export function smallParameters(config: ModelConfig): TwoTowersParameters<Float32Array> {
  return initialize(config, 7);
}

// Tiny configs and parameters for the tests of layers and towers.
import type { ModelConfig } from '../../lib/model';
import { checkConfig } from '../../lib/model';

const tower = { width: 24, depth: 2, mlpWidth: 40, heads: 3 };

/** 3 × 3 patches of 4 pixels; the last pixel of a side is not seen. */
export const fixedConfig: ModelConfig = checkConfig({
  vision: { ...tower, layout: 'fixed', patch: 4, imageSize: 13, positions: 9, pool: 'map' },
  text: { ...tower, width: 16, heads: 2, vocabulary: 31, length: 6, pool: 'last' },
  embedding: 24,
  layerNormEps: 1e-6,
});

/** The same towers for NaFlex patches, grid 3 × 3. */
export const naflexConfig: ModelConfig = checkConfig({
  ...fixedConfig,
  vision: { ...tower, layout: 'naflex', patch: 4, positions: 9, pool: 'map' },
});

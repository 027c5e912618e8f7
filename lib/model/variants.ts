// The table of sizes: big_vision models/vit.py (decode_variant) and README_siglip2.md. The paper's
// "g" is big_vision's g-opt (width 1536), with So400m's text tower.
import { SiglipError } from '../errors';
import type { ModelConfig, TextConfig, TowerConfig } from './config';
import { checkConfig } from './config';

type Size = 'mu' | 'Ti' | 'S' | 'M' | 'B' | 'L' | 'So400m' | 'H' | 'g-opt';

/** A size and its patch in pixels: `B/16`, `So400m/14`, `g-opt/16`. */
export type VariantName = `${Size}/${number}`;

function tower(width: number, depth: number, mlpWidth: number, heads: number): TowerConfig {
  return { width, depth, mlpWidth, heads };
}

const so400m = tower(1152, 27, 4304, 16);

/** Vision and text tower of every size; the second is absent where both are alike. */
const sizes: Readonly<Record<Size, readonly [TowerConfig, TowerConfig?]>> = {
  mu: [tower(32, 1, 128, 2)],
  Ti: [tower(192, 12, 768, 3)],
  S: [tower(384, 12, 1536, 6)],
  M: [tower(512, 12, 2048, 8)],
  B: [tower(768, 12, 3072, 12)],
  L: [tower(1024, 24, 4096, 16)],
  So400m: [so400m],
  H: [tower(1280, 32, 5120, 16)],
  'g-opt': [tower(1536, 40, 6144, 16), so400m],
};

/** Token ids of the Gemma vocabulary. */
export const VOCABULARY = 256000;

/** Tokens of every text in SigLIP 2. */
export const TEXT_LENGTH = 64;

/** Side of the position grid of a NaFlex tower. */
export const NAFLEX_GRID = 16;

export interface VariantOptions {
  /** `'fixed'` (default): square images of `imageSize`; `'naflex'`: any grid of patches. */
  readonly layout?: 'fixed' | 'naflex';
  /** Pixels, fixed layout only. Default: 16 patches a side (B/32: 8, the released 256 px). */
  readonly imageSize?: number;
  /** Default 256,000. */
  readonly vocabulary?: number;
  /** Tokens per text, default 64. */
  readonly length?: number;
  /** Default `'map'`. */
  readonly visionPool?: 'map' | 'none';
  /** Default `'last'`. */
  readonly textPool?: TextConfig['pool'];
}

/**
 * The config of a named size.
 *
 * @throws ERR_CONFIG for an unknown name or options that do not fit it.
 * @example
 * variant('B/16', { imageSize: 224 });
 * variant('So400m/16', { layout: 'naflex' });
 */
export function variant(name: VariantName, options: VariantOptions = {}): ModelConfig {
  const [, size = '', digits = ''] = /^(.+)\/([1-9]\d*)$/.exec(name) ?? [];
  if (!isSize(size)) {
    throw new SiglipError(
      'ERR_CONFIG',
      `variant: name must be <size>/<patch> with a size of ${Object.keys(sizes).join(', ')}, got ${name}`,
    );
  }
  const [visionTower, textTower = visionTower] = sizes[size];
  const patch = Number(digits);
  const { layout = 'fixed', visionPool: pool = 'map' } = options;
  const { imageSize = patch * (patch === 32 ? 8 : 16) } = options;
  if (layout === 'naflex' && options.imageSize !== undefined) {
    throw new SiglipError(
      'ERR_CONFIG',
      `variant: imageSize must be absent in the naflex layout, got ${String(options.imageSize)}`,
    );
  }
  return checkConfig({
    vision:
      layout === 'naflex'
        ? { ...visionTower, layout, patch, positions: NAFLEX_GRID ** 2, pool }
        : {
            ...visionTower,
            layout,
            patch,
            imageSize,
            positions: Math.floor(imageSize / patch) ** 2,
            pool,
          },
    text: {
      ...textTower,
      vocabulary: options.vocabulary ?? VOCABULARY,
      length: options.length ?? TEXT_LENGTH,
      pool: options.textPool ?? 'last',
    },
    embedding: visionTower.width,
    layerNormEps: 1e-6,
  });
}

function isSize(name: string): name is Size {
  return Object.hasOwn(sizes, name);
}

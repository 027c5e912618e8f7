// A release with its own names and ranks of tensors, but small.
import type { ModelConfig, Release, TowerConfig } from '../../lib/model';
import { gridSide, releaseConfig } from '../../lib/model';

// The depth makes the names and the number of heads is no extent; everything else is small. So400m
// keeps a head width that is no power of two and an MLP that is no multiple of the width.
function shrunken(tower: TowerConfig): TowerConfig {
  const headWidth = tower.width / tower.heads === 64 ? 2 : 3;
  const width = headWidth * tower.heads;
  return {
    width,
    depth: tower.depth,
    heads: tower.heads,
    mlpWidth: tower.mlpWidth === 4 * tower.width ? 2 * width : 2 * width - 5,
  };
}

/** The config of a release made small, with so many token ids. */
export function shrunkenConfig(release: Release, vocabulary: number): ModelConfig {
  const { vision, text, ...rest } = releaseConfig(release);
  const small = shrunken(vision);
  const patch = vision.patch / 2;
  const side = Math.max(2, Math.floor(gridSide(vision) / 6));
  const shared = { ...small, patch, positions: side * side, pool: vision.pool };
  return {
    ...rest,
    vision:
      vision.layout === 'naflex'
        ? { ...shared, layout: 'naflex' }
        : {
            ...shared,
            layout: 'fixed',
            // 384 pixels in patches of 14: the last few are not seen.
            imageSize: side * patch + (vision.imageSize % vision.patch),
          },
    text: { ...text, ...shrunken(text), vocabulary, length: text.length / 4 },
    embedding: small.width,
  };
}

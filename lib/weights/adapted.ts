// Parameters that are read from a file and adapted, one at a time.
import { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { ConstantSource } from '../graph';
import { mapTree } from '../graph';
import type { Adaptation, ModelConfig } from '../model';
import { adaptModel, parameterTable } from '../model';

/** The sources of the adapted model; those that do not change are the old ones. */
export function adaptedSources<Tree>(tree: Tree, adaptation: Adaptation): Tree {
  const shapes = new Map(parameterTable(adaptation.config).map(({ path, shape }) => [path, shape]));
  return mapTree<Tree, ConstantSource, ConstantSource>(tree, (source, path) => {
    const shape = shapes.get(path);
    if (!adaptation.changes(path) || shape === undefined) return source;
    return {
      dtype: 'float32',
      shape,
      open: async (signal) => {
        const old = await source.open(signal);
        try {
          const values = (await old.read()) as Float32Array;
          return DeviceArray.from(adaptation.adapt(path, values), shape);
        } finally {
          old.dispose();
        }
      },
    };
  }) as Tree;
}

/**
 * A fixed-resolution model for square images of another size, its positions resized as
 * `interpolate_pos_encoding` of transformers does.
 *
 * @throws SiglipError ERR_ARGUMENT for a NaFlex model, which takes any size as it is, or a size that
 * is no number of pixels of at least one patch
 */
export function imageSizeAdaptation(config: ModelConfig, imageSize: number): Adaptation {
  const { vision } = config;
  if (vision.layout === 'naflex') {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `load: imageSize must be absent for a NaFlex model, got ${String(imageSize)}\n` +
        'to do: choose the number of patches with maxPatches when embedding.',
    );
  }
  if (!Number.isSafeInteger(imageSize) || imageSize < vision.patch || imageSize > MAX_SIZE) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `load: imageSize must be an integer from ${String(vision.patch)} (one patch) to ${String(MAX_SIZE)}, ` +
        `got ${String(imageSize)}`,
    );
  }
  return adaptModel(config, { imageSize }, { positions: 'cubic' });
}

// Far more than attention over all patches can bear.
const MAX_SIZE = 1 << 14;

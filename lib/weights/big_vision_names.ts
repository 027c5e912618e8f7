// Names and layouts of big_vision's two-tower checkpoints, derived from our parameter table. Flax
// kernels are input-major and keep heads as an axis of their own, so a stored array becomes ours by a
// permutation of axes and a reshape.
import type { ModelConfig, ParameterSpec, TowerConfig } from '../model';
import { parameterTable } from '../model';

/** Where and how big_vision stores a parameter. */
export interface BigVisionTensor {
  readonly parameter: ParameterSpec;
  /** Without `params/`: `img/Transformer/encoderblock_0/LayerNorm_0/scale`. */
  readonly name: string;
  readonly shape: readonly number[];
  /** Stored axes in the order in which ours run; the identity where nothing is transposed. */
  readonly axes: readonly number[];
  /**
   * Set for a parameter of a block: where it lies in the layout in which blocks are stacked along a
   * leading axis (`img/Transformer/encoderblock/LayerNorm_0/scale`).
   */
  readonly stacked:
    { readonly name: string; readonly layer: number; readonly depth: number } | undefined;
}

const RULES: readonly (readonly [RegExp, string])[] = [
  [/^logitScale$/u, 't'],
  [/^logitBias$/u, 'b'],
  [/^vision\.patchEmbedding\.weight$/u, 'img/embedding/kernel'],
  [/^vision\.patchEmbedding\.bias$/u, 'img/embedding/bias'],
  [/^vision\.positions$/u, 'img/pos_embedding'],
  [/^vision\.blocks\.(\d+)\./u, 'img/Transformer/encoderblock_$1/'],
  [/^vision\.norm\./u, 'img/Transformer/encoder_norm/'],
  [/^vision\.head\./u, 'img/MAPHead_0/'],
  [/^text\.tokens$/u, 'txt/Embed_0/embedding'],
  [/^text\.positions$/u, 'txt/pos_embedding'],
  [/^text\.blocks\.(\d+)\./u, 'txt/Encoder_0/encoderblock_$1/'],
  [/^text\.norm\./u, 'txt/Encoder_0/encoder_norm/'],
  [/^text\.pool\./u, 'txt/MAPHead_0/'],
  [/^text\.head\./u, 'txt/head/'],
  [/\/norm1\./u, '/LayerNorm_0/'],
  [/\/norm2\./u, '/LayerNorm_1/'],
  [/MAPHead_0\/norm\./u, 'MAPHead_0/LayerNorm_0/'],
  [/\/attention\.(query|key|value|out)\./u, '/MultiHeadDotProductAttention_0/$1/'],
  [/\/mlp\.fc1\./u, '/MlpBlock_0/Dense_0/'],
  [/\/mlp\.fc2\./u, '/MlpBlock_0/Dense_1/'],
  [/((?:LayerNorm_\d|encoder_norm)\/)weight$/u, '$1scale'],
  [/\/weight$/u, '/kernel'],
];

/** `vision.norm.weight` → `img/Transformer/encoder_norm/scale`. */
export function bigVisionName(path: string): string {
  return RULES.reduce((name, [pattern, replacement]) => name.replace(pattern, replacement), path);
}

/** Every parameter of a model as big_vision stores it, in the order of our parameter tree. */
export function bigVisionTensors(config: ModelConfig): readonly BigVisionTensor[] {
  return parameterTable(config).map((parameter) => {
    const name = bigVisionName(parameter.path);
    const layer = /\/encoderblock_(\d+)\//u.exec(name)?.[1];
    const { depth } = towerOf(parameter.path, config);
    return {
      parameter,
      name,
      ...storedAs(parameter, config),
      stacked:
        layer === undefined
          ? undefined
          : {
              name: name.replace(`encoderblock_${layer}`, 'encoderblock'),
              layer: Number(layer),
              depth,
            },
    };
  });
}

function towerOf(path: string, { vision, text }: ModelConfig): TowerConfig {
  return path.startsWith('vision.') ? vision : text;
}

interface Stored {
  readonly shape: readonly number[];
  readonly axes: readonly number[];
}

function storedAs({ path, shape }: ParameterSpec, config: ModelConfig): Stored {
  const { vision } = config;
  const { width, heads } = towerOf(path, config);
  const headWidth = width / heads;
  if (path === 'vision.patchEmbedding.weight' && vision.layout === 'fixed') {
    return { shape: [vision.patch, vision.patch, 3, width], axes: [3, 2, 0, 1] };
  }
  if (path === 'vision.positions' && vision.layout === 'naflex') {
    const side = Math.sqrt(vision.positions);
    return inOrder([side, side, width]);
  }
  if (path.endsWith('.positions') || path.endsWith('.probe')) return inOrder([1, ...shape]);
  if (/\.attention\.(?:query|key|value)\.weight$/u.test(path)) {
    return { shape: [width, heads, headWidth], axes: [1, 2, 0] };
  }
  if (/\.attention\.(?:query|key|value)\.bias$/u.test(path)) return inOrder([heads, headWidth]);
  if (path.endsWith('.attention.out.weight')) {
    return { shape: [heads, headWidth, width], axes: [2, 0, 1] };
  }
  const isKernel = shape.length === 2 && path.endsWith('.weight');
  return isKernel ? { shape: [shape[1], shape[0]], axes: [1, 0] } : inOrder(shape);
}

function inOrder(shape: readonly number[]): Stored {
  return { shape, axes: shape.map((_, axis) => axis) };
}

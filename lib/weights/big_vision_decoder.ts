// Names and layouts of the decoder of big_vision's CapPa (models/proj/cappa/cappa.py), and of checkpoints in
// which its blocks are stacked: there the layer axis is axis 1 of every array.
import { SiglipError } from '../errors';
import type { DecoderConfig, DecoderParameters, ParameterSpec } from '../model';
import { decoderParameters, decoderTable } from '../model';
import { elementsOf } from '../native/spec';
import type { HostTensor } from './big_vision';
import { permute } from './big_vision';

/** Where and how big_vision stores a parameter of a decoder. */
export interface BigVisionDecoderTensor {
  readonly parameter: ParameterSpec;
  /** Without `params/`: `decoder/EncDecBlock0/SelfAttn/query/kernel`. */
  readonly name: string;
  readonly shape: readonly number[];
  /** Stored axes in the order in which ours run. */
  readonly axes: readonly number[];
}

const RULES: readonly (readonly [RegExp, string])[] = [
  [/^decoder\.tokens$/u, 'decoder/EmbedTargets/embedding'],
  [/^decoder\.positions$/u, 'pos_embedding_decoder'],
  [/^decoder\.blocks\.(\d+)\./u, 'decoder/EncDecBlock$1/'],
  [/^decoder\.norm\./u, 'decoder/LayerNorm/'],
  [/^decoder\.head\./u, 'decoder/LogitsDense/'],
  [/\/norm(\d)\./u, '/LayerNorm$1/'],
  [/\/selfAttention\.(query|key|value|out)\./u, '/SelfAttn/$1/'],
  [/\/crossAttention\.(query|key|value|out)\./u, '/CrossAttn/$1/'],
  [/\/mlp\.fc1\./u, '/MLP/Dense_0/'],
  [/\/mlp\.fc2\./u, '/MLP/Dense_1/'],
  [/(LayerNorm\d?\/)weight$/u, '$1scale'],
  [/\/weight$/u, '/kernel'],
];

/** `decoder.blocks.0.norm1.weight` → `decoder/EncDecBlock0/LayerNorm1/scale`. */
export function bigVisionDecoderName(path: string): string {
  return RULES.reduce((name, [pattern, replacement]) => name.replace(pattern, replacement), path);
}

/** Every parameter of a decoder as big_vision stores it, in the order of our parameter tree. */
export function bigVisionDecoderTensors(config: DecoderConfig): readonly BigVisionDecoderTensor[] {
  return decoderTable(config).map((parameter) => ({
    parameter,
    name: bigVisionDecoderName(parameter.path),
    ...storedAs(parameter, config),
  }));
}

function storedAs(
  { path, shape }: ParameterSpec,
  { width, heads }: DecoderConfig,
): Pick<BigVisionDecoderTensor, 'shape' | 'axes'> {
  const headWidth = width / heads;
  if (path.endsWith('.positions')) return inOrder([1, ...shape]);
  if (/Attention\.(?:query|key|value)\.weight$/u.test(path)) {
    return { shape: [shape[1], heads, headWidth], axes: [1, 2, 0] };
  }
  if (/Attention\.(?:query|key|value)\.bias$/u.test(path)) return inOrder([heads, headWidth]);
  if (path.endsWith('Attention.out.weight')) {
    return { shape: [heads, headWidth, width], axes: [2, 0, 1] };
  }
  const isKernel = shape.length === 2 && path.endsWith('.weight');
  return isKernel ? { shape: [shape[1], shape[0]], axes: [1, 0] } : inOrder(shape);
}

function inOrder(shape: readonly number[]): Pick<BigVisionDecoderTensor, 'shape' | 'axes'> {
  return { shape, axes: shape.map((_, axis) => axis) };
}

/**
 * A decoder from arrays under big_vision's names, blocks apart.
 *
 * @throws ERR_WEIGHTS when an array is missing or has another shape.
 */
export function decoderFromBigVision(
  config: DecoderConfig,
  tensors: ReadonlyMap<string, HostTensor>,
): DecoderParameters<Float32Array> {
  const stored = new Map(
    bigVisionDecoderTensors(config).map((tensor) => [tensor.parameter.path, tensor]),
  );
  return decoderParameters(config, ({ path }) => {
    const { name, shape, axes } = stored.get(path) ?? { name: path, shape: [], axes: [] };
    const tensor = tensors.get(name);
    if (tensor?.data.length !== elementsOf(shape)) {
      throw new SiglipError(
        'ERR_WEIGHTS',
        `decoderFromBigVision: ${name} must have shape [${shape.join(', ')}], got [${tensor?.shape.join(', ') ?? ''}]`,
      );
    }
    return permute(tensor.data, shape, axes);
  });
}

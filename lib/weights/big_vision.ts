// Checkpoints of big_vision, the JAX code SigLIP 2 was trained with: `.npz` archives.
import { SiglipError } from '../errors';
import { flatten } from '../graph';
import type { ModelConfig, TwoTowersParameters, VisionConfig } from '../model';
import { checkConfig, twoTowersParameters } from '../model';
import { elementsOf } from '../native/spec';
import type { BigVisionTensor } from './big_vision_names';
import { bigVisionTensors } from './big_vision_names';
import { openNpz } from './npz';
import type { Weights } from './weights';
import { tensorOf } from './weights';

/** A model in host memory, to be saved or brought to a device. */
export interface HostModel {
  readonly config: ModelConfig;
  readonly parameters: TwoTowersParameters<Float32Array>;
}

export interface LoadBigVisionOptions {
  /**
   * Side of the image of a fixed-resolution model. The file does not say; default: as many whole
   * patches as there are positions. Patch 14 at 384 pixels, where six are left over, needs it.
   */
  readonly imageSize?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A tensor in big_vision's layout. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/**
 * Loads a two-tower checkpoint of big_vision, with blocks apart or stacked. The config follows from
 * the shapes.
 *
 * @throws SiglipError ERR_WEIGHTS, ERR_CONFIG, ERR_FILE, ERR_ABORTED
 */
export async function loadBigVision(
  path: string,
  options: LoadBigVisionOptions = {},
): Promise<HostModel> {
  const weights = openNpz(path);
  try {
    return await readBigVision(weights, options);
  } finally {
    weights.dispose();
  }
}

/** {@link loadBigVision} from any container; names with or without `params/` in front. */
export async function readBigVision(
  weights: Weights,
  options: LoadBigVisionOptions = {},
): Promise<HostModel> {
  const model = new BigVisionFile(weights);
  const config = model.config(options.imageSize);
  return { config, parameters: await model.parameters(config, options.signal) };
}

class BigVisionFile {
  private readonly prefix: string;

  constructor(private readonly weights: Weights) {
    const names = [...weights.tensors.keys()];
    this.prefix = names.some((name) => name.startsWith('params/')) ? 'params/' : '';
  }

  config(imageSize: number | undefined): ModelConfig {
    const query = (block: string): readonly number[] =>
      this.shape(`${block}/MultiHeadDotProductAttention_0/query/kernel`, 3);
    const tower = (
      encoder: string,
    ): { width: number; depth: number; mlpWidth: number; heads: number } => {
      const depth = this.depth(encoder);
      const stacked = this.has(`${encoder}/encoderblock/LayerNorm_0/scale`);
      const block = `${encoder}/encoderblock${stacked ? '' : '_0'}`;
      const [width, heads] = stacked
        ? this.shape(`${block}/MultiHeadDotProductAttention_0/query/kernel`, 4).slice(1)
        : query(block);
      const mlpWidth = this.shape(`${block}/MlpBlock_0/Dense_0/bias`, stacked ? 2 : 1).at(-1) ?? 0;
      return { width, depth, mlpWidth, heads };
    };
    const [vocabulary] = this.shape('txt/Embed_0/embedding', 2);
    const [, length] = this.shape('txt/pos_embedding', 3);
    const [, embedding] = this.shape('txt/head/kernel', 2);
    return checkConfig({
      vision: {
        ...tower('img/Transformer'),
        ...this.patches(imageSize),
        pool: this.has('img/MAPHead_0/probe') ? 'map' : 'none',
      },
      text: {
        ...tower('txt/Encoder_0'),
        vocabulary,
        length,
        pool: this.has('txt/MAPHead_0/probe') ? 'map' : 'last',
      },
      embedding,
      layerNormEps: 1e-6,
    });
  }

  async parameters(
    config: ModelConfig,
    signal: AbortSignal | undefined,
  ): Promise<TwoTowersParameters<Float32Array>> {
    const tensors = bigVisionTensors(config);
    this.expectNames(tensors);
    const loaded = new Map<string, Float32Array>();
    for (const tensor of tensors) {
      const values = await this.read(tensor, signal);
      loaded.set(tensor.parameter.path, permute(values, tensor.shape, tensor.axes));
    }
    return twoTowersParameters(config, ({ path }) => loaded.get(path) ?? new Float32Array());
  }

  private async read(
    tensor: BigVisionTensor,
    signal: AbortSignal | undefined,
  ): Promise<Float32Array> {
    const { name, shape, stacked } = tensor;
    const whole = stacked !== undefined && this.has(stacked.name);
    const stored = this.prefix + (whole ? stacked.name : name);
    this.expectShape(stored, whole ? [stacked.depth, ...shape] : shape);
    const elements = elementsOf(shape);
    const first = whole ? stacked.layer * elements : 0;
    const values = await this.weights.read(stored, { shape: [elements], first, signal });
    if (Object.prototype.toString.call(values) === '[object Float32Array]')
      return values as Float32Array;
    throw new SiglipError(
      'ERR_WEIGHTS',
      `${this.weights.source}: ${stored} must hold floats, got integers`,
    );
  }

  private patches(
    imageSize: number | undefined,
  ):
    | Pick<
        Extract<VisionConfig, { layout: 'fixed' }>,
        'layout' | 'patch' | 'positions' | 'imageSize'
      >
    | Pick<Extract<VisionConfig, { layout: 'naflex' }>, 'layout' | 'patch' | 'positions'> {
    const kernel = tensorOf(this.weights, `${this.prefix}img/embedding/kernel`).shape;
    if (kernel.length === 2) {
      const [rows, columns] = this.shape('img/pos_embedding', 3);
      return { layout: 'naflex', patch: Math.sqrt(kernel[0] / 3), positions: rows * columns };
    }
    const [patch] = this.shape('img/embedding/kernel', 4);
    const [, positions] = this.shape('img/pos_embedding', 3);
    return {
      layout: 'fixed',
      patch,
      positions,
      imageSize: imageSize ?? Math.sqrt(positions) * patch,
    };
  }

  private depth(encoder: string): number {
    const stacked = `${encoder}/encoderblock/LayerNorm_0/scale`;
    if (this.has(stacked)) return this.shape(stacked, 2)[0];
    let depth = 0;
    while (this.has(`${encoder}/encoderblock_${String(depth)}/LayerNorm_0/scale`)) depth++;
    return depth;
  }

  private has(name: string): boolean {
    return this.weights.tensors.has(this.prefix + name);
  }

  private shape(name: string, rank: number): readonly number[] {
    const { shape } = tensorOf(this.weights, this.prefix + name);
    // Without zeros every extent is bounded by the size of the file.
    if (shape.length === rank && !shape.includes(0)) return shape;
    throw new SiglipError(
      'ERR_WEIGHTS',
      `${this.weights.source}: ${name} must have ${String(rank)} positive extents, got [${shape.join(', ')}]`,
    );
  }

  private expectShape(name: string, expected: readonly number[]): void {
    const { shape } = tensorOf(this.weights, name);
    // t and b are scalars in some files.
    if (String(shape) === String(expected) || (shape.length === 0 && elementsOf(expected) === 1))
      return;
    throw new SiglipError(
      'ERR_WEIGHTS',
      `${this.weights.source}: ${name} must have shape [${expected.join(', ')}] beside the other tensors, got [${shape.join(', ')}]`,
    );
  }

  private expectNames(tensors: readonly BigVisionTensor[]): void {
    const known = new Set(tensors.flatMap(({ name, stacked }) => [name, stacked?.name ?? name]));
    const unexpected = [...this.weights.tensors.keys()].filter(
      (name) => name.startsWith(this.prefix) && !known.has(name.slice(this.prefix.length)),
    );
    if (unexpected.length === 0) return;
    throw new SiglipError(
      'ERR_WEIGHTS',
      `${this.weights.source}: tensors must be those of two towers with MAP and last-token pooling, got ` +
        `${String(unexpected.length)} others: ${unexpected.slice(0, 5).join(', ')}`,
    );
  }
}

/**
 * The parameters of a model under the names and in the layout of big_vision, blocks apart or stacked.
 */
export function toBigVision(
  config: ModelConfig,
  parameters: TwoTowersParameters<Float32Array>,
  { stacked = false }: { readonly stacked?: boolean } = {},
): Map<string, HostTensor> {
  const leaves = new Map(flatten(parameters).map(({ path, leaf }) => [path, leaf as Float32Array]));
  const result = new Map<string, HostTensor>();
  for (const tensor of bigVisionTensors(config)) {
    const { name, shape, axes, parameter, stacked: stack } = tensor;
    const ours = leaves.get(parameter.path);
    if (ours?.length !== elementsOf(shape)) {
      throw new SiglipError(
        'ERR_WEIGHTS',
        `toBigVision: ${parameter.path} must have shape [${parameter.shape.join(', ')}], got ${String(ours?.length ?? 'none')} elements`,
      );
    }
    const data = permute(
      ours,
      axes.map((axis) => shape[axis]),
      inverse(axes),
    );
    if (!stacked || stack === undefined) {
      result.set(name, { shape, data });
      continue;
    }
    const whole = result.get(stack.name) ?? {
      shape: [stack.depth, ...shape],
      data: new Float32Array(stack.depth * data.length),
    };
    whole.data.set(data, stack.layer * data.length);
    result.set(stack.name, whole);
  }
  return result;
}

function inverse(axes: readonly number[]): number[] {
  return axes.map((_, axis) => axes.indexOf(axis));
}

/** Elements of an array of `shape` in the order of its axes permuted: out[i_axes[0], …] = in[i_0, …]. */
export function permute(
  data: Float32Array,
  shape: readonly number[],
  axes: readonly number[],
): Float32Array {
  if (axes.every((axis, i) => axis === i)) return data;
  const strides = shape.map((_, axis) => elementsOf(shape.slice(axis + 1)));
  const out = new Float32Array(data.length);
  let at = 0;
  const walk = (depth: number, from: number): void => {
    const axis = axes[depth];
    const [extent, stride] = [shape[axis], strides[axis]];
    if (depth === axes.length - 1) {
      for (let i = 0, source = from; i < extent; i++, source += stride) out[at++] = data[source];
      return;
    }
    for (let i = 0; i < extent; i++) walk(depth + 1, from + i * stride);
  };
  walk(0, 0);
  return out;
}

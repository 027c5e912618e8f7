// The captioning decoder (LocCa, arXiv 2403.19596; SigLIP 2 §2.2): a transformer with cross-attention to the
// un-pooled tokens of the vision tower, used in training and to write captions and boxes.
//
// What the papers leave open is as in CapPa, the public ancestor (big_vision models/proj/cappa/cappa.py):
// no biases but those of the final norm and the logits, an untied embedding of deviation 1 with one row
// more for the mask token, logits that begin at zero.
import { SiglipError } from '../errors';
import type { Spec, Tensor } from '../graph';
import { checkpoint, describe, expectSpec, int32, scope, tap, uint8 } from '../graph';
import type {
  AttentionParameters,
  DecoderBlockParameters,
  KeysAndValues,
  LinearParameters,
  LayerNormParameters,
  MlpParameters,
  OptionalBias,
} from '../nn';
import { addPositions, decoderBlock, keysAndValues, layerNorm } from '../nn';
import * as ops from '../ops';
import type { Initializer, LeafBuilder, ParameterSpec } from './branch';
import { Branch, lecunNormal, normal, xavierUniform, zero } from './branch';
import type { ModelConfig } from './config';

/** Sizes of a decoder. */
export interface DecoderConfig {
  readonly width: number;
  readonly depth: number;
  readonly heads: number;
  readonly mlpWidth: number;
  /** Token ids V; the id V is the mask token. */
  readonly vocabulary: number;
  /** Tokens T of every sequence. */
  readonly length: number;
  /** Width of the tokens that are attended to. */
  readonly memoryWidth: number;
  /** Whether the projections of attention have biases. */
  readonly attentionBias: boolean;
  /** Whether the norms and MLPs of the blocks have biases. */
  readonly blockBias: boolean;
  readonly layerNormEps: number;
}

/**
 * The decoder of a model: the shape of its text tower at half the depth, rounded down (13 for So400m;
 * the paper says "a factor of two" and leaves 13 or 14 open), reading the vision tower's tokens.
 *
 * @throws ERR_CONFIG when the overrides do not describe a decoder.
 */
export function decoderConfig(
  { vision, text, layerNormEps }: ModelConfig,
  overrides: Partial<DecoderConfig> = {},
): DecoderConfig {
  return checkDecoderConfig({
    width: text.width,
    depth: Math.max(1, Math.floor(text.depth / 2)),
    heads: text.heads,
    mlpWidth: text.mlpWidth,
    vocabulary: text.vocabulary,
    length: text.length,
    memoryWidth: vision.width,
    attentionBias: false,
    blockBias: false,
    layerNormEps,
    ...overrides,
  });
}

/** The config as it is. @throws ERR_CONFIG naming the field, what it must be and what it is. */
export function checkDecoderConfig(config: DecoderConfig): DecoderConfig {
  const sizes = [
    'width',
    'depth',
    'heads',
    'mlpWidth',
    'vocabulary',
    'length',
    'memoryWidth',
  ] as const;
  for (const field of sizes) {
    const value = config[field];
    if (!Number.isSafeInteger(value) || value < 1) refuse(field, 'a positive integer', value);
  }
  if (config.width % config.heads !== 0) {
    refuse('heads', `a divisor of the width ${String(config.width)}`, config.heads);
  }
  if (!(config.layerNormEps > 0 && config.layerNormEps < 1)) {
    refuse('layerNormEps', 'a number between 0 and 1', config.layerNormEps);
  }
  return config;
}

function refuse(field: string, expected: string, actual: unknown): never {
  throw new SiglipError(
    'ERR_CONFIG',
    `decoder config: ${field} must be ${expected}, got ${String(actual)}`,
  );
}

/** Parameters of a decoder. */
export interface DecoderParameters<Leaf> {
  /** (V + 1, D); the last row is the mask token. */
  readonly tokens: Leaf;
  /** (T, D) */
  readonly positions: Leaf;
  readonly blocks: readonly DecoderBlockParameters<Leaf>[];
  readonly norm: LayerNormParameters<Leaf>;
  /** Makes the logits: weight (V, D), bias (V). */
  readonly head: LinearParameters<Leaf>;
}

function optionalBias<Leaf>(
  branch: Branch<Leaf>,
  [inputs, outputs]: readonly [number, number],
  weight: Initializer,
  bias: Initializer | undefined,
): OptionalBias<Leaf> {
  return {
    weight: branch.leaf('weight', [outputs, inputs], weight, true),
    bias: bias && branch.leaf('bias', [outputs], bias),
  };
}

function attentionTree<Leaf>(
  branch: Branch<Leaf>,
  { width, attentionBias }: DecoderConfig,
  memoryWidth: number,
): AttentionParameters<Leaf, OptionalBias<Leaf>> {
  const projection = (key: string, inputs: number): OptionalBias<Leaf> =>
    optionalBias(
      branch.at(key),
      [inputs, width],
      lecunNormal(inputs),
      attentionBias ? zero : undefined,
    );
  return {
    query: projection('query', width),
    key: projection('key', memoryWidth),
    value: projection('value', memoryWidth),
    out: projection('out', width),
  };
}

function blockTree<Leaf>(
  branch: Branch<Leaf>,
  config: DecoderConfig,
): DecoderBlockParameters<Leaf> {
  const { width, mlpWidth, memoryWidth, blockBias } = config;
  const norm = (key: string): OptionalBias<Leaf> => {
    const at = branch.at(key);
    return {
      weight: at.leaf('weight', [width], { kind: 'constant', value: 1 }),
      bias: blockBias ? at.leaf('bias', [width], zero) : undefined,
    };
  };
  const mlp = (): MlpParameters<Leaf, OptionalBias<Leaf>> => {
    const at = branch.at('mlp');
    const bias = blockBias ? normal(1e-6) : undefined;
    const weight = xavierUniform(width, mlpWidth);
    return {
      fc1: optionalBias(at.at('fc1'), [width, mlpWidth], weight, bias),
      fc2: optionalBias(at.at('fc2'), [mlpWidth, width], weight, bias),
    };
  };
  return {
    norm1: norm('norm1'),
    selfAttention: attentionTree(branch.at('selfAttention'), config, width),
    norm2: norm('norm2'),
    crossAttention: attentionTree(branch.at('crossAttention'), config, memoryWidth),
    norm3: norm('norm3'),
    mlp: mlp(),
  };
}

/**
 * Builds a decoder's parameter tree, one leaf per parameter; paths begin with `path`.
 *
 * @throws ERR_CONFIG when the config does not describe a decoder.
 */
export function decoderParameters<Leaf>(
  config: DecoderConfig,
  build: LeafBuilder<Leaf>,
  path = 'decoder',
): DecoderParameters<Leaf> {
  const { width, depth, vocabulary, length } = checkDecoderConfig(config);
  const root = new Branch(path, build);
  return {
    tokens: root.leaf('tokens', [vocabulary + 1, width], normal(1)),
    positions: root.leaf('positions', [length, width], normal(1 / Math.sqrt(width))),
    blocks: Array.from({ length: depth }, (_, i) =>
      blockTree(root.at('blocks').at(String(i)), config),
    ),
    norm: root.at('norm').layerNorm(width),
    head: root.at('head').linear(width, vocabulary, zero),
  };
}

/** Every parameter of a decoder, in the order of the tree. @throws ERR_CONFIG */
export function decoderTable(config: DecoderConfig, path?: string): readonly ParameterSpec[] {
  const table: ParameterSpec[] = [];
  decoderParameters(config, (spec) => table.push(spec), path);
  return table;
}

/** What is attended to: tokens of the vision tower after its final norm. */
export interface DecoderMemory<Leaf> {
  /** (M, N, memory width), or packed (R, memory width). */
  readonly memory: Leaf;
  /** (M, N) uint8, 1 where a token counts; only without segments. */
  readonly memoryMask?: Leaf | undefined;
  /** (M + 1) int32: where the tokens of every image begin, of a packed memory. */
  readonly memorySegments?: Leaf | undefined;
}

/** A batch for a decoder. */
export interface DecoderInput<Leaf> extends DecoderMemory<Leaf> {
  /**
   * (B, T) int32, what goes in: the target shifted right behind a 0, or mask tokens. B is a multiple
   * of M: B / M consecutive sequences are of one image.
   */
  readonly ids: Leaf;
  /** (B) uint8: 1 where a token sees those before it alone, 0 where it sees all. */
  readonly causal: Leaf;
}

export interface DecoderOptions {
  /** Recompute blocks in the backward instead of keeping their inside. Default false. */
  readonly checkpoint?: boolean | undefined;
}

/** Specs of a batch, for compile(), with a memory of N tokens for each of `images`. */
export function decoderInputSpecs(
  config: DecoderConfig,
  batch: number,
  memory: readonly [images: number, tokens: number],
): DecoderInput<Spec> {
  return {
    ids: int32(batch, config.length),
    causal: uint8(batch),
    memory: { dtype: 'float32', shape: [...memory, config.memoryWidth] },
  };
}

/**
 * Records a decoder under the scope `decoder`: what its head makes logits of.
 *
 * Taps: `embedded`, `blocks.{i}.selfAttention`, `blocks.{i}.crossAttention`, `blocks.{i}.mlp`,
 * `blocks.{i}.output`, `hidden`.
 *
 * @returns (B, T, D) after the final norm.
 * @throws ERR_SHAPE, ERR_DTYPE when the batch does not fit the config.
 */
export function decoder(
  parameters: DecoderParameters<Tensor>,
  config: DecoderConfig,
  input: DecoderInput<Tensor>,
  options: DecoderOptions = {},
): Tensor {
  const { ids, causal } = input;
  const { heads, layerNormEps: eps } = config;
  return scope('decoder', () => {
    const batch = ids.shape[0] ?? 1;
    expectSpec('decoder', 'ids', ids, int32(batch, config.length));
    expectSpec('decoder', 'causal', causal, uint8(batch));
    expectMemory(config, input, batch);
    const embedded = tap(
      'embedded',
      addPositions(ops.embedding(parameters.tokens, ids), parameters.positions),
    );
    const decoded = parameters.blocks.reduce((tokens, block, i) => {
      const body = (y: Tensor): Tensor =>
        decoderBlock(
          y,
          block,
          (normed) => ({ ...keysAndValues(normed, block.selfAttention), causal }),
          memoryOf(input, block),
          { heads, eps },
        );
      return scope(`blocks.${String(i)}`, () =>
        (options.checkpoint === true ? checkpoint(body) : body)(tokens),
      );
    }, embedded);
    return tap(
      'hidden',
      scope('norm', () => layerNorm(decoded, parameters.norm, { eps })),
    );
  });
}

// Keys and values of the memory in a block.
function memoryOf(
  { memory, memoryMask, memorySegments }: DecoderMemory<Tensor>,
  { crossAttention }: DecoderBlockParameters<Tensor>,
): KeysAndValues<Tensor> & { keyMask: Tensor | undefined; keySegments: Tensor | undefined } {
  return scope('memory', () => ({
    ...keysAndValues(memory, crossAttention),
    keyMask: memoryMask,
    keySegments: memorySegments,
  }));
}

function expectMemory(
  { memoryWidth }: DecoderConfig,
  { memory, memoryMask, memorySegments }: DecoderMemory<Tensor>,
  batch: number,
): void {
  const packed = memorySegments !== undefined;
  const form = packed ? '(R, W)' : '(M, N, W)';
  if (memory.shape.length !== (packed ? 2 : 3) || memory.shape.at(-1) !== memoryWidth) {
    throw new SiglipError(
      'ERR_SHAPE',
      `decoder: memory must be ${form} with a width of ${String(memoryWidth)}, got ${describe(memory)}`,
    );
  }
  const images = packed ? (memorySegments.shape[0] ?? 0) - 1 : (memory.shape[0] ?? 0);
  if (images < 1 || batch % images !== 0) {
    throw new SiglipError(
      'ERR_SHAPE',
      `decoder: ids must have a multiple of ${String(images)} rows, as there are images, got ${String(batch)}`,
    );
  }
  if (memoryMask !== undefined && packed) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      'decoder: memoryMask must be absent with memorySegments, got both',
    );
  }
}

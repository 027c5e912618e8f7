// The parameters of a model, written once: the tree, its order, every shape, every initial
// distribution (flax initialisers as big_vision uses them) and which parameters decay.
import { Philox4x32 } from '../array/random';
import type { Spec } from '../graph';
import { elements } from '../graph';
import type {
  AttentionParameters,
  BlockParameters,
  LayerNormParameters,
  LinearParameters,
  MapHeadParameters,
  MlpParameters,
} from '../nn';
import type { ModelConfig, TextConfig, TowerConfig, VisionConfig } from './config';
import { checkConfig } from './config';

/** Parameters of the vision tower. */
export interface VisionParameters<Leaf> {
  /**
   * weight (D, 3·P·P); the columns are ordered (colour, row, column) in the fixed layout and
   * (row, column, colour) in NaFlex.
   */
  readonly patchEmbedding: LinearParameters<Leaf>;
  /** (N, D) */
  readonly positions: Leaf;
  readonly blocks: readonly BlockParameters<Leaf>[];
  readonly norm: LayerNormParameters<Leaf>;
  /** Absent where the tower is not pooled. */
  readonly head: MapHeadParameters<Leaf> | undefined;
}

/** Parameters of the text tower. */
export interface TextParameters<Leaf> {
  /** (V, D) */
  readonly tokens: Leaf;
  /** (T, D) */
  readonly positions: Leaf;
  readonly blocks: readonly BlockParameters<Leaf>[];
  readonly norm: LayerNormParameters<Leaf>;
  /** Only where the tower is pooled by attention; no released checkpoint has it. */
  readonly pool: MapHeadParameters<Leaf> | undefined;
  /** weight (E, D) */
  readonly head: LinearParameters<Leaf>;
}

/** Parameters of a model; `Leaf` is a spec, a symbolic tensor, a DeviceArray or a Float32Array. */
export interface TwoTowersParameters<Leaf> {
  readonly vision: VisionParameters<Leaf>;
  readonly text: TextParameters<Leaf>;
  /** (1), the natural logarithm t of the scale of the logits. */
  readonly logitScale: Leaf;
  /** (1), the bias b of the logits. */
  readonly logitBias: Leaf;
}

/**
 * A distribution of initial values. `deviation` is a standard deviation; that of the truncated
 * normal is the one before the tails beyond ±2 deviations are cut off.
 */
export type Initializer =
  | { readonly kind: 'constant'; readonly value: number }
  | { readonly kind: 'normal'; readonly deviation: number }
  | { readonly kind: 'truncatedNormal'; readonly deviation: number }
  | { readonly kind: 'uniform'; readonly limit: number };

/** What a parameter is before it has values. */
export interface ParameterSpec extends Spec {
  /** Keys joined by dots: `vision.blocks.0.attention.query.weight`. */
  readonly path: string;
  readonly dtype: 'float32';
  readonly init: Initializer;
  /**
   * Whether weight decay applies: exactly the matrices big_vision calls `kernel` (patch embedding,
   * attention, MLP, text head), never biases, norms, positions, probe, token embedding, t and b.
   */
  readonly decay: boolean;
}

/** Starting values of the logits' scale and bias. */
export interface InitialLogits {
  /** t = log of the scale; default ln 10. */
  readonly logitScale?: number;
  /** b; default −10. Much smaller batches than the published 32k start better at −ln(batch). */
  readonly logitBias?: number;
}

/** Builds the leaf for one parameter. Called in the order of the table. */
export type LeafBuilder<Leaf> = (spec: ParameterSpec) => Leaf;

const zero: Initializer = { kind: 'constant', value: 0 };
const one: Initializer = { kind: 'constant', value: 1 };
const mlpBias: Initializer = { kind: 'normal', deviation: 1e-6 };

// Standard deviation of the standard normal truncated to ±2.
const TRUNCATED_DEVIATION = 0.87962566103423978;

function lecunNormal(fanIn: number): Initializer {
  return { kind: 'truncatedNormal', deviation: 1 / Math.sqrt(fanIn) / TRUNCATED_DEVIATION };
}

function xavierUniform(fanIn: number, fanOut: number): Initializer {
  return { kind: 'uniform', limit: Math.sqrt(6 / (fanIn + fanOut)) };
}

function normal(deviation: number): Initializer {
  return { kind: 'normal', deviation };
}

// Builds the branches of the tree below one path.
class Branch<Leaf> {
  constructor(
    private readonly path: string,
    private readonly build: LeafBuilder<Leaf>,
  ) {}

  at(key: string): Branch<Leaf> {
    return new Branch(this.path === '' ? key : `${this.path}.${key}`, this.build);
  }

  leaf(key: string, shape: readonly number[], init: Initializer, decay = false): Leaf {
    return this.build({ path: this.at(key).path, dtype: 'float32', shape, init, decay });
  }

  linear(
    inWidth: number,
    outWidth: number,
    weight: Initializer,
    bias = zero,
  ): LinearParameters<Leaf> {
    return {
      weight: this.leaf('weight', [outWidth, inWidth], weight, true),
      bias: this.leaf('bias', [outWidth], bias),
    };
  }

  layerNorm(width: number): LayerNormParameters<Leaf> {
    return { weight: this.leaf('weight', [width], one), bias: this.leaf('bias', [width], zero) };
  }

  attention(width: number): AttentionParameters<Leaf> {
    const square = xavierUniform(width, width);
    return {
      query: this.at('query').linear(width, width, square),
      key: this.at('key').linear(width, width, square),
      value: this.at('value').linear(width, width, square),
      out: this.at('out').linear(width, width, square),
    };
  }

  mlp({ width, mlpWidth }: TowerConfig): MlpParameters<Leaf> {
    const weight = xavierUniform(width, mlpWidth);
    return {
      fc1: this.at('fc1').linear(width, mlpWidth, weight, mlpBias),
      fc2: this.at('fc2').linear(mlpWidth, width, weight, mlpBias),
    };
  }

  blocks(tower: TowerConfig): BlockParameters<Leaf>[] {
    return Array.from({ length: tower.depth }, (_, i) => {
      const block = this.at('blocks').at(String(i));
      return {
        norm1: block.at('norm1').layerNorm(tower.width),
        attention: block.at('attention').attention(tower.width),
        norm2: block.at('norm2').layerNorm(tower.width),
        mlp: block.at('mlp').mlp(tower),
      };
    });
  }

  mapHead(tower: TowerConfig): MapHeadParameters<Leaf> {
    return {
      probe: this.leaf('probe', [1, tower.width], xavierUniform(1, tower.width)),
      attention: this.at('attention').attention(tower.width),
      norm: this.at('norm').layerNorm(tower.width),
      mlp: this.at('mlp').mlp(tower),
    };
  }

  vision(config: VisionConfig): VisionParameters<Leaf> {
    const { width, patch, positions, pool } = config;
    const inputs = 3 * patch * patch;
    return {
      patchEmbedding: this.at('patchEmbedding').linear(inputs, width, lecunNormal(inputs)),
      positions: this.leaf('positions', [positions, width], normal(1 / Math.sqrt(width))),
      blocks: this.blocks(config),
      norm: this.at('norm').layerNorm(width),
      head: pool === 'map' ? this.at('head').mapHead(config) : undefined,
    };
  }

  text(config: TextConfig, embedding: number): TextParameters<Leaf> {
    const { width, vocabulary, length, pool } = config;
    const rows = normal(1 / Math.sqrt(width));
    return {
      tokens: this.leaf('tokens', [vocabulary, width], rows),
      positions: this.leaf('positions', [length, width], rows),
      blocks: this.blocks(config),
      norm: this.at('norm').layerNorm(width),
      pool: pool === 'map' ? this.at('pool').mapHead(config) : undefined,
      head: this.at('head').linear(width, embedding, lecunNormal(width)),
    };
  }
}

/**
 * Builds a model's parameter tree, one leaf per parameter.
 *
 * @throws ERR_CONFIG when the config does not describe a model.
 * @example
 * const onDevice = twoTowersParameters(config, ({ path, shape }) => load(path, shape));
 */
export function twoTowersParameters<Leaf>(
  config: ModelConfig,
  build: LeafBuilder<Leaf>,
  { logitScale = Math.LN10, logitBias = -10 }: InitialLogits = {},
): TwoTowersParameters<Leaf> {
  checkConfig(config);
  const root = new Branch('', build);
  return {
    vision: root.at('vision').vision(config.vision),
    text: root.at('text').text(config.text, config.embedding),
    logitScale: root.leaf('logitScale', [1], { kind: 'constant', value: logitScale }),
    logitBias: root.leaf('logitBias', [1], { kind: 'constant', value: logitBias }),
  };
}

/** As {@link twoTowersParameters} for a vision tower alone; paths begin with `vision.`. */
export function visionParameters<Leaf>(
  config: ModelConfig,
  build: LeafBuilder<Leaf>,
): VisionParameters<Leaf> {
  return new Branch('', build).at('vision').vision(checkConfig(config).vision);
}

/** As {@link twoTowersParameters} for a text tower alone; paths begin with `text.`. */
export function textParameters<Leaf>(
  config: ModelConfig,
  build: LeafBuilder<Leaf>,
): TextParameters<Leaf> {
  const { text, embedding } = checkConfig(config);
  return new Branch('', build).at('text').text(text, embedding);
}

/** Every parameter of a model, in the order of the tree. @throws ERR_CONFIG */
export function parameterTable(
  config: ModelConfig,
  initial: InitialLogits = {},
): readonly ParameterSpec[] {
  const table: ParameterSpec[] = [];
  twoTowersParameters(config, (spec) => table.push(spec), initial);
  return table;
}

/** Number of weights in a list of parameters. */
export function parameterCount(table: readonly ParameterSpec[]): number {
  return table.reduce((sum, spec) => sum + elements(spec), 0);
}

/**
 * Initial values of one parameter. They depend on the seed and the parameter's path alone, not on
 * what else is initialised or in which order.
 *
 * @param seed - integer from 0 to 2^53 − 1
 */
export function initialValues(spec: ParameterSpec, seed: number): Float32Array {
  const values = new Float32Array(elements(spec));
  const random = new Philox4x32(seed, `parameter/${spec.path}`);
  const { init } = spec;
  switch (init.kind) {
    case 'constant':
      return values.fill(init.value);
    case 'normal':
      random.fillNormal(values, init.deviation);
      return values;
    case 'truncatedNormal':
      random.fillTruncatedNormal(values, init.deviation, 2);
      return values;
    case 'uniform':
      random.fillUniform(values, -init.limit, init.limit);
      return values;
  }
}

/**
 * A freshly initialised model in host memory. Large models: build the tree with
 * {@link twoTowersParameters} and {@link initialValues} leaf by leaf instead, so that no more than
 * one parameter is held twice.
 *
 * @param seed - integer from 0 to 2^53 − 1; the same seed gives the same values on every machine
 * @throws ERR_CONFIG, ERR_ARGUMENT
 */
export function initialize(
  config: ModelConfig,
  seed: number,
  initial: InitialLogits = {},
): TwoTowersParameters<Float32Array> {
  return twoTowersParameters(config, (spec) => initialValues(spec, seed), initial);
}

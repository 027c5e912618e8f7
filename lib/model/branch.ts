// How parameters are declared: a path, a shape, an initial distribution (flax initialisers as
// big_vision uses them) and whether the parameter decays, each written once, where its tree is built.
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
import type { TowerConfig } from './config';

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

/** Builds the leaf for one parameter. Called in the order of the table. */
export type LeafBuilder<Leaf> = (spec: ParameterSpec) => Leaf;

/** Zeros. */
export const zero: Initializer = { kind: 'constant', value: 0 };
const one: Initializer = { kind: 'constant', value: 1 };
const mlpBias: Initializer = { kind: 'normal', deviation: 1e-6 };

// Standard deviation of the standard normal truncated to ±2.
const TRUNCATED_DEVIATION = 0.87962566103423978;

/** LeCun's: variance 1/fan_in. */
export function lecunNormal(fanIn: number): Initializer {
  return { kind: 'truncatedNormal', deviation: 1 / Math.sqrt(fanIn) / TRUNCATED_DEVIATION };
}

/** Glorot's. */
export function xavierUniform(fanIn: number, fanOut: number): Initializer {
  return { kind: 'uniform', limit: Math.sqrt(6 / (fanIn + fanOut)) };
}

/** Normal, not truncated. */
export function normal(deviation: number): Initializer {
  return { kind: 'normal', deviation };
}

/** Builds the branches of a tree of parameters below one path. */
export class Branch<Leaf> {
  constructor(
    /** Keys joined by dots; the root's is empty. */
    readonly path: string,
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

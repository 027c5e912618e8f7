// The parameters of the two towers, written once: the tree, its order, every shape and distribution.
import type {
  BlockParameters,
  LayerNormParameters,
  LinearParameters,
  MapHeadParameters,
} from '../nn';
import type { LeafBuilder, ParameterSpec } from './branch';
import { Branch, initialValues, lecunNormal, normal } from './branch';
import type { ModelConfig, TextConfig, VisionConfig } from './config';
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

/** Starting values of the logits' scale and bias. */
export interface InitialLogits {
  /** t = log of the scale; default ln 10. */
  readonly logitScale?: number;
  /** b; default −10. Much smaller batches than the published 32k start better at −ln(batch). */
  readonly logitBias?: number;
}

function visionTree<Leaf>(branch: Branch<Leaf>, config: VisionConfig): VisionParameters<Leaf> {
  const { width, patch, positions, pool } = config;
  const inputs = 3 * patch * patch;
  return {
    patchEmbedding: branch.at('patchEmbedding').linear(inputs, width, lecunNormal(inputs)),
    positions: branch.leaf('positions', [positions, width], normal(1 / Math.sqrt(width))),
    blocks: branch.blocks(config),
    norm: branch.at('norm').layerNorm(width),
    head: pool === 'map' ? branch.at('head').mapHead(config) : undefined,
  };
}

function textTree<Leaf>(
  branch: Branch<Leaf>,
  config: TextConfig,
  embedding: number,
): TextParameters<Leaf> {
  const { width, vocabulary, length, pool } = config;
  const rows = normal(1 / Math.sqrt(width));
  return {
    tokens: branch.leaf('tokens', [vocabulary, width], rows),
    positions: branch.leaf('positions', [length, width], rows),
    blocks: branch.blocks(config),
    norm: branch.at('norm').layerNorm(width),
    pool: pool === 'map' ? branch.at('pool').mapHead(config) : undefined,
    head: branch.at('head').linear(width, embedding, lecunNormal(width)),
  };
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
    vision: visionTree(root.at('vision'), config.vision),
    text: textTree(root.at('text'), config.text, config.embedding),
    logitScale: root.leaf('logitScale', [1], { kind: 'constant', value: logitScale }),
    logitBias: root.leaf('logitBias', [1], { kind: 'constant', value: logitBias }),
  };
}

/** As {@link twoTowersParameters} for a vision tower alone; paths begin with `vision.`. */
export function visionParameters<Leaf>(
  config: ModelConfig,
  build: LeafBuilder<Leaf>,
): VisionParameters<Leaf> {
  return visionTree(new Branch('', build).at('vision'), checkConfig(config).vision);
}

/** As {@link twoTowersParameters} for a text tower alone; paths begin with `text.`. */
export function textParameters<Leaf>(
  config: ModelConfig,
  build: LeafBuilder<Leaf>,
): TextParameters<Leaf> {
  const { text, embedding } = checkConfig(config);
  return textTree(new Branch('', build).at('text'), text, embedding);
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

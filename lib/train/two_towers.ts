// The two towers as a training step: what a batch is, and its loss.
import type { Device } from '../array';
import type { ComputeDType, MapTree, Program, Spec, Tensor } from '../graph';
import { float32, scope } from '../graph';
import { sigmoidLoss } from '../loss';
import type {
  ModelConfig,
  PixelInput,
  TwoTowersOutput,
  TwoTowersParameters,
  VisionInput,
} from '../model';
import {
  normalizedInput,
  parameterTable,
  pixelInputSpecs,
  textInputSpec,
  twoTowers,
  twoTowersParameters,
  visionInputSpecs,
} from '../model';
import * as ops from '../ops';
import type { CachedStep, CachedStepConfig } from './cached_step';
import { compileCachedStep } from './cached_step';
import type { OptimizerConfig } from './optimizer';
import type { StepConfig, StepInputs, StepOutputs } from './step';
import { compileStep } from './step';

/** One batch of pairs: the i-th text belongs to the i-th image and to no other. */
export interface PairBatch<Leaf> {
  readonly images: PixelInput<Leaf> | VisionInput<Leaf>;
  /** (B, T) int32. */
  readonly texts: Leaf;
}

export interface TwoTowersStepConfig {
  readonly model: ModelConfig;
  /** Pairs of a micro-batch. */
  readonly batch: number;
  /** Micro-batches of a step. Default 1. */
  readonly microBatches?: number;
  readonly optimizer: OptimizerConfig;
  /** See {@link StepConfig}. */
  readonly device?: Device | undefined;
  /** See {@link StepConfig}. */
  readonly precision?: ComputeDType | undefined;
  /**
   * How images come: `pixels` (bytes, the default of a fixed-resolution tower) or `values` (floats,
   * already normalised; NaFlex patches).
   */
  readonly images?: 'pixels' | 'values';
  /** Tokens of a NaFlex batch; default the cells of the position grid. */
  readonly length?: number;
  /** Compute blocks again in the backward instead of keeping their inside. Default false. */
  readonly checkpoint?: boolean;
}

export type TwoTowersStep = Program<
  StepInputs<TwoTowersParameters<Spec>, PairBatch<Spec>>,
  StepOutputs<TwoTowersParameters<Tensor>>
>;

/**
 * Compiles the training step of a model: both towers, sigmoid loss, gradients, clip and Adam.
 *
 * @throws ERR_CONFIG, ERR_ARGUMENT.
 */
export function compileTwoTowersStep(config: TwoTowersStepConfig): TwoTowersStep {
  return compileStep(twoTowersStep(config));
}

/** The step that {@link compileTwoTowersStep} compiles. */
export function twoTowersStep(
  config: TwoTowersStepConfig,
): StepConfig<TwoTowersParameters<Spec>, PairBatch<Spec>> {
  return {
    ...common(config),
    microBatches: config.microBatches ?? 1,
    loss: (parameters: MapTree<TwoTowersParameters<Spec>, Spec, Tensor>, pairs) => {
      const tree = parameters as TwoTowersParameters<Tensor>;
      return sigmoidLoss(towersOn(tree, pairs, config), tree);
    },
  };
}

/** A step over micro-batches of `batch` pairs whose loss takes the pairs of all of them together. */
export type TwoTowersCachedStep = CachedStep<TwoTowersParameters<Spec>, PairBatch<Spec>>;

/**
 * Compiles the training step of a model with gradients of embeddings cached: `microBatches`
 * micro-batches of `batch` pairs, each a negative of all others. See {@link compileCachedStep}.
 *
 * @throws ERR_CONFIG, ERR_ARGUMENT.
 */
export function compileTwoTowersCachedStep(config: TwoTowersStepConfig): TwoTowersCachedStep {
  return compileCachedStep(twoTowersCachedStep(config));
}

/** The step that {@link compileTwoTowersCachedStep} compiles. */
export function twoTowersCachedStep(
  config: TwoTowersStepConfig,
): CachedStepConfig<TwoTowersParameters<Spec>, PairBatch<Spec>> {
  const rows = float32(config.batch, config.model.embedding);
  return {
    ...common(config),
    microBatches: config.microBatches ?? 1,
    embeddings: { images: rows, texts: rows },
    embed: (parameters: MapTree<TwoTowersParameters<Spec>, Spec, Tensor>, pairs) => {
      const tree = parameters as TwoTowersParameters<Tensor>;
      const { vision, text } = towersOn(tree, pairs, config);
      return { images: vision.embedding, texts: text.embedding };
    },
    loss: ({ images, texts }, parameters) => {
      const { logitScale, logitBias } = parameters as TwoTowersParameters<Tensor>;
      return scope('loss', () => ops.sigmoidLoss(images, texts, logitScale, logitBias));
    },
  };
}

// What both kinds of step share.
function common(
  config: TwoTowersStepConfig,
): Pick<
  StepConfig<TwoTowersParameters<Spec>, PairBatch<Spec>>,
  'name' | 'parameters' | 'batch' | 'optimizer' | 'device' | 'precision' | 'decays'
> {
  const { model, batch } = config;
  const decaying = new Set(
    parameterTable(model)
      .filter(({ decay }) => decay)
      .map(({ path }) => path),
  );
  return {
    name: 'train step',
    parameters: twoTowersParameters<Spec>(model, ({ dtype, shape }) => ({ dtype, shape })),
    batch: { images: imageSpecs(config), texts: textInputSpec(model, batch) },
    optimizer: config.optimizer,
    device: config.device,
    precision: config.precision,
    decays: (path) => decaying.has(path),
  };
}

function towersOn(
  parameters: TwoTowersParameters<Tensor>,
  { images, texts }: PairBatch<Tensor>,
  { model, checkpoint }: TwoTowersStepConfig,
): TwoTowersOutput {
  return twoTowers(
    parameters,
    model,
    { vision: normalizedInput(images), ids: texts },
    { checkpoint, pooledOnly: true },
  );
}

function imageSpecs({
  model,
  batch,
  images,
  length,
}: TwoTowersStepConfig): PairBatch<Spec>['images'] {
  if (model.vision.layout === 'fixed' && images !== 'values') return pixelInputSpecs(model, batch);
  return visionInputSpecs(model, batch, length);
}

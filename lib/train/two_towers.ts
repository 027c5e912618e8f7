// The two towers as a training step: what a batch is, and its loss.
import type { Device } from '../array';
import type { ComputeDType, MapTree, Program, Spec, Tensor } from '../graph';
import { sigmoidLoss } from '../loss';
import type { ModelConfig, PixelInput, TwoTowersParameters, VisionInput } from '../model';
import {
  normalizedInput,
  parameterTable,
  pixelInputSpecs,
  textInputSpec,
  twoTowers,
  twoTowersParameters,
  visionInputSpecs,
} from '../model';
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
    microBatches: config.microBatches ?? 1,
    optimizer: config.optimizer,
    device: config.device,
    precision: config.precision,
    decays: (path) => decaying.has(path),
    loss: (parameters: MapTree<TwoTowersParameters<Spec>, Spec, Tensor>, pairs) => {
      const { images, texts } = pairs as PairBatch<Tensor>;
      const tree = parameters as TwoTowersParameters<Tensor>;
      const output = twoTowers(
        tree,
        model,
        { vision: normalizedInput(images), ids: texts },
        { checkpoint: config.checkpoint, pooledOnly: true },
      );
      return sigmoidLoss(output, tree);
    },
  };
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

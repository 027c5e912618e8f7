// The two towers as a training step: what a batch is, and its loss.
import type { Device } from '../array';
import type { ComputeDType, MapTree, Program, Spec, Tensor } from '../graph';
import { float32, uint8 } from '../graph';
import { sigmoidLoss } from '../loss';
import type { ModelConfig, TwoTowersParameters, VisionInput } from '../model';
import {
  parameterTable,
  textInputSpec,
  twoTowers,
  twoTowersParameters,
  visionInputSpecs,
} from '../model';
import { normalizePixels } from '../ops';
import type { OptimizerConfig } from './optimizer';
import type { StepConfig, StepInputs, StepOutputs } from './step';
import { compileStep } from './step';

/** Images as bytes, normalised on the device; for fixed-resolution towers. */
export interface PixelInput<Leaf> {
  /** (B, S, S, 3) uint8. */
  readonly pixels: Leaf;
  /** (3, 256) float32: the value of each byte of each colour. */
  readonly table: Leaf;
}

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
      const vision =
        'pixels' in images ? { images: normalizePixels(images.pixels, images.table) } : images;
      const output = twoTowers(
        tree,
        model,
        { vision, ids: texts },
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
  const { vision } = model;
  if (vision.layout === 'fixed' && images !== 'values') {
    const { imageSize } = vision;
    return { pixels: uint8(batch, imageSize, imageSize, 3), table: float32(3, 256) };
  }
  return visionInputSpecs(model, batch, length);
}

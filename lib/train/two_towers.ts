// The two towers as a training step: what a batch is, and its loss.
import type { Device } from '../array';
import type { Batch } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType, HostArray, MapTree, Spec, Tensor } from '../graph';
import { sigmoidLoss } from '../loss';
import type { ModelConfig } from '../model';
import {
  normalizedInput,
  packedInputSpecs,
  parameterTable,
  pixelInputSpecs,
  textInputSpec,
  twoTowers,
  twoTowersParameters,
  visionInputSpecs,
} from '../model';
import type { Averages, Objective, ObjectiveStep, StepBatch, TrainedParameters } from './objective';
import type { OptimizerConfig } from './optimizer';
import type { StepConfig, StepProgram } from './step';
import { compileStep } from './step';

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
  /** Rows of a NaFlex batch that is packed; default padded to the length. */
  readonly rows?: number | undefined;
  /** Compute blocks again in the backward instead of keeping their inside. Default false. */
  readonly checkpoint?: boolean | undefined;
}

export type TwoTowersStep = StepProgram<TrainedParameters<Spec>, Averages<Spec>, StepBatch<Spec>>;

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
): StepConfig<TrainedParameters<Spec>, Averages<Spec>, StepBatch<Spec>> {
  const { microBatches = 1, optimizer, device, precision } = config;
  return { ...twoTowersObjectiveStep(config), microBatches, optimizer, device, precision };
}

/** The part of a step that follows from the model and the form of its batches. */
export function twoTowersObjectiveStep(
  config: Omit<TwoTowersStepConfig, 'optimizer'>,
): ObjectiveStep {
  const { model, batch } = config;
  const decaying = new Set(
    parameterTable(model)
      .filter(({ decay }) => decay)
      .map(({ path }) => path),
  );
  return {
    name: 'train step',
    parameters: twoTowersParameters<Spec>(model, ({ dtype, shape }) => ({ dtype, shape })),
    averages: {},
    batch: { images: imageSpecs(config), texts: textInputSpec(model, batch) },
    decays: (path) => decaying.has(path),
    evaluate: (parameters: MapTree<TrainedParameters<Spec>, Spec, Tensor>, pairs) => {
      const { images, texts } = pairs as StepBatch<Tensor>;
      const tree = parameters as TrainedParameters<Tensor>;
      const output = twoTowers(
        tree,
        model,
        { vision: normalizedInput(images), ids: texts },
        { checkpoint: config.checkpoint, pooledOnly: true },
      );
      return { loss: sigmoidLoss(output, tree) };
    },
  };
}

export interface PairObjectiveConfig {
  readonly model: ModelConfig;
  /** Pairs of a micro-batch. */
  readonly batch: number;
  /** (3, 256): the value of each byte of each colour. */
  readonly pixelTable: Float32Array;
  /** Compute blocks again in the backward instead of keeping their inside. Default false. */
  readonly checkpoint?: boolean;
}

/** The sigmoid loss alone, over pairs of square images and texts. */
export function pairObjective(config: PairObjectiveConfig): Objective {
  const { model, batch } = config;
  return {
    model,
    batch,
    identity: { model },
    parameters: parameterTable(model),
    averages: [],
    forms: ['images'],
    parametersTree: (build, initial) => twoTowersParameters(model, build, initial),
    averagesTree: () => ({}),
    step: () => twoTowersObjectiveStep(config),
    admit: (given) => ({ form: 'images', pairs: batch, inputs: admitPairs(config, given) }),
  };
}

/**
 * Images and texts of a batch, as bytes with their table.
 *
 * @throws ERR_DATA when they do not fit
 */
export function admitPairs(
  { model, batch: size, pixelTable }: PairObjectiveConfig,
  { images, tokens, size: given }: Batch,
): StepBatch<HostArray> {
  const side = model.vision.layout === 'fixed' ? model.vision.imageSize : given;
  const pixels = size * side * side * 3;
  const ids = size * model.text.length;
  if (given !== side || images.length !== pixels || tokens?.length !== ids) {
    throw new SiglipError(
      'ERR_DATA',
      `train: a batch must hold ${String(size)} images of ${String(side)} pixels a side and ${String(ids)} token ids, ` +
        `got ${String(images.length)} bytes at ${String(given)} pixels and ${String(tokens?.length ?? 0)} ids`,
    );
  }
  return { images: { pixels: images, table: pixelTable }, texts: tokens };
}

function imageSpecs({
  model,
  batch,
  images,
  length,
  rows,
}: Omit<TwoTowersStepConfig, 'optimizer'>): StepBatch<Spec>['images'] {
  if (model.vision.layout === 'fixed' && images !== 'values') return pixelInputSpecs(model, batch);
  if (rows !== undefined) return packedInputSpecs(model, batch, rows);
  return visionInputSpecs(model, batch, length);
}

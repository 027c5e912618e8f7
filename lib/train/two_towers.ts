// The two towers as a training step: what a batch is, and its loss.
import type { Device } from '../array';
import type { Batch, NaflexLength, PackedImages } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType, HostArray, Spec } from '../graph';
import { float32 } from '../graph';
import type { ModelConfig } from '../model';
import {
  normalizedInput,
  packedInputSpecs,
  packedRows,
  parameterTable,
  pixelInputSpecs,
  textInputSpec,
  twoTowers,
  twoTowersParameters,
  visionInputSpecs,
} from '../model';
import type { CachedStep, CachedStepConfig } from './cached_step';
import { compileCachedStep } from './cached_step';
import type {
  Averages,
  Embeddings,
  Objective,
  ObjectiveStep,
  StepBatch,
  TrainedParameters,
} from './objective';
import { wholeStep } from './objective';
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
  return {
    ...wholeStep(twoTowersObjectiveStep(config)),
    microBatches,
    optimizer,
    device,
    precision,
  };
}

/** A step over micro-batches whose loss takes the pairs of all of them together. */
export type TwoTowersCachedStep = CachedStep;

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
export function twoTowersCachedStep(config: TwoTowersStepConfig): CachedStepConfig {
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
    averageSpecs: [],
    balanced: {},
    sigmoid: 1,
    decays: (path) => decaying.has(path),
    embeddings: embeddingSpecs(model, batch),
    towers: (parameters, { images, texts }) => {
      const { vision, text } = twoTowers(
        parameters,
        model,
        { vision: normalizedInput(images), ids: texts },
        { checkpoint: config.checkpoint, pooledOnly: true },
      );
      return { embeddings: { images: vision.embedding, texts: text.embedding } };
    },
  };
}

/** Of so many pairs. */
export function embeddingSpecs(model: ModelConfig, pairs: number): Embeddings<Spec> {
  const rows = float32(pairs, model.embedding);
  return { images: rows, texts: rows };
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
    pixelTable: config.pixelTable,
    pairs: () => batch,
    step: (_, pairs = batch) => twoTowersObjectiveStep({ ...config, batch: pairs }),
    admit: (given, own = (pairs) => pairs) => ({
      form: 'images',
      pairs: batch,
      inputs: admitPairs({ ...config, batch: own(batch) }, given),
    }),
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

/**
 * A packed batch of a NaFlex length: so many images in so many rows.
 *
 * @throws ERR_DATA when it does not fit
 */
export function admitPacked(
  model: ModelConfig,
  { length, batch }: Pick<NaflexLength, 'length' | 'batch'>,
  packed: PackedImages,
  tokens: Int32Array | undefined,
): StepBatch<HostArray> {
  const values = packedRows(batch * length) * 3 * model.vision.patch ** 2;
  const ids = batch * model.text.length;
  const { patches, shapes, segments } = packed;
  if (patches.length !== values || segments.length !== batch + 1 || tokens?.length !== ids) {
    throw new SiglipError(
      'ERR_DATA',
      `train: a batch of length ${String(length)} must hold ${String(batch)} images in ${String(values)} values ` +
        `and ${String(ids)} token ids, got ${String(segments.length - 1)} in ${String(patches.length)} and ${String(tokens?.length ?? 0)} ids`,
    );
  }
  return { images: { patches, shapes, segments }, texts: tokens };
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

// The training loop: batches in, updated weights out, a log line per step, a checkpoint now and then.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Device } from '../array';
import { DeviceArray, resolveDevice } from '../array';
import type { Batch, Stream } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType, Spec } from '../graph';
import { disposeArrays, flatten, mapTree } from '../graph';
import type { InitialLogits, ModelConfig, TwoTowersParameters } from '../model';
import { initialValues, twoTowersParameters } from '../model';
import type { TrainingState } from './checkpoint';
import { latestCheckpoint, loadTraining, saveTraining } from './checkpoint';
import type { CurationConfig, CurationMetrics, Selection } from './curation';
import { Curator } from './curation';
import type { StepMetrics } from './metrics';
import { MetricsLog, keepMetricsBefore } from './metrics';
import type { OptimizerConfig } from './optimizer';
import { defaultOptimizer, scheduleInput } from './optimizer';
import type { HostPairs } from './pairs';
import { hostPairs, pairRange } from './pairs';
import type { ScheduleConfig } from './schedule';
import { cosineSchedule } from './schedule';
import type { Step } from './step';
import type { PairBatch } from './two_towers';
import { compileTwoTowersCachedStep, compileTwoTowersStep } from './two_towers';

export interface TrainerConfig {
  readonly model: ModelConfig;
  /** Run folder: `metrics.jsonl` and `checkpoints/` are kept there. */
  readonly folder: string;
  /** Where the run's weights are and its steps run. Default `'auto'`: a GPU where there is one. */
  readonly device?: 'auto' | Device;
  /**
   * In what activations are held and multiplied. Default `'float32'`. `'bfloat16'` needs a GPU; master
   * weights, their gradients, the loss and Adam stay float32, and so do checkpoints.
   */
  readonly precision?: ComputeDType;
  /**
   * Pairs of a contrastive batch, each a negative of all others; the stream must give batches of this
   * size, with curation those of {@link superBatch}.
   */
  readonly batch: number;
  /**
   * Pairs of one run of the towers, a divisor of `batch`. Where it is smaller, the towers run twice over
   * micro-batches and the loss still takes all pairs of the batch: the same step to rounding, in the
   * memory of a micro-batch (see {@link compileCachedStep}). Default `batch`.
   */
  readonly microBatch?: number | undefined;
  /**
   * Batches of a step, losses and gradients averaged: negatives are not shared between them. Default 1,
   * the only choice with `microBatch` or `curation`.
   */
  readonly microBatches?: number;
  /** Which pairs of a larger batch a step trains on. Default: the stream's batches as they come. */
  readonly curation?: CurationConfig | undefined;
  /** Optimizer steps and warm-up. */
  readonly schedule: ScheduleConfig;
  /** Default {@link defaultOptimizer}. */
  readonly optimizer?: OptimizerConfig;
  /** Seed of the initial weights. Default 0. */
  readonly seed?: number;
  readonly initialLogits?: InitialLogits;
  /** (3, 256): the value of each byte of each colour. */
  readonly pixelTable: Float32Array;
  /** Steps between checkpoints; 0 for none but the last. Default 0. */
  readonly checkpointEvery?: number;
  /** Checkpoints that stay. Default 2. */
  readonly keepCheckpoints?: number;
  /** Compute blocks again in the backward instead of keeping their inside. Default false. */
  readonly checkpointActivations?: boolean;
}

export interface TrainOptions {
  /** Called after every step. */
  readonly onStep?: (metrics: StepMetrics) => void;
  /** Called with every selection of a run with curation, before its step. */
  readonly onSelection?: ((selection: Selection) => void) | undefined;
  /** Ends the run after the current step, with a checkpoint. */
  readonly signal?: AbortSignal;
}

type Parameters = TwoTowersParameters<DeviceArray>;
type TrainStep = Step<TwoTowersParameters<Spec>, PairBatch<Spec>>;

/**
 * A training run: weights, optimizer state and position. Resumed from a checkpoint it continues bit
 * for bit.
 *
 * @example
 * const trainer = await Trainer.start(config, stream);
 * await trainer.train({ onStep: ({ step, loss }) => console.log(step, loss) });
 * await saveCheckpoint(folder, { config: config.model, parameters: trainer.parameters });
 * trainer.dispose();
 */
export class Trainer {
  private readonly optimizer: OptimizerConfig;

  private constructor(
    private readonly config: TrainerConfig,
    private readonly stream: Stream<Batch>,
    private readonly program: TrainStep,
    private readonly curator: Curator | undefined,
    private readonly state: TrainingState<DeviceArray>,
    private nextStep: number,
    /** Where the weights are and the steps run. */
    readonly device: Device,
  ) {
    this.optimizer = config.optimizer ?? defaultOptimizer;
  }

  /**
   * Begins a run, or continues the one in the folder from its latest checkpoint.
   *
   * @param stream - batches of `config.batch` pairs with pixels of the model's size and token ids.
   * @throws ERR_CONFIG, ERR_ARGUMENT; ERR_WEIGHTS for a checkpoint that is damaged or of another model;
   * ERR_DEVICE for a device that is not here, or a precision that it does not have.
   */
  static async start(config: TrainerConfig, stream: Stream<Batch>): Promise<Trainer> {
    cosineSchedule(0, config.schedule);
    const { device, reason } = resolveDevice(config.device ?? 'auto');
    const precision = config.precision ?? 'float32';
    if (device === 'cpu' && precision !== 'float32') {
      throw new SiglipError(
        'ERR_DEVICE',
        `train: precision must be float32 on the CPU, got ${precision}\n` +
          `the device is the CPU: ${reason}\n` +
          'to do: train in float32, or on a machine with a GPU',
      );
    }
    const microBatch = microBatchOf(config);
    mkdirSync(checkpointFolder(config), { recursive: true });
    const program = compileTrainStep(config, microBatch, device, precision);
    let curator: Curator | undefined;
    try {
      curator =
        config.curation === undefined
          ? undefined
          : new Curator(config.curation, {
              model: config.model,
              batch: config.batch,
              microBatch,
              pixelTable: config.pixelTable,
              seed: config.seed ?? 0,
              device,
              precision,
            });
      const path = await latestCheckpoint(checkpointFolder(config));
      if (path === undefined) {
        keepMetricsBefore(metricsPath(config), 0);
        const state = freshState(config, device);
        return new Trainer(config, stream, program, curator, state, 0, device);
      }
      const { state, position } = await loadTraining(path, config.model, device);
      await stream.restore(position.data);
      keepMetricsBefore(metricsPath(config), position.step);
      return new Trainer(config, stream, program, curator, state, position.step, device);
    } catch (error) {
      program.dispose();
      curator?.dispose();
      throw error;
    }
  }

  /** The weights, updated in place by every step. */
  get parameters(): Parameters {
    return this.state.parameters;
  }

  /** Zero-based index of the next step. */
  get step(): number {
    return this.nextStep;
  }

  /** Bytes the run needs on its device at its peak, weights and optimizer state included. */
  get peakBytes(): number {
    const { peakBytes } = this.program.memory;
    return this.curator === undefined
      ? peakBytes
      : Math.max(peakBytes, this.curator.peakBytes + 2 * treeBytes(this.state.parameters));
  }

  /**
   * Trains to the end of the schedule, or until the signal.
   *
   * @returns whether the schedule's end was reached.
   * @throws ERR_NOT_FINITE naming the step whose loss or norms are not finite; the last checkpoint
   * is that of an earlier step. ERR_DATA when the stream's batches do not fit.
   */
  async train({ onStep, onSelection, signal }: TrainOptions = {}): Promise<boolean> {
    const { totalSteps } = this.config.schedule;
    const log = new MetricsLog(metricsPath(this.config));
    try {
      while (this.nextStep < totalSteps) {
        if (signal?.aborted === true) break;
        const metrics = await this.trainStep(onSelection);
        log.append(metrics);
        onStep?.(metrics);
        const every = this.config.checkpointEvery ?? 0;
        if (every > 0 && this.nextStep % every === 0 && this.nextStep < totalSteps)
          await this.save();
      }
    } finally {
      log.close();
    }
    await this.save();
    return this.nextStep >= totalSteps;
  }

  /** Writes a checkpoint of the current position. */
  async save(): Promise<void> {
    await saveTraining(
      checkpointFolder(this.config),
      this.config.model,
      this.state,
      { step: this.nextStep, data: this.stream.state() },
      this.config.keepCheckpoints ?? 2,
    );
  }

  /** Frees weights, optimizer state and programs. Stream and reference stay open: they are the caller's. */
  dispose(): void {
    this.program.dispose();
    this.curator?.dispose();
    disposeArrays(this.state);
  }

  private async trainStep(onSelection: TrainOptions['onSelection']): Promise<StepMetrics> {
    const began = performance.now();
    const step = this.nextStep;
    const multiplier = cosineSchedule(step, this.config.schedule);
    const { batches, curation } = await this.nextBatches(onSelection);
    const { parameters, moments } = this.state;
    const outputs = await this.program.run({
      parameters,
      state: moments,
      schedule: scheduleInput(multiplier, step, this.optimizer),
      batches,
    });
    const [loss, gradientNorm, updateNorm, parameterNorm] = await Promise.all(
      [outputs.loss, outputs.gradientNorm, outputs.updateNorm, outputs.parameterNorm].map(
        takeScalar,
      ),
    );
    const [logitScale, logitBias] = await Promise.all(
      [parameters.logitScale, parameters.logitBias].map(readScalar),
    );
    this.nextStep = step + 1;
    const scalars = { loss, gradientNorm, updateNorm, parameterNorm };
    if (!Object.values(scalars).every(Number.isFinite)) {
      const got = Object.entries(scalars).map(([name, value]) => `${name} ${String(value)}`);
      throw new SiglipError(
        'ERR_NOT_FINITE',
        `train: loss and norms of step ${String(step)} must be finite, got ${got.join(', ')}\n` +
          'to do: resume from the last checkpoint with a lower learning rate, or look at the data of this step',
      );
    }
    const pairs = (this.config.microBatches ?? 1) * this.config.batch;
    return {
      step,
      loss,
      gradientNorm,
      updateNorm,
      parameterNorm,
      learningRate: multiplier * this.optimizer.learningRate,
      logitScale: Math.exp(logitScale),
      logitBias,
      pairsSeen: (step + 1) * pairs,
      pairsPerSecond: pairs / ((performance.now() - began) / 1000),
      ...(curation === undefined ? {} : { curation }),
    };
  }

  private async nextBatches(onSelection: TrainOptions['onSelection']): Promise<{
    readonly batches: readonly HostPairs[];
    readonly curation?: CurationMetrics;
  }> {
    const { microBatches = 1, batch } = this.config;
    if (this.curator !== undefined) {
      const candidates = await this.stream.next();
      const selection = await this.curator.select(this.state.parameters, candidates, this.nextStep);
      onSelection?.(selection);
      return { batches: this.split(this.admit(selection.batch)), curation: selection.metrics };
    }
    if (microBatchOf(this.config) < batch) {
      return { batches: this.split(this.admit(await this.stream.next())) };
    }
    const batches: HostPairs[] = [];
    for (let i = 0; i < microBatches; i++) batches.push(this.admit(await this.stream.next()));
    return { batches };
  }

  private split(pairs: HostPairs): readonly HostPairs[] {
    const { batch } = this.config;
    const rows = microBatchOf(this.config);
    return Array.from({ length: batch / rows }, (_, i) =>
      pairRange(pairs, batch, i * rows, (i + 1) * rows),
    );
  }

  private admit(batch: Batch): HostPairs {
    const { model, batch: pairs, pixelTable } = this.config;
    return hostPairs(batch, model, pairs, pixelTable);
  }
}

// Pairs of one run of the towers.
function microBatchOf({
  batch,
  microBatch = batch,
  microBatches = 1,
  curation,
}: TrainerConfig): number {
  if (!Number.isSafeInteger(microBatch) || microBatch < 1 || batch % microBatch !== 0) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `train: microBatch must be a divisor of the batch ${String(batch)}, got ${String(microBatch)}`,
    );
  }
  if (microBatches !== 1 && (microBatch !== batch || curation !== undefined)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `train: microBatches must be 1 with microBatch or curation, got ${String(microBatches)}`,
    );
  }
  return microBatch;
}

function compileTrainStep(
  config: TrainerConfig,
  microBatch: number,
  device: Device,
  precision: ComputeDType,
): TrainStep {
  const { model, batch, microBatches, optimizer, checkpointActivations } = config;
  const common = {
    model,
    batch: microBatch,
    optimizer: optimizer ?? defaultOptimizer,
    checkpoint: checkpointActivations ?? false,
    device,
    precision,
  };
  return microBatch === batch
    ? compileTwoTowersStep({ ...common, microBatches: microBatches ?? 1 })
    : compileTwoTowersCachedStep({ ...common, microBatches: batch / microBatch });
}

function checkpointFolder({ folder }: TrainerConfig): string {
  return join(folder, 'checkpoints');
}

function metricsPath({ folder }: TrainerConfig): string {
  return join(folder, 'metrics.jsonl');
}

function freshState(
  { model, seed, initialLogits }: TrainerConfig,
  device: Device,
): TrainingState<DeviceArray> {
  const parameters = twoTowersParameters<DeviceArray>(
    model,
    (spec) => DeviceArray.from(initialValues(spec, seed ?? 0), spec.shape, device),
    initialLogits,
  );
  const zeros = (): Parameters =>
    mapTree<Parameters, DeviceArray, DeviceArray>(parameters, (array: Spec) =>
      DeviceArray.zeros(array, device),
    );
  return { parameters, moments: { m: zeros(), v: zeros() } };
}

function treeBytes(tree: unknown): number {
  return flatten(tree).reduce((sum, { leaf }) => sum + (leaf as DeviceArray).bytes, 0);
}

async function readScalar(array: DeviceArray): Promise<number> {
  return (await array.read())[0];
}

async function takeScalar(array: DeviceArray): Promise<number> {
  try {
    return await readScalar(array);
  } finally {
    array.dispose();
  }
}

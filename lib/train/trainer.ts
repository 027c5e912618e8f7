// The training loop: batches in, updated weights out, a log line per step, a checkpoint now and then.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Device } from '../array';
import { DeviceArray, resolveDevice } from '../array';
import type { Batch, Stream } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType, Spec } from '../graph';
import { disposeArrays, mapTree } from '../graph';
import type { InitialLogits, ModelConfig, TwoTowersParameters } from '../model';
import { initialValues, twoTowersParameters } from '../model';
import type { TrainingState } from './checkpoint';
import { latestCheckpoint, loadTraining, saveTraining } from './checkpoint';
import type { StepMetrics } from './metrics';
import { MetricsLog, keepMetricsBefore } from './metrics';
import type { OptimizerConfig } from './optimizer';
import { defaultOptimizer, scheduleInput } from './optimizer';
import type { ScheduleConfig } from './schedule';
import { cosineSchedule } from './schedule';
import type { PairBatch, TwoTowersStep } from './two_towers';
import { compileTwoTowersStep } from './two_towers';

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
  /** Pairs of a micro-batch; the stream must give batches of this size. */
  readonly batch: number;
  /** Micro-batches of a step. Default 1. */
  readonly microBatches?: number;
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
  /** Ends the run after the current step, with a checkpoint. */
  readonly signal?: AbortSignal;
}

type Parameters = TwoTowersParameters<DeviceArray>;

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
    private readonly program: TwoTowersStep,
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
    mkdirSync(checkpointFolder(config), { recursive: true });
    const program = compileTwoTowersStep({
      model: config.model,
      batch: config.batch,
      microBatches: config.microBatches ?? 1,
      optimizer: config.optimizer ?? defaultOptimizer,
      checkpoint: config.checkpointActivations ?? false,
      device,
      precision,
    });
    try {
      const path = await latestCheckpoint(checkpointFolder(config));
      if (path === undefined) {
        keepMetricsBefore(metricsPath(config), 0);
        return new Trainer(config, stream, program, freshState(config, device), 0, device);
      }
      const { state, position } = await loadTraining(path, config.model, device);
      await stream.restore(position.data);
      keepMetricsBefore(metricsPath(config), position.step);
      return new Trainer(config, stream, program, state, position.step, device);
    } catch (error) {
      program.dispose();
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
    return this.program.memory.peakBytes;
  }

  /**
   * Trains to the end of the schedule, or until the signal.
   *
   * @returns whether the schedule's end was reached.
   * @throws ERR_NOT_FINITE naming the step whose loss or norms are not finite; the last checkpoint
   * is that of an earlier step. ERR_DATA when the stream's batches do not fit.
   */
  async train({ onStep, signal }: TrainOptions = {}): Promise<boolean> {
    const { totalSteps } = this.config.schedule;
    const log = new MetricsLog(metricsPath(this.config));
    try {
      while (this.nextStep < totalSteps) {
        if (signal?.aborted === true) break;
        const metrics = await this.trainStep();
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

  /** Frees weights, optimizer state and program. The stream stays open: it is the caller's. */
  dispose(): void {
    this.program.dispose();
    disposeArrays(this.state);
  }

  private async trainStep(): Promise<StepMetrics> {
    const began = performance.now();
    const step = this.nextStep;
    const multiplier = cosineSchedule(step, this.config.schedule);
    const batches: PairBatch<Float32Array | Int32Array | Uint8Array>[] = [];
    for (let i = 0; i < (this.config.microBatches ?? 1); i++) {
      batches.push(this.admit(await this.stream.next()));
    }
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
    const pairs = batches.length * this.config.batch;
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
    };
  }

  private admit(batch: Batch): PairBatch<Float32Array | Int32Array | Uint8Array> {
    const { model, batch: size, pixelTable } = this.config;
    const { images, tokens } = batch;
    const side = model.vision.layout === 'fixed' ? model.vision.imageSize : batch.size;
    const pixels = size * side * side * 3;
    const ids = size * model.text.length;
    if (batch.size !== side || images.length !== pixels || tokens?.length !== ids) {
      throw new SiglipError(
        'ERR_DATA',
        `train: a batch must hold ${String(size)} images of ${String(side)} pixels a side and ${String(ids)} token ids, ` +
          `got ${String(images.length)} bytes at ${String(batch.size)} pixels and ${String(tokens?.length ?? 0)} ids`,
      );
    }
    return { images: { pixels: images, table: pixelTable }, texts: tokens };
  }
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

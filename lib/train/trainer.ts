// The training loop: batches in, updated weights out, a log line per step, a checkpoint now and then.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Device, HostArray } from '../array';
import { DeviceArray, resolveDevice } from '../array';
import { broadcastText, evenParts } from '../comm';
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
import type { StepScalars } from './step';
import type { RanksConfig } from './step_over_ranks';
import { StepOverRanks } from './step_over_ranks';
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
  /**
   * Pairs of a micro-batch; the stream must give batches of this size. Over ranks: of the batch of all,
   * of which the stream must give each rank its rows, see {@link rowsOfRank}.
   */
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
  /**
   * The ranks that share the run. All are given the same configuration but for this member's place, and
   * a folder that all of them see; only rank 0 writes. A checkpoint can be continued by any number of
   * ranks. Default: this process alone.
   */
  readonly ranks?: RanksConfig | undefined;
}

/** Rows [from, to) of a batch that a rank works. */
export function rowsOfRank(batch: number, rank: number, size: number): [from: number, to: number] {
  const parts = evenParts(batch, size);
  return [parts[rank], parts[rank + 1]];
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
    private readonly program: TwoTowersStep | StepOverRanks,
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
    const first = (config.ranks?.comm.rank ?? 0) === 0;
    if (first) mkdirSync(checkpointFolder(config), { recursive: true });
    const newest = await startingCheckpoint(config);
    const { state, position } =
      newest === undefined
        ? { state: freshState(config, device), position: undefined }
        : await loadTraining(newest, config.model, device);
    try {
      if (position !== undefined) await stream.restore(position.data);
      const step = position?.step ?? 0;
      if (first) keepMetricsBefore(metricsPath(config), step);
      const program = await makeStep(config, state, device, precision);
      return new Trainer(config, stream, program, state, step, device);
    } catch (error) {
      disposeArrays(state);
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
    return this.program instanceof StepOverRanks
      ? this.program.peakBytes
      : this.program.memory.peakBytes;
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
    const log = this.rank === 0 ? new MetricsLog(metricsPath(this.config)) : undefined;
    try {
      while (this.nextStep < totalSteps) {
        if (await this.stopped(signal)) break;
        const metrics = await this.trainStep();
        log?.append(metrics);
        onStep?.(metrics);
        const every = this.config.checkpointEvery ?? 0;
        if (every > 0 && this.nextStep % every === 0 && this.nextStep < totalSteps)
          await this.save();
      }
    } finally {
      log?.close();
    }
    await this.save();
    return this.nextStep >= totalSteps;
  }

  /** Writes a checkpoint of the current position. */
  async save(): Promise<void> {
    const write = (state: TrainingState<DeviceArray>): Promise<void> =>
      saveTraining(
        checkpointFolder(this.config),
        this.config.model,
        state,
        { step: this.nextStep, data: this.stream.state() },
        this.config.keepCheckpoints ?? 2,
      );
    await (this.program instanceof StepOverRanks ? this.program.save(write) : write(this.state));
  }

  /** Frees weights, optimizer state and program. The stream stays open: it is the caller's. */
  dispose(): void {
    this.program.dispose();
    disposeArrays(this.state);
  }

  private get rank(): number {
    return this.config.ranks?.comm.rank ?? 0;
  }

  /** Whether the run is to end here: of all ranks, if one of them is told so. */
  private async stopped(signal: AbortSignal | undefined): Promise<boolean> {
    const stop = signal?.aborted === true;
    if (this.config.ranks === undefined) return stop;
    const votes = Float32Array.of(stop ? 1 : 0);
    await this.config.ranks.comm.allReduce(votes);
    return votes[0] > 0;
  }

  private async trainStep(): Promise<StepMetrics> {
    const began = performance.now();
    const step = this.nextStep;
    const multiplier = cosineSchedule(step, this.config.schedule);
    const batches: PairBatch<HostArray>[] = [];
    for (let i = 0; i < (this.config.microBatches ?? 1); i++) {
      batches.push(this.admit(await this.stream.next()));
    }
    const { parameters } = this.state;
    const { loss, gradientNorm, updateNorm, parameterNorm } = await this.runStep(
      batches,
      scheduleInput(multiplier, step, this.optimizer),
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

  private async runStep(
    batches: readonly PairBatch<HostArray>[],
    schedule: Float32Array,
  ): Promise<StepScalars<number>> {
    if (this.program instanceof StepOverRanks) return this.program.run(schedule, batches[0]);
    const { parameters, moments } = this.state;
    const outputs = await this.program.run({ parameters, state: moments, schedule, batches });
    const [loss, gradientNorm, updateNorm, parameterNorm] = await Promise.all(
      [outputs.loss, outputs.gradientNorm, outputs.updateNorm, outputs.parameterNorm].map(
        takeScalar,
      ),
    );
    return { loss, gradientNorm, updateNorm, parameterNorm };
  }

  private admit(batch: Batch): PairBatch<HostArray> {
    const { model, pixelTable, ranks } = this.config;
    const [from, to] = rowsOfRank(this.config.batch, this.rank, ranks?.comm.size ?? 1);
    const size = to - from;
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

/** The checkpoint a run continues; which that is, rank 0 says. */
async function startingCheckpoint(config: TrainerConfig): Promise<string | undefined> {
  const { ranks } = config;
  if (ranks === undefined) return latestCheckpoint(checkpointFolder(config));
  const { comm } = ranks;
  const newest = comm.rank === 0 ? await latestCheckpoint(checkpointFolder(config)) : undefined;
  const path = await broadcastText(comm, newest ?? '', 0);
  return path === '' ? undefined : path;
}

async function makeStep(
  config: TrainerConfig,
  state: TrainingState<DeviceArray>,
  device: Device,
  precision: ComputeDType,
): Promise<TwoTowersStep | StepOverRanks> {
  const { model, batch, microBatches = 1, ranks } = config;
  const optimizer = config.optimizer ?? defaultOptimizer;
  const checkpoint = config.checkpointActivations ?? false;
  if (ranks === undefined) {
    const alone = { model, batch, microBatches, optimizer, checkpoint, device, precision };
    return compileTwoTowersStep(alone);
  }
  if (microBatches !== 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `train: microBatches must be 1 over ranks, got ${String(microBatches)}`,
    );
  }
  const { size } = ranks.comm;
  const rows = Array.from({ length: size }, (_, rank) => {
    const [from, to] = rowsOfRank(batch, rank, size);
    return to - from;
  });
  return StepOverRanks.create(
    { ...ranks, model, rows, optimizer, checkpoint, device, precision },
    state,
  );
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

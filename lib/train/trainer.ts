// The training loop: batches in, updated weights out, a log line per step, a checkpoint now and then.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Device, DeviceArray } from '../array';
import { resolveDevice } from '../array';
import type { Batch, Stream } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType, Spec } from '../graph';
import { disposeArrays } from '../graph';
import type { InitialLogits } from '../model';
import type { MomentsEntry, TrainingPosition, TrainingState } from './checkpoint';
import { latestCheckpoint, loadTraining, saveTraining } from './checkpoint';
import type { Inheritance } from './inherit';
import { freshState, inheritedState } from './inherit';
import type { StepMetrics } from './metrics';
import { MetricsLog, keepMetricsBefore } from './metrics';
import type { AdmittedBatch, Averages, Objective, StepBatch, TrainedParameters } from './objective';
import { wholeStep } from './objective';
import type { OptimizerConfig } from './optimizer';
import { defaultOptimizer, scheduleInput } from './optimizer';
import type { ScheduleConfig, ScheduleRange } from './schedule';
import { ScheduleProgress } from './schedule';
import type { StepProgram } from './step';
import { compileStep } from './step';

export interface TrainerConfig {
  /** What is trained and by which losses. */
  readonly objective: Objective;
  /** Run folder: `metrics.jsonl` and `checkpoints/` are kept there. */
  readonly folder: string;
  /** Where the run's weights are and its steps run. Default `'auto'`: a GPU where there is one. */
  readonly device?: 'auto' | Device;
  /**
   * In what activations are held and multiplied. Default `'float32'`. `'bfloat16'` needs a GPU; master
   * weights, their gradients, the loss and Adam stay float32, and so do checkpoints.
   */
  readonly precision?: ComputeDType;
  /** Micro-batches of a step; the stream gives so many for each. Default 1. */
  readonly microBatches?: number;
  /** Optimizer steps and warm-up. */
  readonly schedule: ScheduleConfig;
  /** The part of the schedule that this run covers. Default all of it. */
  readonly range?: ScheduleRange;
  /** Default {@link defaultOptimizer}. */
  readonly optimizer?: OptimizerConfig;
  /** Seed of the initial weights. Default 0. */
  readonly seed?: number;
  readonly initialLogits?: InitialLogits;
  /** What a run that has no checkpoint of its own begins with. Default: initial weights. */
  readonly inherit?: (device: Device) => Promise<Inheritance>;
  /** Steps between checkpoints; 0 for none but the last. Default 0. */
  readonly checkpointEvery?: number;
  /** Checkpoints that stay. Default 2. */
  readonly keepCheckpoints?: number;
  /**
   * What becomes of a step whose loss or norms are not finite. `'stop'` (default): the run ends with
   * ERR_NOT_FINITE. `'skip'`: the run goes on; so many in a row as {@link MOST_SKIPPED} end it. In either
   * the step changes no weight.
   */
  readonly notFinite?: 'stop' | 'skip';
}

export interface TrainOptions {
  /** Called after every step. */
  readonly onStep?: (metrics: StepMetrics) => void;
  /** Ends the run after the current step, with a checkpoint. */
  readonly signal?: AbortSignal;
}

type Program = StepProgram<TrainedParameters<Spec>, Averages<Spec>, StepBatch<Spec>>;

/** Steps in a row that are not finite and may be skipped. */
export const MOST_SKIPPED = 10;

/**
 * A training run: weights, optimizer state and position. Resumed from a checkpoint it continues bit
 * for bit.
 *
 * @example
 * const objective = pairObjective({ model, batch, pixelTable });
 * const trainer = await Trainer.start({ objective, folder, schedule }, stream);
 * await trainer.train({ onStep: ({ step, loss }) => console.log(step, loss) });
 * await saveCheckpoint(folder, { config: model, parameters: trainer.parameters });
 * trainer.dispose();
 */
export class Trainer {
  private readonly optimizer: OptimizerConfig;
  private skipped = 0;

  private constructor(
    private readonly config: TrainerConfig,
    private readonly stream: Stream<Batch>,
    private readonly progress: ScheduleProgress,
    private readonly programs: ReadonlyMap<string, Program>,
    private readonly state: TrainingState<DeviceArray>,
    private position: Omit<TrainingPosition, 'data'>,
    /** Where the weights are and the steps run. */
    readonly device: Device,
  ) {
    this.optimizer = config.optimizer ?? defaultOptimizer;
  }

  /**
   * Begins a run, or continues the one in the folder from its latest checkpoint.
   *
   * @param stream - batches that the objective admits.
   * @throws ERR_CONFIG, ERR_ARGUMENT; ERR_WEIGHTS for a checkpoint that is damaged or of another run;
   * ERR_DEVICE for a device that is not here, or a precision that it does not have.
   */
  static async start(config: TrainerConfig, stream: Stream<Batch>): Promise<Trainer> {
    const progress = new ScheduleProgress(config.schedule, config.range);
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
    const { state, position } = await begin(config, stream, device);
    try {
      const programs = compileForms(config, Object.keys(position.entered), device, precision);
      keepMetricsBefore(metricsPath(config), position.step);
      return new Trainer(config, stream, progress, programs, state, position, device);
    } catch (error) {
      disposeArrays(state);
      throw error;
    }
  }

  /** What it trains. */
  get objective(): Objective {
    return this.config.objective;
  }

  /** The weights, updated in place by every step. */
  get parameters(): TrainedParameters<DeviceArray> {
    return this.state.parameters;
  }

  /** The averages that follow them. */
  get averages(): Averages<DeviceArray> {
    return this.state.averages;
  }

  /** Zero-based index of the next step, counted from the first run that it inherits from. */
  get step(): number {
    return this.position.step;
  }

  /** Bytes the run needs on its device at its peak, weights and optimizer state included. */
  get peakBytes(): number {
    return Math.max(...[...this.programs.values()].map(({ memory }) => memory.peakBytes));
  }

  /**
   * Trains to the end of the schedule, or until the signal.
   *
   * @returns whether the schedule's end was reached.
   * @throws ERR_NOT_FINITE naming the step whose loss or norms are not finite; the last checkpoint
   * is that of an earlier step. ERR_DATA when the stream's batches do not fit.
   */
  async train({ onStep, signal }: TrainOptions = {}): Promise<boolean> {
    const every = this.config.checkpointEvery ?? 0;
    const log = new MetricsLog(metricsPath(this.config));
    try {
      while (!this.isOver()) {
        if (signal?.aborted === true) break;
        const metrics = await this.trainStep();
        log.append(metrics);
        onStep?.(metrics);
        if (every > 0 && this.step % every === 0 && !this.isOver()) await this.save();
      }
    } finally {
      log.close();
    }
    await this.save();
    return this.isOver();
  }

  /** Writes a checkpoint of the current position. */
  async save(): Promise<void> {
    await saveTraining(
      checkpointFolder(this.config),
      this.config.objective,
      this.state,
      { ...this.position, data: this.stream.state() },
      this.config.keepCheckpoints ?? 2,
    );
  }

  /** Frees weights, optimizer state and programs. The stream stays open: it is the caller's. */
  dispose(): void {
    for (const program of this.programs.values()) program.dispose();
    disposeArrays(this.state);
  }

  private isOver(): boolean {
    return this.progress.isOver(this.position.updates);
  }

  private async trainStep(): Promise<StepMetrics> {
    const began = performance.now();
    const { step, updates, pairs: pairsBefore, entered } = this.position;
    const multiplier = this.progress.multiplier(updates);
    const { form, batches } = await this.nextBatches();
    const waited = performance.now() - began;
    const { parameters, moments, averages } = this.state;
    const scheduleFrom = ({ m, v }: MomentsEntry): Float32Array =>
      scheduleInput(multiplier, { m: step - m, v: step - v }, this.optimizer);
    const outputs = await this.program(form).run({
      parameters,
      state: moments,
      averages,
      schedule: scheduleFrom({ m: 0, v: 0 }),
      entered: Object.fromEntries(
        Object.entries(entered).map(([path, first]) => [path, scheduleFrom(first)]),
      ),
      batches: batches.map(({ inputs }) => inputs),
    });
    const [loss, gradientNorm, updateNorm, parameterNorm] = await Promise.all(
      [outputs.loss, outputs.gradientNorm, outputs.updateNorm, outputs.parameterNorm].map(
        takeScalar,
      ),
    );
    const terms: Record<string, number> = {};
    for (const [name, term] of Object.entries(outputs.terms)) terms[name] = await takeScalar(term);
    const [logitScale, logitBias] = await Promise.all(
      [parameters.logitScale, parameters.logitBias].map(readScalar),
    );
    const scalars = { loss, gradientNorm, updateNorm, parameterNorm };
    const finite = Object.values(scalars).every(Number.isFinite);
    this.expectFinite(step, scalars, finite);
    const pairs = batches.reduce((sum, batch) => sum + batch.pairs, 0);
    const full = this.config.objective.batch * batches.length;
    this.position = {
      step: step + 1,
      updates: updates + pairs / full,
      pairs: pairsBefore + pairs,
      entered,
    };
    return {
      step,
      loss,
      ...(Object.keys(terms).length === 0 ? {} : { terms }),
      gradientNorm,
      updateNorm,
      parameterNorm,
      ...(finite ? {} : { skipped: true }),
      learningRate: multiplier * this.optimizer.learningRate,
      logitScale: Math.exp(logitScale),
      logitBias,
      pairsSeen: this.position.pairs,
      pairsPerSecond: pairs / ((performance.now() - began) / 1000),
      dataShare: waited / (performance.now() - began),
    };
  }

  // What is not finite has changed no weight: Adam takes no step of such a norm.
  private expectFinite(step: number, scalars: Record<string, number>, finite: boolean): void {
    this.skipped = finite ? 0 : this.skipped + 1;
    if (finite || (this.config.notFinite === 'skip' && this.skipped <= MOST_SKIPPED)) return;
    const got = Object.entries(scalars).map(([name, value]) => `${name} ${String(value)}`);
    throw new SiglipError(
      'ERR_NOT_FINITE',
      `train: loss and norms of step ${String(step)} must be finite, got ${got.join(', ')}\n` +
        'to do: resume from the last checkpoint with a lower learning rate, or look at the data of this step',
    );
  }

  private async nextBatches(): Promise<{ form: string; batches: AdmittedBatch[] }> {
    const batches: AdmittedBatch[] = [];
    for (let i = 0; i < (this.config.microBatches ?? 1); i++) {
      batches.push(this.config.objective.admit(await this.stream.next()));
    }
    const forms = [...new Set(batches.map(({ form }) => form))];
    if (forms.length !== 1) {
      throw new SiglipError(
        'ERR_DATA',
        `train: micro-batches of a step must be of one form, got ${forms.join(', ')}`,
      );
    }
    return { form: forms[0], batches };
  }

  private program(form: string): Program {
    const program = this.programs.get(form);
    if (program !== undefined) return program;
    throw new SiglipError(
      'ERR_DATA',
      `train: form of a batch must be one of ${[...this.programs.keys()].join(', ')}, got ${form}`,
    );
  }
}

// The state of a run: as its latest checkpoint has it, inherited, or new.
async function begin(
  config: TrainerConfig,
  stream: Stream<Batch>,
  device: Device,
): Promise<{ state: TrainingState<DeviceArray>; position: Omit<TrainingPosition, 'data'> }> {
  const { objective } = config;
  const path = await latestCheckpoint(checkpointFolder(config));
  if (path !== undefined) {
    const { state, position } = await loadTraining(path, objective, device);
    try {
      const { data, ...rest } = position;
      await stream.restore(data);
      return { state, position: rest };
    } catch (error) {
      disposeArrays(state);
      throw error;
    }
  }
  if (config.inherit !== undefined) {
    return inheritedState(objective, await config.inherit(device), config.seed ?? 0, device);
  }
  return {
    state: freshState(objective, config.seed ?? 0, config.initialLogits, device),
    position: { step: 0, updates: 0, pairs: 0, entered: {} },
  };
}

function compileForms(
  { objective, microBatches = 1, optimizer = defaultOptimizer }: TrainerConfig,
  entered: readonly string[],
  device: Device,
  precision: ComputeDType,
): ReadonlyMap<string, Program> {
  const programs = new Map<string, Program>();
  try {
    for (const form of objective.forms) {
      const step = objective.step(form);
      programs.set(
        form,
        compileStep({ ...wholeStep(step), microBatches, optimizer, entered, device, precision }),
      );
    }
    return programs;
  } catch (error) {
    for (const program of programs.values()) program.dispose();
    throw error;
  }
}

function checkpointFolder({ folder }: TrainerConfig): string {
  return join(folder, 'checkpoints');
}

function metricsPath({ folder }: TrainerConfig): string {
  return join(folder, 'metrics.jsonl');
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

// The training loop: batches in, updated weights out, a log line per step, a checkpoint now and then.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Device, DeviceArray } from '../array';
import { resolveDevice } from '../array';
import type { Communicator } from '../comm';
import { broadcastText, evenParts, gatherTexts } from '../comm';
import type { Batch, Stream, StreamState } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType, HostArray, Spec } from '../graph';
import { disposeArrays, flatten } from '../graph';
import type { InitialLogits } from '../model';
import { compileCachedStep } from './cached_step';
import type { LazyArray, MomentsEntry, TrainingPosition, TrainingState } from './checkpoint';
import { latestCheckpoint, loadTraining, placedOn, saveTraining } from './checkpoint';
import type { CurationConfig, CurationMetrics, Selection } from './curation';
import { Curator } from './curation';
import type { Inheritance } from './inherit';
import { freshState, inheritedState } from './inherit';
import type { StepMetrics } from './metrics';
import { MetricsLog, keepMetricsBefore } from './metrics';
import type { AdmittedBatch, Averages, Objective, StepBatch, TrainedParameters } from './objective';
import { wholeStep } from './objective';
import type { OptimizerConfig } from './optimizer';
import { defaultOptimizer, scheduleInput } from './optimizer';
import { batchRange } from './pairs';
import type { ScheduleConfig, ScheduleRange } from './schedule';
import { ScheduleProgress } from './schedule';
import type { Step, StepScalars } from './step';
import { compileStep } from './step';
import type { WholeWeights } from './state_over_ranks';
import type { RanksConfig } from './step_over_ranks';
import { placedOverRanks, StepOverRanks } from './step_over_ranks';

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
  /**
   * Pairs of one run of the towers, a divisor of the objective's batch. Where it is smaller, the towers run
   * twice over micro-batches and the loss still takes all pairs of the batch: the same step to rounding,
   * in the memory of a micro-batch (see {@link compileCachedStep}). Default: the whole batch.
   */
  readonly microBatch?: number | undefined;
  /**
   * Batches of a step, losses and gradients averaged: negatives are not shared between them. Default 1,
   * the only choice with `microBatch` or `curation`.
   */
  readonly microBatches?: number;
  /**
   * Which pairs of a larger batch a step trains on; the stream gives batches of {@link superBatch}.
   * Default: the stream's batches as they come.
   */
  readonly curation?: CurationConfig | undefined;
  /**
   * The ranks the run is spread over, each of which starts it with the same configuration and a stream
   * that gives its rows of every batch, or super-batch ({@link rowsOfRank}). Rank 0 writes the files.
   * `microBatch` is then of each rank. Without `microBatches`; with `curation` the ranks have whole
   * parameters.
   */
  readonly ranks?: RanksConfig | undefined;
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
  /** Called with every selection of a run with curation, before its step. */
  readonly onSelection?: ((selection: Selection) => void) | undefined;
  /** Ends the run after the current step, with a checkpoint. */
  readonly signal?: AbortSignal;
}

type TrainStep = Step<TrainedParameters<Spec>, Averages<Spec>, StepBatch<Spec>>;

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
  private gathered: WholeWeights | undefined;

  private constructor(
    private readonly config: TrainerConfig,
    private readonly stream: Stream<Batch>,
    private readonly progress: ScheduleProgress,
    private readonly programs: ReadonlyMap<string, TrainStep>,
    private readonly overRanks: StepOverRanks | undefined,
    private readonly curator: Curator | undefined,
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
    const microBatch = microBatchOf(config);
    const isFirst = (config.ranks?.comm.rank ?? 0) === 0;
    if (isFirst) mkdirSync(checkpointFolder(config), { recursive: true });
    const { state, position } = await begin(config, stream, device);
    let programs: ReadonlyMap<string, TrainStep> = new Map();
    try {
      const entered = Object.keys(position.entered);
      const overRanks = await stepOverRanks(config, entered, state, device, precision);
      if (overRanks === undefined) programs = compileForms(config, entered, device, precision);
      const curator = curatorOf(config, microBatch, device, precision);
      if (isFirst) keepMetricsBefore(metricsPath(config), position.step);
      return new Trainer(
        config,
        stream,
        progress,
        programs,
        overRanks,
        curator,
        state,
        position,
        device,
      );
    } catch (error) {
      disposeArrays(state);
      for (const program of programs.values()) program.dispose();
      throw error;
    }
  }

  /** What it trains. */
  get objective(): Objective {
    return this.config.objective;
  }

  /**
   * The weights, updated in place by every step.
   *
   * @throws ERR_ARGUMENT where ranks have parts of them alone, but after {@link gather} on rank 0.
   */
  get parameters(): TrainedParameters<DeviceArray> {
    return this.whole.parameters;
  }

  /** The averages that follow them. @throws as {@link parameters} */
  get averages(): Averages<DeviceArray> {
    return this.whole.averages;
  }

  /**
   * Has weights and averages whole on rank 0 until the next step, where ranks have parts of them alone.
   * All ranks call it.
   */
  async gather(): Promise<void> {
    this.gathered?.dispose();
    this.gathered = await this.overRanks?.gatheredAtRoot();
  }

  /** Zero-based index of the next step, counted from the first run that it inherits from. */
  get step(): number {
    return this.position.step;
  }

  /** Bytes the run needs on its device at its peak, weights and optimizer state included. */
  get peakBytes(): number {
    const curating =
      this.curator === undefined
        ? 0
        : this.curator.peakBytes + 2 * treeBytes(this.state.parameters);
    if (this.overRanks !== undefined) return Math.max(curating, this.overRanks.peakBytes);
    return Math.max(curating, ...[...this.programs.values()].map(({ memory }) => memory.peakBytes));
  }

  /**
   * Trains to the end of the schedule, or until the signal.
   *
   * @returns whether the schedule's end was reached.
   * @throws ERR_NOT_FINITE naming the step whose loss or norms are not finite; the last checkpoint
   * is that of an earlier step. ERR_DATA when the stream's batches do not fit.
   */
  async train({ onStep, onSelection, signal }: TrainOptions = {}): Promise<boolean> {
    const every = this.config.checkpointEvery ?? 0;
    const log = this.rank === 0 ? new MetricsLog(metricsPath(this.config)) : undefined;
    try {
      while (!this.isOver()) {
        if (await this.stopped(signal)) break;
        const metrics = await this.trainStep(onSelection);
        log?.append(metrics);
        onStep?.(metrics);
        if (every > 0 && this.step % every === 0 && !this.isOver()) await this.save();
      }
    } finally {
      log?.close();
    }
    await this.save();
    return this.isOver();
  }

  /** Writes a checkpoint of the current position. */
  async save(): Promise<void> {
    const data = await stateOverRanks(this.stream.state(), this.config.ranks?.comm);
    const write = (state: TrainingState<DeviceArray | LazyArray>): Promise<void> =>
      saveTraining(
        checkpointFolder(this.config),
        this.config.objective,
        state,
        { ...this.position, data },
        this.config.keepCheckpoints ?? 2,
      );
    await (this.overRanks === undefined ? write(this.state) : this.overRanks.save(write));
  }

  /** Frees weights, optimizer state and programs. Stream and reference stay open: they are the caller's. */
  dispose(): void {
    for (const program of this.programs.values()) program.dispose();
    this.gathered?.dispose();
    this.overRanks?.dispose();
    this.curator?.dispose();
    disposeArrays(this.state);
  }

  private get whole(): Pick<WholeWeights, 'parameters' | 'averages'> {
    if (this.config.ranks?.shard !== 'parameters') return this.state;
    if (this.gathered !== undefined) return this.gathered;
    throw new SiglipError(
      'ERR_ARGUMENT',
      'train: weights must be gathered on rank 0 before they are read, got parts of them\n' +
        'to do: call gather() on all ranks first',
    );
  }

  private isOver(): boolean {
    return this.progress.isOver(this.position.updates);
  }

  private async trainStep(onSelection: TrainOptions['onSelection']): Promise<StepMetrics> {
    const began = performance.now();
    const { step, updates, pairs: pairsBefore, entered } = this.position;
    const multiplier = this.progress.multiplier(updates);
    const { form, batches, pairs, waited, curation } = await this.nextBatches(onSelection);
    this.gathered?.dispose();
    this.gathered = undefined;
    const logits = this.overRanks?.logits ?? this.state.parameters;
    const result = await this.runStep(form, batches, multiplier);
    const { loss, terms, gradientNorm, updateNorm, parameterNorm } = result;
    const [logitScale, logitBias] = await Promise.all(
      [logits.logitScale, logits.logitBias].map(readScalar),
    );
    const scalars = { loss, gradientNorm, updateNorm, parameterNorm };
    const finite = Object.values(scalars).every(Number.isFinite);
    this.expectFinite(step, scalars, finite);
    const full = this.config.objective.batch * (this.config.microBatches ?? 1);
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
      ...(curation === undefined ? {} : { curation }),
    };
  }

  private async runStep(
    form: string,
    batches: readonly StepBatch<HostArray>[],
    multiplier: number,
  ): Promise<StepScalars<number>> {
    const { step, entered } = this.position;
    const scheduleFrom = ({ m, v }: MomentsEntry): Float32Array =>
      scheduleInput(multiplier, { m: step - m, v: step - v }, this.optimizer);
    const schedules = {
      all: scheduleFrom({ m: 0, v: 0 }),
      entered: Object.fromEntries(
        Object.entries(entered).map(([path, first]) => [path, scheduleFrom(first)]),
      ),
    };
    if (this.overRanks !== undefined) return this.overRanks.run(form, schedules, batches[0]);
    const { parameters, moments, averages } = this.state;
    const outputs = await this.program(form).run({
      parameters,
      state: moments,
      averages,
      schedule: schedules.all,
      entered: schedules.entered,
      batches,
    });
    const [loss, gradientNorm, updateNorm, parameterNorm] = await Promise.all(
      [outputs.loss, outputs.gradientNorm, outputs.updateNorm, outputs.parameterNorm].map(
        takeScalar,
      ),
    );
    const terms: Record<string, number> = {};
    for (const [name, term] of Object.entries(outputs.terms)) terms[name] = await takeScalar(term);
    return { loss, terms, gradientNorm, updateNorm, parameterNorm };
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

  private async nextBatches(onSelection: TrainOptions['onSelection']): Promise<NextBatches> {
    const { objective, microBatches = 1, ranks } = this.config;
    const began = performance.now();
    if (ranks !== undefined) {
      const { rank, size } = ranks.comm;
      const given = await this.stream.next();
      const waited = performance.now() - began;
      const { parameters } = this.state;
      const selection = await this.curator?.select(parameters, given, this.position.step);
      if (selection !== undefined) onSelection?.(selection);
      const { form, pairs, inputs } = objective.admit(selection?.batch ?? given, (all) => {
        const [from, to] = rowsOfRank(all, rank, size);
        return to - from;
      });
      const chosen = selection === undefined ? {} : { curation: selection.metrics };
      return { form, batches: [inputs], pairs, waited, ...chosen };
    }
    if (this.curator !== undefined) {
      const candidates = await this.stream.next();
      const waited = performance.now() - began;
      const { parameters } = this.state;
      const selection = await this.curator.select(parameters, candidates, this.position.step);
      onSelection?.(selection);
      const admitted = objective.admit(selection.batch);
      return { ...this.split(admitted), waited, curation: selection.metrics };
    }
    if (microBatches === 1) {
      const batch = await this.stream.next();
      const waited = performance.now() - began;
      return { ...this.split(objective.admit(batch)), waited };
    }
    const admitted: AdmittedBatch[] = [];
    for (let i = 0; i < microBatches; i++) admitted.push(objective.admit(await this.stream.next()));
    const waited = performance.now() - began;
    const forms = [...new Set(admitted.map(({ form }) => form))];
    if (forms.length !== 1) {
      throw new SiglipError(
        'ERR_DATA',
        `train: batches of a step must be of one form, got ${forms.join(', ')}`,
      );
    }
    return {
      form: forms[0],
      batches: admitted.map(({ inputs }) => inputs),
      pairs: admitted.reduce((sum, batch) => sum + batch.pairs, 0),
      waited,
    };
  }

  // What the towers run over: the batch, or its micro-batches.
  private split({ form, pairs, inputs }: AdmittedBatch): Omit<NextBatches, 'waited'> {
    const rows = microBatchOf(this.config);
    const batches =
      rows === this.config.objective.batch
        ? [inputs]
        : Array.from({ length: pairs / rows }, (_, i) =>
            batchRange(inputs, pairs, i * rows, (i + 1) * rows),
          );
    return { form, pairs, batches };
  }

  private program(form: string): TrainStep {
    const program = this.programs.get(form);
    if (program !== undefined) return program;
    throw new SiglipError(
      'ERR_DATA',
      `train: form of a batch must be one of ${[...this.programs.keys()].join(', ')}, got ${form}`,
    );
  }
}

/** The batches of a step. */
interface NextBatches {
  readonly form: string;
  readonly pairs: number;
  readonly batches: readonly StepBatch<HostArray>[];
  /** Milliseconds until the data were there. */
  readonly waited: number;
  readonly curation?: CurationMetrics;
}

// Pairs of one run of the towers.
function microBatchOf({
  objective: { batch },
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

function curatorOf(
  { objective, curation, ranks, seed }: TrainerConfig,
  microBatch: number,
  device: Device,
  precision: ComputeDType,
): Curator | undefined {
  if (curation === undefined) return undefined;
  const { model, batch, pixelTable } = objective;
  return new Curator(curation, {
    model,
    batch,
    microBatch,
    pixelTable,
    seed: seed ?? 0,
    comm: ranks?.comm,
    device,
    precision,
  });
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

async function stepOverRanks(
  config: TrainerConfig,
  entered: readonly string[],
  state: TrainingState<DeviceArray>,
  device: Device,
  precision: ComputeDType,
): Promise<StepOverRanks | undefined> {
  const { objective, ranks, curation, microBatches = 1 } = config;
  if (ranks === undefined) return undefined;
  const refuse = (what: string, expected: string, got: string): never => {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `train: ${what} must be ${expected} over ranks, got ${got}`,
    );
  };
  if (microBatches !== 1) refuse('microBatches', '1', String(microBatches));
  if (curation !== undefined && ranks.shard === 'parameters') {
    refuse('shard', 'none or optimizer with curation, which scores by whole weights', ranks.shard);
  }
  const { optimizer = defaultOptimizer } = config;
  return StepOverRanks.create(
    {
      ...ranks,
      ...{ objective, entered, optimizer, device, precision },
      microBatch: microBatchOf(config),
    },
    state,
  );
}

// Where the streams of all ranks stand: one state where it is the same on each, else that of every rank.
async function stateOverRanks(
  own: StreamState,
  comm: Communicator | undefined,
): Promise<StreamState> {
  if (comm === undefined) return own;
  const texts = await gatherTexts(comm, JSON.stringify(own));
  if (texts.every((text) => text === texts[0])) return own;
  return { ranks: texts.map((text) => JSON.parse(text) as StreamState) };
}

function stateOfRank(data: StreamState, comm: Communicator | undefined): StreamState {
  if (typeof data !== 'object' || data === null || !('ranks' in data)) return data;
  const states = data.ranks as readonly StreamState[];
  const { rank, size } = comm ?? { rank: 0, size: 1 };
  if (states.length === size) return states[rank];
  throw new SiglipError(
    'ERR_CONFIG',
    `train: ranks must be the ${String(states.length)} whose data the checkpoint tells the positions of, got ${String(size)}\n` +
      'to do: continue with as many ranks; each reads rows of its own',
  );
}

/** The rows of a batch that a rank works on, from and to. */
export function rowsOfRank(batch: number, rank: number, size: number): readonly [number, number] {
  const parts = evenParts(batch, size);
  return [parts[rank], parts[rank + 1]];
}

// The state of a run: as its latest checkpoint has it, inherited, or new.
async function begin(
  config: TrainerConfig,
  stream: Stream<Batch>,
  device: Device,
): Promise<{ state: TrainingState<DeviceArray>; position: Omit<TrainingPosition, 'data'> }> {
  const { objective, ranks } = config;
  const place = ranks === undefined ? placedOn(device) : placedOverRanks(objective, ranks, device);
  const path = await startingCheckpoint(config);
  if (path !== undefined) {
    const { state, position } = await loadTraining(path, objective, place);
    try {
      const { data, ...rest } = position;
      await stream.restore(stateOfRank(data, ranks?.comm));
      return { state, position: rest };
    } catch (error) {
      disposeArrays(state);
      throw error;
    }
  }
  if (config.inherit !== undefined) {
    return inheritedState(objective, await config.inherit(device), config.seed ?? 0, place);
  }
  return {
    state: freshState(objective, config.seed ?? 0, config.initialLogits, place),
    position: { step: 0, updates: 0, pairs: 0, entered: {} },
  };
}

function compileForms(
  config: TrainerConfig,
  entered: readonly string[],
  device: Device,
  precision: ComputeDType,
): ReadonlyMap<string, TrainStep> {
  const { objective, microBatches = 1, optimizer = defaultOptimizer } = config;
  const microBatch = microBatchOf(config);
  const common = { optimizer, entered, device, precision };
  const programs = new Map<string, TrainStep>();
  try {
    for (const form of objective.forms) {
      programs.set(
        form,
        microBatch === objective.batch
          ? compileStep({ ...wholeStep(objective.step(form)), ...common, microBatches })
          : compileCachedStep({
              ...objective.step(form, microBatch),
              ...common,
              microBatches: objective.batch / microBatch,
            }),
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

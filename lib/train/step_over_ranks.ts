// A training step whose pairs are spread over ranks, of any objective. Forward and backward of a rank's own
// pairs are one program in parts (lib/graph/parts.ts), a few blocks each:
//
//   towers forward, part by part ─ embeddings ─ sigmoid loss over ranks ─ its gradient ┐
//   ┌──────────────────────────────────────────────────────────────────────────────────┘
//   backward, part by part ── gradients of a part travel while the next part runs ── update
//
// Losses that need no other pair are means over the pairs of a rank, so the batch's is the mean of them by
// rows, and so are the statistics that averages follow. Every number that ranks share is the same bits on
// each, so their weights never part.
//
// With micro-batches the towers run forward twice, as in cached_step.ts: all of them for their embeddings, then
// the loss, then each with its backward. Their gradients are added up on the rank and travel once; those of
// sharded parameters, which no rank has room for, travel every time.
//
// What a rank keeps of the state is said in state_over_ranks.ts. With `shard: 'parameters'` the weights of a
// part are gathered while the part before it runs, given back behind it, and gathered again for the
// backward.
import type { Device, HostArray } from '../array';
import { DeviceArray } from '../array';
import type { Communicator } from '../comm';
import { countsOf, deviceCommunicator, evenParts } from '../comm';
import type { ComputeDType, Part, Program, ProgramInParts, Spec, Tensor } from '../graph';
import {
  compile,
  compileParts,
  disposeArrays,
  elements,
  fill,
  flatten,
  float32,
  pullback,
} from '../graph';
import type { TeacherLogits } from '../loss';
import { SiglipError } from '../errors';
import { globalNorm } from '../ops';
import { concatenate } from '../weights';
import { BalanceOverRanks } from './balance_over_ranks';
import type { LazyArray, Placement, TrainingState } from './checkpoint';
import type { TextExchange } from './loss_over_ranks';
import type { LossOverRanksResult } from './loss_over_ranks';
import { LossOverRanks } from './loss_over_ranks';
import type {
  Averages,
  Embeddings,
  Objective,
  ObjectiveStep,
  Statistics,
  StepBatch,
  TrainedParameters,
} from './objective';
import { moveAverages, tensorsByPath } from './objective';
import type { OptimizerConfig, OptimizerState } from './optimizer';
import { updateParameters } from './optimizer';
import { batchRange } from './pairs';
import type { ArraysByPath, Sharding, Term, Unit, WholeWeights } from './state_over_ranks';
import { at, partsPlacedOn, StateOverRanks, unitOf, unitOfAverage } from './state_over_ranks';
import type { StepScalars } from './step';
import { enteredSpecs } from './step';

/** How a run is spread over ranks. */
export interface RanksConfig {
  readonly comm: Communicator;
  /** How the texts of other ranks come to a rank. Default `gather`; see {@link LossOverRanks}. */
  readonly exchange?: TextExchange;
  /** What a rank keeps only a part of. Default `none`: every rank has all. */
  readonly shard?: Sharding;
  /**
   * Bytes of parameters that a part of the step reads, a block at least: its gradients travel while the
   * next part runs, and with sharded parameters a rank has those of two parts at a time. Default 4 MiB.
   */
  readonly partBytes?: number;
}

export interface StepOverRanksConfig extends RanksConfig {
  readonly objective: Objective;
  readonly optimizer: OptimizerConfig;
  /**
   * Most pairs that a rank's towers take at once (one more where a rank would be left without). Default all
   * of its own.
   */
  readonly microBatch?: number;
  /** See StepConfig. */
  readonly entered?: readonly string[];
  /** Default `'cpu'`. */
  readonly device?: Device;
  /** Default `'float32'`. */
  readonly precision?: ComputeDType;
}

/** What a rank keeps of every leaf of a state; {@link StepOverRanks} takes it over. */
export function placedOverRanks(
  objective: Objective,
  { comm, shard = 'none' }: RanksConfig,
  device: Device,
): Placement {
  return partsPlacedOn({ comm: deviceCommunicator(comm), objective, shard, device });
}

/** The host's part of a step's schedule; see scheduleInput. */
export interface ScheduleInputs {
  readonly all: Float32Array;
  readonly entered: Readonly<Record<string, Float32Array>>;
}

const PART_BYTES = 4 * 2 ** 20;

type Specs = Readonly<Record<string, Spec>>;

interface TowersInputs {
  readonly parameters: TrainedParameters<Spec>;
  readonly averages: Averages<Spec>;
  readonly batch: StepBatch<Spec>;
  /** Gradient of the loss of all pairs by the own embeddings. */
  readonly upstream: Partial<Embeddings<Spec>>;
  /** See {@link ObjectiveStep.balanced}. */
  readonly balance: Specs;
}

interface TowersOutputs {
  readonly embeddings: Partial<Embeddings<Tensor>>;
  /** By path; the terms of a sum where it is made in several places. */
  readonly gradients: Readonly<Record<string, readonly Tensor[]>>;
  readonly loss: Tensor | undefined;
  readonly terms: Readonly<Record<string, Tensor>>;
  readonly statistics: Statistics<Tensor>;
  /** What the centres of `balance` are made of. */
  readonly teacher: Readonly<Record<string, Omit<TeacherLogits, 'temperature'>>>;
}

interface UpdateInputs<Leaf> {
  readonly parameters: Readonly<Record<string, Leaf>>;
  readonly state: OptimizerState<Readonly<Record<string, Leaf>>>;
  readonly gradients: Readonly<Record<string, Leaf>>;
  readonly gradientNorm: Leaf;
  readonly schedule: Leaf;
  readonly entered: Readonly<Record<string, Leaf>>;
}

interface UpdateOutputs {
  readonly parameters: Readonly<Record<string, Tensor>>;
  readonly state: OptimizerState<Readonly<Record<string, Tensor>>>;
  readonly updateNorm: Tensor;
  readonly parameterNorm: Tensor;
}

interface AverageInputs<Leaf> {
  readonly averages: Readonly<Record<string, Leaf>>;
  readonly parameters: Readonly<Record<string, Leaf>>;
  readonly statistics: Readonly<Record<string, Leaf>>;
}

/** Forward and backward of so many pairs. */
interface Towers {
  readonly program: ProgramInParts;
  readonly batch: StepBatch<Spec>;
  /** Their share of the batch. */
  readonly share: number;
}

/** What a rank runs for the batches of one form. */
interface Form {
  /** Where the micro-batches begin in the own pairs, and where the last ends. */
  readonly starts: readonly number[];
  /** Of each micro-batch; the same for as many pairs. */
  readonly towers: readonly Towers[];
  /** Of the sigmoid loss; `undefined` where it has no weight. */
  readonly loss: LossOverRanks | undefined;
  readonly sigmoid: number;
  /** Sinkhorn-Knopp over the whole batch, by the name of the centre. */
  readonly balance: ReadonlyMap<string, BalanceOverRanks>;
}

function programsOf(forms: Iterable<Form>): readonly ProgramInParts[] {
  return [...new Set([...forms].flatMap(({ towers }) => towers.map(({ program }) => program)))];
}

/**
 * Step of a run over ranks. All ranks make it with the same configuration and take the same steps.
 *
 * @throws ERR_CONFIG, ERR_ARGUMENT as the towers and {@link LossOverRanks} do.
 */
export class StepOverRanks {
  private readonly comm: Communicator;
  private readonly device: Device;
  private readonly forms = new Map<string, Form>();
  private readonly norm: Program<{ gradients: Specs }, { norm: Tensor }>;
  private readonly update: Program<UpdateInputs<Spec>, UpdateOutputs>;
  private readonly average:
    Program<AverageInputs<Spec>, { averages: Readonly<Record<string, Tensor>> }> | undefined;
  /** What passes between the operations of a form's program. */
  private readonly work: DeviceArray | undefined;

  private constructor(
    private readonly config: StepOverRanksConfig,
    private readonly state: StateOverRanks,
  ) {
    const { comm, objective, device = 'cpu', precision = 'float32' } = config;
    this.comm = comm;
    this.device = device;
    try {
      for (const form of objective.forms) this.forms.set(form, this.form(form));
      const owned = specsOf(state.owned.parameters);
      this.norm = compile(
        'gradient norm',
        ({ gradients }: { gradients: Readonly<Record<string, Tensor>> }) => ({
          norm: globalNorm(Object.values(gradients)),
        }),
        { gradients: owned },
        { device },
      );
      const decaying = new Set(objective.parameters.flatMap((p) => (p.decay ? [p.path] : [])));
      this.update = compile(
        'update',
        (inputs: UpdateInputs<Tensor>) => updated(inputs, config.optimizer, decaying),
        {
          parameters: owned,
          state: { m: owned, v: owned },
          gradients: owned,
          gradientNorm: float32(1),
          schedule: float32(3),
          entered: enteredSpecs(config.entered),
        },
        { donate: ['parameters', 'state'], device, precision },
      );
      this.average = objective.averages.length === 0 ? undefined : this.averageProgram();
      const bytes = Math.max(...programsOf(this.forms.values()).map(({ workBytes }) => workBytes));
      this.work = DeviceArray.empty({ dtype: 'uint8', shape: [Math.max(bytes, 1)] }, device);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * Takes over a state, the same on every rank, or what {@link placedOverRanks} made of it. What the rank
   * keeps only a part of is disposed in the state that was given.
   */
  static async create(
    config: StepOverRanksConfig,
    given: TrainingState<DeviceArray>,
  ): Promise<StepOverRanks> {
    const { objective, shard = 'none', device = 'cpu' } = config;
    // All that follows goes by one communicator, which keeps the order.
    const comm = deviceCommunicator(config.comm);
    const state = await StateOverRanks.create({ comm, objective, shard, device }, given);
    return new StepOverRanks({ ...config, comm }, state);
  }

  /** Bytes of what a rank keeps, and of what a step adds to it at its peak. */
  get peakBytes(): number {
    const { owned, units, averageUnits } = this.state;
    const lengths = new Map([...units, ...averageUnits].map((u) => [u.name, u.layout.length]));
    const gradients = [...owned.parameters.values()].reduce((sum, { bytes }) => sum + bytes, 0);
    // Of two parts in a row: gradients on their way, and weights that were gathered.
    const travelling = programsOf(this.forms.values()).flatMap(({ parts }) => {
      const sizes = parts.map((part) =>
        part.units.reduce((sum, name) => sum + 4 * (lengths.get(name) ?? 0), 0),
      );
      return sizes.map((size, i) => (this.fleeting ? 2 : 1) * (size + (sizes.at(i + 1) ?? 0)));
    });
    const split = [...this.forms.values()].some(({ towers }) => towers.length > 1);
    const carried =
      split && !this.fleeting ? units.reduce((n, u) => n + 4 * u.layout.length, 0) : 0;
    return (
      this.state.bytes + gradients + carried + Math.max(0, ...travelling) + (this.work?.bytes ?? 0)
    );
  }

  /** The weights that every rank has whole; with sharded parameters those of the logits alone. */
  get logits(): { readonly logitScale: DeviceArray; readonly logitBias: DeviceArray } {
    const { parameters } = this.state.whole;
    return { logitScale: at(parameters, 'logitScale'), logitBias: at(parameters, 'logitBias') };
  }

  /**
   * One step.
   *
   * @param form - of the batch.
   * @param batch - the rank's own pairs of it.
   * @returns loss and norms over all ranks, the same on each.
   * @throws ERR_COMM when another rank has ended.
   */
  async run(
    form: string,
    schedule: ScheduleInputs,
    batch: StepBatch<HostArray>,
  ): Promise<StepScalars<number>> {
    const { loss, terms, gradients, statistics } = await this.towersOf(at(this.forms, form), batch);
    const norms = await this.updated(gradients, schedule);
    if (this.average !== undefined) await this.moved(this.average, statistics);
    return { loss, terms, ...norms };
  }

  /** See {@link StateOverRanks.save}. */
  async save(
    write: (state: TrainingState<DeviceArray | LazyArray>) => Promise<void>,
  ): Promise<void> {
    await this.state.save(write);
  }

  /** See {@link StateOverRanks.gatheredAtRoot}. */
  gatheredAtRoot(): Promise<WholeWeights | undefined> {
    return this.state.gatheredAtRoot();
  }

  /** Frees the programs and the state. */
  dispose(): void {
    for (const program of programsOf(this.forms.values())) program.dispose();
    for (const { loss, balance } of this.forms.values()) {
      loss?.dispose();
      for (const centre of balance.values()) centre.dispose();
    }
    // After a failure to make them some are not there.
    const programs: ({ dispose(): void } | undefined)[] = [this.norm, this.update, this.average];
    for (const program of programs) program?.dispose();
    this.work?.dispose();
    this.state.dispose();
  }

  private get fleeting(): boolean {
    return this.config.shard === 'parameters';
  }

  private form(name: string): Form {
    const { comm, objective, exchange, device } = this.config;
    const pairs = objective.pairs(name);
    const rows = countsOf(evenParts(pairs, comm.size));
    const own = rows[comm.rank];
    const { microBatch = own } = this.config;
    const most = Math.ceil(Math.max(...rows) / microBatch);
    const starts = evenParts(own, Math.min(most, ...rows));
    const towersOf = new Map<number, Towers>();
    try {
      const towers = countsOf(starts).map((size) => {
        const made = towersOf.get(size) ?? this.towers(name, size, size / pairs);
        towersOf.set(size, made);
        return made;
      });
      const { sigmoid, balanced, averageSpecs } = objective.step(name, own);
      if (towers.length > 1 && averageSpecs.length > 0) {
        throw new SiglipError(
          'ERR_CONFIG',
          'train: a batch in micro-batches must be without self-distillation, got one with a teacher',
        );
      }
      const { embedding } = objective.model;
      const loss =
        sigmoid === 0
          ? undefined
          : new LossOverRanks({ comm, rows, embedding, exchange, device, weight: sigmoid });
      const balance = new Map(
        Object.keys(balanced).map((centre) => {
          const [features, prototypes] = ['features', 'prototypes'].map((part) =>
            at(towers[0].program.results, `${TEACHER}${centre}.${part}`),
          );
          return [centre, new BalanceOverRanks(comm, rows, features, prototypes, this.device)];
        }),
      );
      return { starts, towers, loss, sigmoid, balance };
    } catch (error) {
      for (const { program } of towersOf.values()) program.dispose();
      throw error;
    }
  }

  private towers(form: string, pairs: number, share: number): Towers {
    const { objective, device, precision, partBytes = PART_BYTES } = this.config;
    const step = objective.step(form, pairs);
    const averages = new Map(step.averageSpecs.map((spec) => [spec.path, unitOfAverage(spec)]));
    const program = compileParts<TowersInputs>(
      step.name,
      (inputs) => towersAndBackward(step, share, inputs, this.fleeting),
      {
        parameters: step.parameters,
        averages: step.averages,
        batch: step.batch,
        upstream: step.sigmoid === 0 ? {} : step.embeddings,
        balance: step.balanced,
      },
      {
        device,
        precision,
        limitBytes: partBytes,
        late: ['upstream', 'balance'],
        fleeting: this.fleeting,
        unit: (path) => {
          const [kind, ...below] = path.split('.');
          if (kind === 'parameters') return unitOf(below.join('.'));
          return kind === 'averages' ? averages.get(below.join('.')) : undefined;
        },
      },
    );
    return { program, batch: step.batch, share };
  }

  private async towersOf(form: Form, batch: StepBatch<HostArray>): Promise<TowersResult> {
    const options = {
      comm: this.comm,
      device: this.device,
      fleeting: this.fleeting,
      work: this.work,
      logits: this.logits,
    };
    const [only, ...others] = form.towers;
    if (others.length === 0) return new TowersRun(only, form, this.state, options).run(batch);
    const { starts } = form;
    const microBatches = form.towers.map((towers, i) => ({
      towers,
      batch: batchRange(batch, starts[form.towers.length], starts[i], starts[i + 1]),
    }));
    return new MicroBatches(form, this.state, options).run(microBatches);
  }

  private averageProgram(): NonNullable<StepOverRanks['average']> {
    const { objective } = this.config;
    const { averages, parameters } = this.averaged;
    const statistics: Specs = Object.fromEntries(
      objective.averages.flatMap((spec) => (spec.copyOf === undefined ? [[spec.path, spec]] : [])),
    );
    return compile(
      'averages',
      (inputs: AverageInputs<Tensor>) => ({
        averages: moveAverages(
          objective.averages,
          inputs.averages,
          tensorsByPath(inputs.parameters),
          inputs.statistics,
        ),
      }),
      { averages: specsOf(averages), parameters: specsOf(parameters), statistics },
      { donate: ['averages'], device: this.device },
    );
  }

  /** What the averages' update works on: wholes, or with sharded parameters the rank's parts of both. */
  private get averaged(): Pick<StateOverRanks['owned'], 'averages' | 'parameters'> {
    const { owned, whole } = this.state;
    const all = this.fleeting ? owned.parameters : whole.parameters;
    const followed = this.config.objective.averages.flatMap(({ copyOf }) => copyOf ?? []);
    const parameters = new Map([...all].filter(([path]) => followed.includes(path)));
    return { averages: owned.averages, parameters };
  }

  private async updated(
    sums: ReadonlyMap<Unit, ArraysByPath>,
    { all, entered }: ScheduleInputs,
  ): Promise<Omit<StepScalars<number>, 'loss' | 'terms'>> {
    const gradients: Record<string, DeviceArray> = {};
    const { owned } = this.state;
    try {
      for (const path of owned.parameters.keys()) {
        gradients[path] = this.gradientOf(path, sums);
      }
      const [gradientNorm] = await this.overRanks([(await this.norm.run({ gradients })).norm]);
      const outputs = await this.update.run({
        parameters: Object.fromEntries(owned.parameters),
        state: { m: Object.fromEntries(owned.m), v: Object.fromEntries(owned.v) },
        gradients,
        gradientNorm: Float32Array.of(gradientNorm),
        schedule: all,
        entered,
      });
      const [updateNorm, parameterNorm] = await this.overRanks([
        outputs.updateNorm,
        outputs.parameterNorm,
      ]);
      await this.state.refresh();
      return { gradientNorm, updateNorm, parameterNorm };
    } finally {
      disposeArrays(gradients);
    }
  }

  private gradientOf(path: string, sums: ReadonlyMap<Unit, ArraysByPath>): DeviceArray {
    const unit = this.state.unitOfName(unitOf(path));
    const { shape } = at(this.state.owned.parameters, path);
    return sums.get(unit)?.get(path) ?? DeviceArray.zeros(float32(...shape), this.device);
  }

  private async moved(
    program: NonNullable<StepOverRanks['average']>,
    statistics: Statistics<Float32Array>,
  ): Promise<void> {
    const { averages, parameters } = this.averaged;
    await program.run({
      averages: Object.fromEntries(averages),
      parameters: Object.fromEntries(parameters),
      statistics,
    });
  }

  /** Norms of what the ranks own together. Disposes the arrays. */
  private async overRanks(norms: readonly DeviceArray[]): Promise<number[]> {
    const own = await Promise.all(norms.map(async (norm) => (await norm.read())[0]));
    disposeArrays(norms);
    if ((this.config.shard ?? 'none') === 'none') return own;
    const squares = Float32Array.from(own, (norm) => norm * norm);
    await this.comm.allReduce(squares);
    return Array.from(squares, Math.sqrt);
  }
}

/** What the towers of a step give, over all ranks. */
interface TowersResult {
  readonly loss: number;
  readonly terms: Readonly<Record<string, number>>;
  /** What the rank updates by: its part of every unit, or all. */
  readonly gradients: ReadonlyMap<Unit, ArraysByPath>;
  readonly statistics: Statistics<Float32Array>;
}

/** The sigmoid loss of the batch, and its gradients. */
type Contrast = Pick<LossOverRanksResult, 'loss' | 'logitScale' | 'logitBias'>;

interface TowersRunOptions {
  readonly comm: Communicator;
  readonly device: Device;
  readonly fleeting: boolean;
  readonly work: DeviceArray | undefined;
  readonly logits: { readonly logitScale: DeviceArray; readonly logitBias: DeviceArray };
  /** Gradient of the loss by the embeddings of a micro-batch, where that is known. Taken over. */
  readonly upstream?: Embeddings<DeviceArray>;
  /** Gradients of the micro-batches before, by path, which do not travel but with the last one's. */
  readonly carried?: { readonly sums: Map<string, DeviceArray>; readonly last: boolean };
}

/** One run of the towers, forward and backward, part by part. */
class TowersRun {
  private readonly inputs = new Map<string, DeviceArray>();
  private readonly results = new Map<string, DeviceArray>();
  /** Units that are here or on their way, by name. */
  private readonly gathered = new Map<string, Promise<ReadonlyMap<string, DeviceArray>>>();
  private readonly reductions: { readonly unit: Unit; readonly sum: Promise<ArraysByPath> }[] = [];
  private readonly additions: Promise<void>[] = [];
  private contrast: Contrast | undefined;
  /** The sigmoid loss, under way since the texts were there. */
  private met: Promise<LossOverRanksResult> | undefined;
  /** What it waits for. */
  private images:
    | { readonly give: (images: DeviceArray) => void; readonly giveUp: (reason: Error) => void }
    | undefined;

  constructor(
    private readonly towers: Towers,
    private readonly form: Form,
    private readonly state: StateOverRanks,
    private readonly options: TowersRunOptions,
  ) {}

  async run(batch: StepBatch<HostArray>): Promise<TowersResult> {
    const { upstream } = this.options;
    for (const [name, array] of Object.entries(upstream ?? {})) {
      this.results.set(`${UPSTREAM}${name}`, array as DeviceArray);
      this.inputs.set(`${UPSTREAM}${name}`, array as DeviceArray);
    }
    const goesOn = (part: Part): boolean => {
      if (part.ends.includes(`${EMBEDDINGS}texts`)) this.sendTexts();
      this.takeGradients(part);
      return true;
    };
    return this.through(batch, goesOn, () => this.result());
  }

  /** Runs them as far as their embeddings, which are copied to the host. */
  async embed(batch: StepBatch<HostArray>): Promise<Embeddings<Float32Array>> {
    const names = ['images', 'texts'].map((name) => `${EMBEDDINGS}${name}`);
    const awaited = new Set(names);
    const goesOn = ({ ends }: Part): boolean => {
      for (const path of ends) awaited.delete(path);
      return awaited.size > 0;
    };
    return this.through(batch, goesOn, async () => {
      const [images, texts] = await Promise.all(names.map((name) => at(this.results, name).read()));
      return { images: images as Float32Array, texts: texts as Float32Array };
    });
  }

  // Runs part after part, as long as it goes on behind each, and takes what is wanted of their results.
  private async through<T>(
    batch: StepBatch<HostArray>,
    goesOn: (part: Part) => boolean,
    take: () => Promise<T>,
  ): Promise<T> {
    const { program } = this.towers;
    const { parts } = program;
    const { whole, owned } = this.state;
    for (const [path, array] of whole.parameters) this.inputs.set(`parameters.${path}`, array);
    for (const [path, array] of this.options.fleeting ? owned.averages : whole.averages) {
      this.inputs.set(`averages.${path}`, array);
    }
    const uploaded = this.upload(batch);
    try {
      for (const [i, part] of parts.entries()) {
        for (const path of part.inputs) {
          if (path.startsWith(UPSTREAM)) await this.meet();
          if (path.startsWith(BALANCE)) await this.balance(path.slice(BALANCE.length));
        }
        await this.bring(part, parts.at(i + 1));
        this.open(part);
        await program.run(i, this.inputs, this.results, this.options.work);
        const on = goesOn(part);
        this.giveBack(part, parts.at(i + 1));
        if (!on) break;
      }
      return await take();
    } finally {
      this.images?.giveUp(new SiglipError('ERR_COMM', 'train: the towers must end, got a failure'));
      // Without waiting: after a failure here the other ranks may wait for this one.
      for (const arrays of this.gathered.values()) void arrays.then(disposeMap, () => undefined);
      disposeArrays([...uploaded, ...this.results.values()]);
    }
  }

  private upload(batch: StepBatch<HostArray>): DeviceArray[] {
    const specs = flatten(this.towers.batch).map(({ leaf }) => leaf as Spec);
    return flatten(batch).map(({ path, leaf }, i) => {
      const array = DeviceArray.from(leaf as HostArray, specs[i].shape, this.options.device);
      this.inputs.set(`batch.${path}`, array);
      return array;
    });
  }

  /** Begins the loss of all pairs, whose texts travel while what is left of the towers runs. */
  private sendTexts(): void {
    const { loss } = this.form;
    if (loss === undefined || this.inputs.has(`${UPSTREAM}images`)) return;
    const images = new Promise<DeviceArray>((give, giveUp) => {
      this.images = { give, giveUp };
    });
    const texts = at(this.results, `${EMBEDDINGS}texts`);
    this.met = loss.run(texts, () => images, this.options.logits);
    // Awaited where they meet.
    for (const promise of [images, this.met]) promise.catch(() => undefined);
  }

  /** The loss of all pairs, when the embeddings are there; once. */
  private async meet(): Promise<void> {
    if (this.met === undefined || this.inputs.has(`${UPSTREAM}images`)) return;
    this.images?.give(at(this.results, `${EMBEDDINGS}images`));
    const met = await this.met;
    this.contrast = met;
    for (const name of ['images', 'texts'] as const) {
      this.results.set(`${UPSTREAM}${name}`, met[name]);
      this.inputs.set(`${UPSTREAM}${name}`, met[name]);
    }
  }

  /** A centre over the teacher's features of all ranks, when they are there; once. */
  private async balance(name: string): Promise<void> {
    if (this.results.has(`${BALANCE}${name}`)) return;
    const [features, prototypes] = ['features', 'prototypes'].map((part) =>
      at(this.results, `${TEACHER}${name}.${part}`),
    );
    const temperature = at(this.inputs, 'batch.views.temperature');
    const centre = await at(this.form.balance, name).run(features, prototypes, temperature);
    this.results.set(`${BALANCE}${name}`, centre);
    this.inputs.set(`${BALANCE}${name}`, centre);
  }

  /** Has the units of a part here, and sends for those of the next. */
  private async bring(part: Part, next: Part | undefined): Promise<void> {
    if (!this.options.fleeting) return;
    for (const name of part.units) this.gather(name);
    // What all ranks do between two parts has the ranks to itself.
    const late = next?.inputs.some((path) => path.startsWith(UPSTREAM) || path.startsWith(BALANCE));
    if (late !== true) for (const name of next?.units ?? []) this.gather(name);
    for (const name of part.units) {
      const arrays = await this.gathered.get(name);
      for (const [path, array] of arrays ?? []) this.inputs.set(path, array);
    }
  }

  private gather(name: string): void {
    const unit = this.state.unitOfName(name);
    if (unit.whole || this.gathered.has(name)) return;
    const kind = this.state.averageUnits.includes(unit) ? 'averages' : 'parameters';
    const arrays = this.state
      .gathered(unit)
      .then((all) => new Map([...all].map(([path, array]) => [`${kind}.${path}`, array])));
    arrays.catch(() => undefined);
    this.gathered.set(name, arrays);
  }

  private giveBack(part: Part, next: Part | undefined): void {
    for (const name of part.units) {
      if (next?.units.includes(name) === true) continue;
      const arrays = this.gathered.get(name);
      this.gathered.delete(name);
      void arrays?.then(disposeMap, () => undefined);
    }
  }

  /** Makes room for what a part writes. */
  private open({ results }: Part): void {
    const { program } = this.towers;
    for (const path of results) {
      if (this.results.has(path)) continue;
      this.results.set(path, DeviceArray.empty(at(program.results, path), this.options.device));
    }
  }

  /** Sends the gradients that a part has completed on their way, a unit at a time. */
  private takeGradients({ ends }: Part): void {
    const byUnit = new Map<string, Term[]>();
    for (const result of ends) {
      if (!result.startsWith(GRADIENTS)) continue;
      const path = result.slice(GRADIENTS.length, result.lastIndexOf('.'));
      const name = unitOf(path);
      const array = at(this.results, result);
      byUnit.set(name, [...(byUnit.get(name) ?? []), { path, array }]);
      this.results.delete(result);
    }
    const { carried } = this.options;
    for (const [name, terms] of byUnit) {
      if (carried?.last === false) {
        for (const term of terms) this.carry(carried.sums, term);
        continue;
      }
      const before = terms.flatMap(({ path }): Term[] => {
        const array = carried?.sums.get(path);
        carried?.sums.delete(path);
        return array === undefined ? [] : [{ path, array }];
      });
      const unit = this.state.unitOfName(name);
      const sum = this.state.reduced(unit, [...before, ...terms]);
      // Awaited with the result.
      sum.catch(() => undefined);
      this.reductions.push({ unit, sum });
    }
  }

  private carry(sums: Map<string, DeviceArray>, { path, array }: Term): void {
    const sum = sums.get(path);
    if (sum === undefined) {
      sums.set(path, array);
      return;
    }
    const addition = this.state.additions.add(sum, array);
    // Awaited with the result.
    addition.catch(() => undefined);
    this.additions.push(addition);
  }

  private async result(): Promise<TowersResult> {
    const { program, share } = this.towers;
    const gradients = new Map<Unit, ArraysByPath>();
    for (const { unit, sum } of this.reductions) {
      await addGradients(this.state, gradients, unit, await sum);
    }
    await Promise.all(this.additions);
    const others = [GRADIENTS, EMBEDDINGS, TEACHER];
    const names = [...program.results.keys()].filter(
      (name) => !others.some((prefix) => name.startsWith(prefix)),
    );
    const means = await this.means(names, share);
    const named = (prefix: string): [string, Float32Array][] =>
      [...means].flatMap(([name, mean]) =>
        name.startsWith(prefix) ? [[name.slice(prefix.length), mean]] : [],
      );
    const own: TowersResult = {
      loss: means.get('loss')?.[0] ?? 0,
      terms: Object.fromEntries(named('terms.').map(([name, mean]) => [name, mean[0]])),
      gradients,
      statistics: Object.fromEntries(named('statistics.')),
    };
    return this.contrast === undefined
      ? own
      : withContrast(own, this.contrast, this.form.sigmoid, this.state, this.options.device);
  }

  /** Means over the batch of what are means over the own pairs. */
  private async means(
    names: readonly string[],
    share: number,
  ): Promise<ReadonlyMap<string, Float32Array>> {
    const { program } = this.towers;
    const own = new Map<string, Float32Array>();
    const lengths = names.map((name) => elements(at(program.results, name)));
    const all = new Float32Array(lengths.reduce((sum, n) => sum + n, 0));
    let start = 0;
    for (const [i, name] of names.entries()) {
      const part = all.subarray(start, start + lengths[i]);
      part.set(await at(this.results, name).read());
      own.set(name, part);
      start += lengths[i];
    }
    for (let i = 0; i < all.length; i++) all[i] *= share;
    if (all.length > 0) await this.options.comm.allReduce(all);
    return own;
  }
}

/** A micro-batch of the own pairs. */
interface MicroBatch {
  readonly towers: Towers;
  readonly batch: StepBatch<HostArray>;
}

/** The towers of a step, micro-batch by micro-batch. */
class MicroBatches {
  constructor(
    private readonly form: Form,
    private readonly state: StateOverRanks,
    private readonly options: TowersRunOptions,
  ) {}

  async run(microBatches: readonly MicroBatch[]): Promise<TowersResult> {
    const { sigmoid } = this.form;
    const { device, fleeting } = this.options;
    const met = await this.meet(microBatches);
    const carried = new Map<string, DeviceArray>();
    const gradients = new Map<Unit, ArraysByPath>();
    const sum = { loss: 0, terms: {} as Record<string, number> };
    try {
      for (const [i, { towers, batch }] of microBatches.entries()) {
        const result = await new TowersRun(towers, this.form, this.state, {
          ...this.options,
          ...(met === undefined ? {} : { upstream: this.upstream(met, i) }),
          ...(fleeting ? {} : { carried: { sums: carried, last: i + 1 === microBatches.length } }),
        }).run(batch);
        for (const [unit, arrays] of result.gradients) {
          await addGradients(this.state, gradients, unit, arrays);
        }
        sum.loss += result.loss;
        for (const [name, term] of Object.entries(result.terms)) {
          sum.terms[name] = (sum.terms[name] ?? 0) + term;
        }
      }
    } finally {
      disposeMap(carried);
    }
    const own: TowersResult = { ...sum, gradients, statistics: {} };
    return met === undefined ? own : withContrast(own, met.contrast, sigmoid, this.state, device);
  }

  /** Loss and gradient of the embeddings of all micro-batches. */
  private async meet(
    microBatches: readonly MicroBatch[],
  ): Promise<{ contrast: Contrast; images: Float32Array; texts: Float32Array } | undefined> {
    const { loss, starts } = this.form;
    if (loss === undefined) return undefined;
    const { device, logits } = this.options;
    const parts: Embeddings<Float32Array>[] = [];
    for (const { towers, batch } of microBatches) {
      parts.push(await new TowersRun(towers, this.form, this.state, this.options).embed(batch));
    }
    const own = starts[starts.length - 1];
    const whole = (name: 'images' | 'texts'): DeviceArray => {
      const values = concatenate(parts.map((part) => part[name]));
      return DeviceArray.from(values, [own, values.length / own], device);
    };
    using images = whole('images');
    using texts = whole('texts');
    const met = await loss.run(texts, () => Promise.resolve(images), logits);
    try {
      const [dimages, dtexts] = await Promise.all([met.images.read(), met.texts.read()]);
      return { contrast: met, images: dimages as Float32Array, texts: dtexts as Float32Array };
    } finally {
      disposeArrays([met.images, met.texts]);
    }
  }

  private upstream(met: Embeddings<Float32Array>, index: number): Embeddings<DeviceArray> {
    const { starts } = this.form;
    const [from, to] = starts.slice(index);
    const rows = (whole: Float32Array): DeviceArray => {
      const width = whole.length / starts[starts.length - 1];
      const values = whole.subarray(from * width, to * width);
      return DeviceArray.from(values, [to - from, width], this.options.device);
    };
    return { images: rows(met.images), texts: rows(met.texts) };
  }
}

/** Adds those of a unit to what is there, which takes them over. */
async function addGradients(
  state: StateOverRanks,
  gradients: Map<Unit, ArraysByPath>,
  unit: Unit,
  arrays: ArraysByPath,
): Promise<void> {
  const before = gradients.get(unit);
  if (before === undefined) gradients.set(unit, arrays);
  for (const [path, total] of before ?? []) await state.additions.add(total, at(arrays, path));
}

/** With the sigmoid loss, whose gradient of the logits' scalars is known to all ranks. */
function withContrast(
  own: TowersResult,
  { loss, logitScale, logitBias }: Contrast,
  weight: number,
  state: StateOverRanks,
  device: Device,
): TowersResult {
  const unit = state.unitOfName(unitOf('logitScale'));
  const values: Readonly<Record<string, number>> = { logitScale, logitBias };
  const arrays = unit.pieces.map(({ path }): [string, DeviceArray] => [
    path,
    DeviceArray.from(Float32Array.of(values[path]), [1], device),
  ]);
  return {
    ...own,
    loss: own.loss + weight * loss,
    terms: { sigmoid: loss, ...own.terms },
    gradients: new Map([...own.gradients, [unit, new Map(arrays)]]),
  };
}

// Where inputs and results of the towers begin.
const GRADIENTS = 'gradients.';
const EMBEDDINGS = 'embeddings.';
const UPSTREAM = 'upstream.';
const BALANCE = 'balance.';
const TEACHER = 'teacher.';

/** Forward and backward of a rank's own pairs. */
function towersAndBackward(
  step: ObjectiveStep,
  share: number,
  inputs: {
    readonly parameters: TrainedParameters<Tensor>;
    readonly averages: Averages<Tensor>;
    readonly batch: StepBatch<Tensor>;
    readonly upstream: Partial<Embeddings<Tensor>>;
    readonly balance: Readonly<Record<string, Tensor>>;
  },
  inTerms: boolean,
): TowersOutputs {
  const { parameters, averages, batch, upstream, balance } = inputs;
  const teacher: Record<string, Omit<TeacherLogits, 'temperature'>> = {};
  const evaluation = step.towers(parameters, batch, averages, (name, { features, prototypes }) => {
    teacher[name] = { features, prototypes };
    return balance[name];
  });
  const { embeddings, loss, terms = {}, statistics = {} } = evaluation;
  const outputs: Tensor[] = [];
  const seeds: Tensor[] = [];
  const { images, texts } = upstream;
  if (images !== undefined && texts !== undefined) {
    outputs.push(embeddings.images, embeddings.texts);
    seeds.push(images, texts);
  }
  if (loss !== undefined) {
    outputs.push(loss);
    seeds.push(fill(share, [1]));
  }
  const { vision, text, decoder, selfDistillation } = parameters;
  const gradients = pullback(outputs, seeds, { vision, text, decoder, selfDistillation });
  return {
    embeddings: images === undefined ? {} : embeddings,
    gradients: Object.fromEntries(
      flatten(gradients).flatMap(({ path, leaf }) => {
        const whole = leaf as Tensor;
        return [[path, inTerms ? termsOf(whole) : [whole]]];
      }),
    ),
    loss,
    terms,
    statistics,
    teacher,
  };
}

/** What a sum is made of, so that each can leave as soon as it is there. */
function termsOf(x: Tensor): readonly Tensor[] {
  const { definition, inputs } = x.node;
  const { a, b } = inputs;
  const isSum = definition?.name === SUM && a !== undefined && b !== undefined;
  if (!isSum) return [x];
  return [...termsOf(a as Tensor), ...termsOf(b as Tensor)];
}

const SUM = 'add';

function updated(
  inputs: UpdateInputs<Tensor>,
  optimizer: OptimizerConfig,
  decaying: ReadonlySet<string>,
): UpdateOutputs {
  const { parameters, gradients, state, schedule, entered, gradientNorm } = inputs;
  const update = updateParameters(
    parameters,
    gradients,
    state,
    { all: schedule, entered },
    optimizer,
    (path) => decaying.has(path),
    gradientNorm,
  );
  const { updateNorm, parameterNorm } = update;
  return { parameters: update.parameters, state: update.state, updateNorm, parameterNorm };
}

function specsOf(arrays: ReadonlyMap<string, Spec>): Specs {
  return Object.fromEntries(
    [...arrays].map(([path, { dtype, shape }]) => [path, { dtype, shape }]),
  );
}

function disposeMap(arrays: ReadonlyMap<string, DeviceArray>): void {
  disposeArrays([...arrays.values()]);
}

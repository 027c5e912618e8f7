// What a rank has of a run's state, and how it comes to the rest.
//
// Parameters travel in units: a block, or what stands beside the blocks of a tower. The elements of a unit,
// one parameter behind the other, are cut into even parts, one for every rank, which may cut a parameter.
//
//   none         every rank has all
//   optimizer    a rank has the moments of its part of every unit (ZeRO stage 1, arXiv 1910.02054)
//   parameters   a rank has its part of every unit: weights, moments and teacher (ZeRO stage 3); a unit is
//                gathered where it is used and given back
import type { Device } from '../array';
import { DeviceArray, moved } from '../array';
import type { DeviceCommunicator } from '../comm';
import { broadcastText, countsOf, evenParts, startsOf } from '../comm';
import { SiglipError } from '../errors';
import type { Spec } from '../graph';
import { disposeArrays, flatten, float32 } from '../graph';
import { Additions } from './additions';
import type { LazyArray, Placement, StateKind, TrainingState } from './checkpoint';
import { placedOn } from './checkpoint';
import { FlatLayout } from './flat_layout';
import type { Piece } from './flat_layout';
import type { Averages, AverageSpec, Objective, TrainedParameters } from './objective';

/** What a rank keeps only its part of. */
export type Sharding = 'none' | 'optimizer' | 'parameters';

/** Parameters that travel together. */
export interface Unit {
  readonly name: string;
  readonly layout: FlatLayout;
  /** Elements of every rank's part. */
  readonly counts: readonly number[];
  /** What this rank updates. */
  readonly pieces: readonly Piece[];
  /** Whether every rank has all of it between steps. */
  readonly whole: boolean;
}

export type ArraysByPath = ReadonlyMap<string, DeviceArray>;

/** One of the arrays whose sum is the gradient of a parameter. */
export interface Term {
  readonly path: string;
  readonly array: DeviceArray;
}

/** The unit of a parameter: `vision.blocks.3`, `text.tokens`; the two scalars of the logits are one. */
export function unitOf(path: string): string {
  const block = /^(.*\bblocks\.\d+)\./u.exec(path);
  if (block !== null) return block[1];
  const [top, below] = path.split('.');
  return below === undefined ? LOGITS : `${top}.${below}`;
}

/** The unit of an average: that of the parameter it follows; `undefined` of what every rank has. */
export function unitOfAverage({ copyOf }: AverageSpec): string | undefined {
  return copyOf === undefined ? undefined : `average of ${unitOf(copyOf)}`;
}

const LOGITS = 'logits';

export interface StateOverRanksConfig {
  readonly comm: DeviceCommunicator;
  readonly objective: Objective;
  readonly shard: Sharding;
  readonly device: Device;
}

/** Which units there are, and who keeps what of them. */
class StateLayout {
  /** In the order of the parameters. */
  readonly units: readonly Unit[];
  /** Of averages that are in parts. */
  readonly averageUnits: readonly Unit[];
  readonly unitsByPath = new Map<string, Unit>();

  constructor(private readonly config: StateOverRanksConfig) {
    const { objective, shard } = config;
    const grouped = groupedBy(objective.parameters, ({ path }) => unitOf(path));
    this.units = [...grouped].map(([name, specs]) =>
      this.unit(name, specs, shard !== 'parameters' || name === LOGITS),
    );
    const averages = groupedBy(objective.averages, (spec) => unitOfAverage(spec) ?? '');
    averages.delete('');
    this.averageUnits =
      shard === 'parameters'
        ? [...averages].map(([name, specs]) => this.unit(name, specs, false))
        : [];
    for (const unit of [...this.units, ...this.averageUnits]) {
      for (const { path } of unit.layout.leaves) this.unitsByPath.set(path, unit);
    }
  }

  /** Whether every rank has a leaf whole between steps. */
  keepsWhole(kind: StateKind, path: string): boolean {
    if (this.config.shard === 'none') return true;
    if (kind === 'm' || kind === 'v') return false;
    return this.unitsByPath.get(path)?.whole ?? true;
  }

  private unit(name: string, specs: readonly (Spec & { path: string })[], whole: boolean): Unit {
    const { comm, shard } = this.config;
    const layout = new FlatLayout(new Map(specs.map((spec) => [spec.path, spec])));
    const starts = evenParts(layout.length, comm.size);
    const counts = countsOf(starts);
    const [from, to] = shard === 'none' ? [0, layout.length] : starts.slice(comm.rank);
    return { name, layout, counts, pieces: layout.pieces(from, to), whole };
  }
}

/** The state of a run on one rank of several. */
export class StateOverRanks {
  /** Of gradients. */
  readonly additions: Additions;
  /** Wholes and parts of each kind, by path. */
  private readonly wholes: Record<StateKind, Map<string, DeviceArray>> = newMaps();
  private readonly parts: Record<StateKind, Map<string, DeviceArray>> = newMaps();
  private readonly layout: StateLayout;

  private constructor(
    private readonly config: StateOverRanksConfig,
    private readonly given: TrainingState<DeviceArray>,
  ) {
    this.layout = new StateLayout(config);
    this.additions = new Additions(config.device);
  }

  /**
   * Takes over a state, the same on every rank, or what {@link partsPlacedOn} made of it. What the rank
   * keeps a part of, it disposes in the state that was given.
   */
  static async create(
    config: StateOverRanksConfig,
    given: TrainingState<DeviceArray>,
  ): Promise<StateOverRanks> {
    const state = new StateOverRanks(config, given);
    try {
      await state.take('parameters', given.parameters);
      await state.take('m', given.moments.m);
      await state.take('v', given.moments.v);
      await state.take('averages', given.averages);
    } catch (error) {
      state.dispose();
      throw error;
    }
    return state;
  }

  /** In the order of the parameters. */
  get units(): readonly Unit[] {
    return this.layout.units;
  }

  /** Of averages that are in parts. */
  get averageUnits(): readonly Unit[] {
    return this.layout.averageUnits;
  }

  /** Parameters and averages that the rank has whole, by path. */
  get whole(): { readonly parameters: ArraysByPath; readonly averages: ArraysByPath } {
    return this.wholes;
  }

  /** What the rank updates, by path: its parts, or the wholes themselves. */
  get owned(): Readonly<Record<StateKind, ArraysByPath>> {
    return this.parts;
  }

  /** Bytes of what it keeps. */
  get bytes(): number {
    const arrays = [this.wholes, this.parts].flatMap((maps) =>
      Object.values(maps).flatMap((map) => [...map.values()]),
    );
    return [...new Set(arrays)].reduce((sum, array) => sum + array.bytes, 0);
  }

  /** The unit that is read by this name. */
  unitOfName(name: string): Unit {
    const found = [...this.units, ...this.averageUnits].find((unit) => unit.name === name);
    if (found !== undefined) return found;
    throw new SiglipError('ERR_ARGUMENT', `train: ${name} must be a unit of the state, got none`);
  }

  /** All of a unit that is in parts, in new arrays by path. */
  async gathered(unit: Unit): Promise<Map<string, DeviceArray>> {
    const kind = this.averageUnits.includes(unit) ? 'averages' : 'parameters';
    const { layout } = unit;
    const all = new Map(layout.leaves.map(({ path }) => [path, this.room(layout.shape(path))]));
    await this.gatherInto(unit, kind, [...all.values()]);
    return all;
  }

  /** Brings the wholes up to date with the parts, after an update. */
  async refresh(): Promise<void> {
    if (this.config.shard === 'none') return;
    for (const unit of this.units.filter(({ whole }) => whole)) {
      const wholes = unit.layout.leaves.map(({ path }) => at(this.wholes.parameters, path));
      await this.gatherInto(unit, 'parameters', wholes);
    }
  }

  /**
   * Sums gradients of a unit over ranks, 0 where there is none; gives what this rank updates by, parts or
   * all, by path. The arrays are taken over.
   */
  async reduced(unit: Unit, terms: readonly Term[]): Promise<ArraysByPath> {
    const { comm, shard } = this.config;
    // Queued at once, so that what the device is given next does not come before it.
    const { sums, added } = this.summed(unit, terms);
    const data = [...sums.values()];
    if (shard === 'none') {
      await Promise.all([comm.allReduce(data), added]);
      return sums;
    }
    const own = new Map(unit.pieces.map(({ path, shape }) => [path, this.room(shape)]));
    try {
      await Promise.all([comm.reduceScatter(data, unit.counts, [...own.values()]), added]);
      return own;
    } finally {
      disposeArrays(data);
    }
  }

  /**
   * Hands the whole state to `write` on rank 0, whose leaves are gathered one at a time as they are read.
   * All ranks call it.
   */
  async save(
    write: (state: TrainingState<DeviceArray | LazyArray>) => Promise<void>,
  ): Promise<void> {
    const { comm, objective } = this.config;
    if (comm.rank !== 0) {
      await this.serve();
    } else {
      const leaf = (kind: StateKind, { path, shape }: { path: string; shape: readonly number[] }) =>
        this.readable(kind, path, shape);
      const tree = (kind: StateKind): TrainedParameters<LazyArray> =>
        objective.parametersTree((spec) => leaf(kind, spec));
      await write({
        parameters: tree('parameters'),
        moments: { m: tree('m'), v: tree('v') },
        averages: objective.averagesTree((spec) => leaf('averages', spec)),
      });
      await broadcastText(comm, '', 0);
    }
    await comm.barrier();
  }

  /**
   * Parameters and averages, whole, on rank 0; where the rank has only parts, copies in memory of the
   * host, which the caller disposes. All ranks call it.
   */
  async gatheredAtRoot(): Promise<WholeWeights | undefined> {
    if (this.config.shard !== 'parameters') {
      const { parameters, averages } = this.given;
      return { parameters, averages, dispose: () => undefined };
    }
    const copies = new Map<LazyArray, DeviceArray>();
    let whole: WholeWeights | undefined;
    await this.save(async (state) => {
      const { parameters, averages } = state;
      for (const { leaf } of flatten({ parameters, averages })) {
        const array = leaf as LazyArray;
        copies.set(array, DeviceArray.from(await array.read(), array.shape));
      }
      const copied = (array: LazyArray): DeviceArray => copies.get(array) ?? never();
      const { objective } = this.config;
      const [ofParameters, ofAverages] = [parameters, averages].map(
        (tree) => new Map(flatten(tree).map(({ path, leaf }) => [path, copied(leaf as LazyArray)])),
      );
      whole = {
        parameters: objective.parametersTree(({ path }) => at(ofParameters, path)),
        averages: objective.averagesTree(({ path }) => at(ofAverages, path)),
        dispose: () => {
          disposeArrays([...copies.values()]);
        },
      };
    });
    return whole;
  }

  /** Frees all of it. Idempotent. */
  dispose(): void {
    this.additions.dispose();
    for (const maps of [this.wholes, this.parts]) {
      for (const map of Object.values(maps)) disposeArrays([...map.values()]);
    }
  }

  private room(shape: readonly number[]): DeviceArray {
    return DeviceArray.zeros(float32(...shape), this.config.device);
  }

  /** The sums of the terms of every path of a unit, in its order, and when they are there. */
  private summed(
    { layout }: Unit,
    terms: readonly Term[],
  ): { readonly sums: ArraysByPath; readonly added: Promise<unknown> } {
    const sums = new Map<string, DeviceArray>();
    const additions: Promise<void>[] = [];
    for (const { path } of layout.leaves) {
      const [first, ...others] = terms.filter((term) => term.path === path);
      const sum = first?.array ?? this.room(layout.shape(path));
      sums.set(path, sum);
      for (const { array } of others) additions.push(this.additions.add(sum, array));
    }
    return { sums, added: Promise.all(additions) };
  }

  private async take(
    kind: StateKind,
    tree: TrainedParameters<DeviceArray> | Averages<DeviceArray>,
  ): Promise<void> {
    const { shard, device } = this.config;
    for (const { path, leaf } of flatten(tree)) {
      const unit = this.layout.unitsByPath.get(path);
      const whole = this.layout.keepsWhole(kind, path);
      const given = leaf as DeviceArray;
      const array = whole ? await moved(given, device) : given;
      if (whole) this.wholes[kind].set(path, array);
      if (shard === 'none' || unit === undefined) {
        this.parts[kind].set(path, array);
        continue;
      }
      const piece = unit.pieces.find((one) => one.path === path);
      if (piece !== undefined && array.bytes < 4 * unit.layout.leaf(path).length) {
        this.parts[kind].set(path, array);
        continue;
      }
      if (piece !== undefined) {
        const values = (await array.read()) as Float32Array;
        const part = DeviceArray.from(values.subarray(piece.from, piece.to), piece.shape, device);
        this.parts[kind].set(path, part);
      }
      if (!whole) array.dispose();
    }
  }

  private gatherInto(
    unit: Unit,
    kind: 'parameters' | 'averages',
    wholes: readonly DeviceArray[],
  ): Promise<void> {
    const parts = unit.pieces.map(({ path }) => at(this.parts[kind], path));
    return this.config.comm.allGather(parts, unit.counts, wholes);
  }

  private readable(kind: StateKind, path: string, shape: readonly number[]): LazyArray {
    const whole = this.wholes[kind].get(path);
    if (whole !== undefined) return whole;
    const read = async (): Promise<Float32Array> => {
      await broadcastText(this.config.comm, `${kind} ${path}`, 0);
      return this.leafAtRoot(kind, path);
    };
    return { dtype: 'float32', shape, read };
  }

  /** Sends rank 0 what it asks for until it has all. */
  private async serve(): Promise<void> {
    for (;;) {
      const asked = await broadcastText(this.config.comm, '', 0);
      if (asked === '') return;
      const [kind, path] = asked.split(' ');
      await this.leafAtRoot(kind as StateKind, path);
    }
  }

  /** One leaf of all ranks' parts, whole on rank 0. */
  private async leafAtRoot(kind: StateKind, path: string): Promise<Float32Array> {
    const { comm } = this.config;
    const { layout, counts } = this.layout.unitsByPath.get(path) ?? never();
    const { start, length } = layout.leaf(path);
    const starts = startsOf(counts);
    const ranges = counts.map((_, rank) => {
      const from = Math.max(starts[rank] - start, 0);
      return { rank, from, to: Math.max(from, Math.min(starts[rank + 1] - start, length)) };
    });
    const held = this.parts[kind].get(path);
    const own = held === undefined ? new Float32Array(0) : ((await held.read()) as Float32Array);
    if (comm.rank !== 0) {
      if (own.length > 0) await comm.exchange([{ rank: 0, data: own }], []);
      return own;
    }
    const whole = new Float32Array(length);
    whole.set(own, ranges[0].from);
    const others = ranges.slice(1).filter(({ from, to }) => to > from);
    await comm.exchange(
      [],
      others.map(({ rank, from, to }) => ({ rank, data: whole.subarray(from, to) })),
    );
    return whole;
  }
}

/**
 * What a rank keeps of every leaf of a state, so that no more of it than one leaf is ever there whole. A
 * leaf of which it keeps nothing is one number.
 */
export function partsPlacedOn(config: StateOverRanksConfig): Placement {
  const layout = new StateLayout(config);
  const whole = placedOn(config.device);
  return (kind, spec, values) => {
    const unit = layout.unitsByPath.get(spec.path);
    if (unit === undefined || layout.keepsWhole(kind, spec.path)) return whole(kind, spec, values);
    const { from, to } = unit.pieces.find(({ path }) => path === spec.path) ?? { from: 0, to: 1 };
    return DeviceArray.from(values.subarray(from, to), [to - from], config.device);
  };
}

/** Weights of a run, whole. */
export interface WholeWeights {
  readonly parameters: TrainedParameters<DeviceArray>;
  readonly averages: Averages<DeviceArray>;
  /** Frees copies. */
  dispose(): void;
}

function newMaps(): Record<StateKind, Map<string, DeviceArray>> {
  return { parameters: new Map(), m: new Map(), v: new Map(), averages: new Map() };
}

function groupedBy<T>(items: readonly T[], key: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const name = key(item);
    groups.set(name, [...(groups.get(name) ?? []), item]);
  }
  return groups;
}

/** The leaf of a path. */
export function at<T>(leaves: ReadonlyMap<string, T>, path: string): T {
  const leaf = leaves.get(path);
  if (leaf !== undefined) return leaf;
  throw new SiglipError('ERR_ARGUMENT', `train: parameters must include ${path}, got none`);
}

function never(): never {
  throw new SiglipError('ERR_ARGUMENT', 'train: a leaf must be part of the state, got another');
}

// A program in parts: one trace, one plan and one memory, run part after part, so that between two parts
// the caller may bring what the next one reads and take what the last one made. A part reads few of the
// inputs that belong to units (a block's weights): they need not all be there at once, and the gradients of
// a unit are complete long before the last part runs.
import type { Device, DeviceArray } from '../array';
import { resolveDevice } from '../array';
import { SiglipError } from '../errors';
import type { NativeArgument, NativeProgram, NativeStep, NativeView } from '../native/addon';
import { loadAddon } from '../native/load';
import type { Spec } from '../native/spec';
import { bytesOf } from '../native/spec';
import type { CompileOptions } from './compile';
import { Encoder, lower } from './compile';
import { substitute } from './gradient';
import { plan, rootsOf } from './planner';
import type { Graph } from './rewrite';
import { rebuilt } from './rewrite';
import type { Node, Tensor } from './tensor';
import { operandsOf } from './tensor';
import type { MapTree } from './tree';
import { flatten } from './tree';

export interface PartsOptions extends Pick<CompileOptions, 'device' | 'precision'> {
  /** The unit that an input belongs to, by the input's path; `undefined` for none. */
  unit(path: string): string | undefined;
  /** Bytes of units that a part may read; a larger unit has parts to itself. */
  readonly limitBytes: number;
  /** Inputs of the top level that come late: where one is first read, a part begins. */
  readonly late: readonly string[];
  /**
   * Whether units are there only while a part that reads them runs. What follows from them alone is then
   * computed again in every part that reads it. Default false.
   */
  readonly fleeting?: boolean;
}

/** What a part reads and makes, by paths. */
export interface Part {
  /** Inputs it reads. */
  readonly inputs: readonly string[];
  /** Units whose inputs it reads. */
  readonly units: readonly string[];
  /** Results it writes or reads. */
  readonly results: readonly string[];
  /** Those that no later part writes or reads. */
  readonly ends: readonly string[];
}

interface CompiledPart extends Part {
  readonly native: NativeProgram;
  readonly buffers: readonly Place[];
}

type Place = 'work' | { readonly kind: 'input' | 'result'; readonly path: string };

/**
 * Traces `fn` as compile() does and cuts it into parts.
 *
 * @param fn - takes a tree of tensors like `specs`. It may update nothing in place.
 * @throws as compile()
 */
export function compileParts<I extends object>(
  name: string,
  fn: (inputs: MapTree<I, Spec, Tensor>) => object,
  specs: I,
  options: PartsOptions,
): ProgramInParts {
  const { device } = resolveDevice(options.device ?? 'cpu');
  const precision = options.precision ?? 'float32';
  if (device === 'cpu' && precision !== 'float32') {
    throw new SiglipError(
      'ERR_DEVICE',
      `compile: ${name} must run on a CUDA device to compute in ${precision}, got cpu`,
    );
  }
  const lowered = lower(name, fn, specs, { device, precision });
  const paths = new Map(lowered.inputs.map(({ path, tensor }) => [tensor, path]));
  const cut = new Cutter(lowered.graph, paths, options).parts();
  const graph: Graph = {
    nodes: cut.flatMap(({ nodes }) => nodes),
    results: lowered.graph.results,
  };
  const encoder = new Encoder(graph, device);
  const planned = plan(
    graph,
    lowered.inputs.map(({ tensor }) => tensor),
    { donated: new Set(), scratchBytes: (node) => encoder.scratchBytes(node) },
  );
  const resultPaths = flatten(lowered.outputs).map(({ path }) => path);
  const places: Place[] = lowered.inputs.map(({ path }) => ({ kind: 'input', path }));
  planned.results.forEach((buffer, i) => {
    places[buffer] = { kind: 'result', path: resultPaths[i] };
  });
  const bytes = (place: Place, buffer: number): number =>
    place === 'work' ? planned.arenaBytes : planned.buffers[buffer];

  const parts = cut.map(({ nodes, units }, i): CompiledPart => {
    const used = new Buffers();
    const steps = nodes.flatMap((node) => encoder.step(node, planned)).map(({ step }) => step);
    const moved = steps.map((step) => renumbered(step, used));
    const buffers = used.order.map((storage) => (storage < 0 ? 'work' : places[storage]));
    const native = new (loadAddon().Program)(
      {
        name: `${name}, part ${String(i)}`,
        arenaBytes: 0,
        bufferBytes: buffers.map((place, at) => bytes(place, used.order[at])),
        steps: moved,
      },
      device,
    );
    const touched = (kind: 'input' | 'result'): string[] =>
      buffers.flatMap((place) => (place !== 'work' && place.kind === kind ? [place.path] : []));
    const results = touched('result');
    return { native, buffers, inputs: touched('input'), results, ends: [], units: [...units] };
  });
  const last = new Map(parts.flatMap(({ results }, i) => results.map((path) => [path, i])));
  const resultSpecs = new Map<string, Spec>(
    lowered.graph.results.map(({ dtype, shape }, i) => [resultPaths[i], { dtype, shape }]),
  );
  const inputSpecs = new Map<string, Spec>(
    lowered.inputs.map(({ path, tensor }) => [path, tensor]),
  );
  const ended = parts.map((part, i) => ({
    ...part,
    ends: part.results.filter((path) => last.get(path) === i),
  }));
  return new ProgramInParts(name, device, ended, planned.arenaBytes, inputSpecs, resultSpecs);
}

/** A compiled function that runs part after part. */
export class ProgramInParts {
  constructor(
    readonly name: string,
    readonly device: Device,
    private readonly compiled: readonly CompiledPart[],
    /** Bytes of what passes between operations; see {@link run}. */
    readonly workBytes: number,
    /** Of all inputs, by path. */
    readonly inputs: ReadonlyMap<string, Spec>,
    /** Of all results, by path. */
    readonly results: ReadonlyMap<string, Spec>,
  ) {}

  /** In the order in which they run. */
  get parts(): readonly Part[] {
    return this.compiled;
  }

  /**
   * Runs one part.
   *
   * @param inputs - at least those the part reads.
   * @param results - at least those it writes or reads: arrays of at least their bytes.
   * @param work - of `workBytes` or more; the same for all parts of a run, and left alone between them.
   */
  async run(
    part: number,
    inputs: ReadonlyMap<string, DeviceArray>,
    results: ReadonlyMap<string, DeviceArray>,
    work: DeviceArray | undefined,
  ): Promise<void> {
    const { native, buffers } = this.compiled[part];
    const arrays = buffers.map((place) => {
      if (place === 'work') return given(work, `${this.name}: work`);
      const { kind, path } = place;
      const array = (kind === 'input' ? inputs : results).get(path);
      return given(array, `${this.name}: ${kind} ${path} of part ${String(part)}`);
    });
    await native.run(
      arrays.map(({ buffer }) => buffer),
      false,
    );
  }

  /** Frees the programs. Idempotent. */
  dispose(): void {
    for (const { native } of this.compiled) native.dispose();
  }
}

function given(array: DeviceArray | undefined, what: string): DeviceArray {
  if (array !== undefined) return array;
  throw new SiglipError('ERR_ARGUMENT', `${what} must be given, got none`);
}

interface Stretch {
  readonly nodes: Node[];
  readonly units: Set<string>;
  /** Bytes of its units. */
  bytes: number;
  /** What follows from units alone, as this part computed it. */
  readonly copies: Map<Tensor, Tensor>;
}

/** Cuts a graph where the units change. */
class Cutter {
  private readonly roots: ReadonlyMap<Tensor, Tensor>;
  private readonly unitBytes = new Map<string, number>();
  /** The operation that computes what follows from units alone. */
  private readonly derived = new Map<Tensor, Node>();
  private readonly results: ReadonlySet<Tensor>;
  private readonly awaited = new Set<Tensor>();
  private readonly done: Stretch[] = [];
  private current = stretch();

  constructor(
    private readonly graph: Graph,
    private readonly paths: ReadonlyMap<Tensor, string>,
    private readonly options: PartsOptions,
  ) {
    this.roots = rootsOf(graph);
    this.results = new Set(graph.results);
    for (const [tensor, path] of paths) {
      const unit = options.unit(path);
      if (unit !== undefined) {
        this.unitBytes.set(unit, (this.unitBytes.get(unit) ?? 0) + bytesOf(tensor));
      }
      if (options.late.includes(path.split('.', 1)[0])) this.awaited.add(tensor);
    }
  }

  parts(): readonly Stretch[] {
    for (const node of this.graph.nodes) this.take(node);
    this.done.push(this.current);
    return this.done;
  }

  private take(node: Node): void {
    if (this.options.fleeting === true && this.followsFromUnits(node)) {
      for (const output of Object.values(node.outputs)) this.derived.set(output, node);
      return;
    }
    const late = operandsOf(node)
      .map((x) => this.rootOf(x))
      .filter((x) => this.awaited.delete(x));
    const units = this.unitsOf(node);
    const added = [...units].filter((unit) => !this.current.units.has(unit));
    const bytes = added.reduce((sum, unit) => sum + (this.unitBytes.get(unit) ?? 0), 0);
    const full =
      added.length > 0 &&
      this.current.units.size > 0 &&
      this.current.bytes + bytes > this.options.limitBytes;
    if ((late.length > 0 && this.current.nodes.length > 0) || full) {
      this.done.push(this.current);
      this.current = stretch();
    }
    for (const unit of units) {
      if (this.current.units.has(unit)) continue;
      this.current.units.add(unit);
      this.current.bytes += this.unitBytes.get(unit) ?? 0;
    }
    this.current.nodes.push(this.reading(node));
  }

  private followsFromUnits(node: Node): boolean {
    const operands = operandsOf(node);
    return (
      operands.length > 0 &&
      operands.every((x) => this.unitOf(x) !== undefined || this.derived.has(x)) &&
      !Object.values(node.outputs).some((x) => this.results.has(x))
    );
  }

  /** Units that an operation reads, by way of what follows from them too. */
  private unitsOf(node: Node, found = new Set<string>()): Set<string> {
    for (const x of operandsOf(node)) {
      const unit = this.unitOf(x);
      const source = this.derived.get(x);
      if (unit !== undefined) found.add(unit);
      else if (source !== undefined) this.unitsOf(source, found);
    }
    return found;
  }

  private unitOf(x: Tensor): string | undefined {
    const path = this.paths.get(this.rootOf(x));
    return path === undefined ? undefined : this.options.unit(path);
  }

  private rootOf(x: Tensor): Tensor {
    return this.roots.get(x) ?? x;
  }

  /** The operation with what follows from units computed in the current part. */
  private reading(node: Node): Node {
    const { copies, nodes } = this.current;
    for (const x of operandsOf(node)) {
      const source = this.derived.get(x);
      if (source === undefined || copies.has(x)) continue;
      const again = rebuilt(this.reading(source), {});
      nodes.push(again);
      for (const [name, output] of Object.entries(source.outputs)) {
        copies.set(output, again.outputs[name]);
      }
    }
    return operandsOf(node).some((x) => copies.has(x))
      ? { ...node, inputs: substitute(node.inputs, copies) }
      : node;
  }
}

function stretch(): Stretch {
  return { nodes: [], units: new Set(), bytes: 0, copies: new Map() };
}

/** Numbers the storages of a part in the order in which it meets them. */
class Buffers {
  readonly order: number[] = [];
  private readonly numbers = new Map<number, number>();

  numberOf(storage: number): number {
    const known = this.numbers.get(storage);
    if (known !== undefined) return known;
    this.numbers.set(storage, this.order.length);
    return this.order.push(storage) - 1;
  }
}

function renumbered(step: NativeStep, buffers: Buffers): NativeStep {
  const view = (one: NativeView): NativeView => ({
    ...one,
    storage: buffers.numberOf(one.storage),
  });
  const args = step.args.map((argument): NativeArgument => {
    if (argument === null || typeof argument === 'number') return argument;
    return 'storage' in argument ? view(argument) : argument.map(view);
  });
  return { ...step, args };
}

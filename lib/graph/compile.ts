// From a TypeScript function over symbolic tensors to a program the native side can run: trace,
// rewrite, plan, encode. Everything that can be wrong with shapes, types and memory is known here,
// before a byte is allocated.
import type { Device, HostArrayOf } from '../array';
import type { HostParts } from '../array';
import { DeviceArray, moved, resolveDevice } from '../array';
import { expectNotAborted, SiglipError } from '../errors';
import type { NativeArgument, NativeProgram, NativeStep, NativeView } from '../native/addon';
import { kernelOf, loadAddon } from '../native/load';
import type { KernelArgument, KernelCall, Ref } from '../native/kernels';
import type { DType, HostArray, Spec } from '../native/spec';
import { bytesOf, dtypeCode } from '../native/spec';
import type { ConstantSource, Constants, Derived } from './constants';
import { hoist } from './constants';
import { copy } from './intrinsics';
import { Reshaped, describe } from './op';
import type { Plan } from './planner';
import { leftOut, plan, rootsOf, totalBytes } from './planner';
import type { ComputeDType } from './precision';
import { narrowed } from './precision';
import type { Graph, Rewrite, Specialize } from './rewrite';
import { prune, rewrites, specialized } from './rewrite';
import type { Node } from './tensor';
import { Tensor, Trace, operandsOf, recordInto } from './tensor';
import type { MapTree } from './tree';
import { flatten, mapTree } from './tree';

export interface CompileOptions<C = unknown> {
  /** Where the program runs. Default `'cpu'`. */
  readonly device?: Device;
  /** Top-level inputs whose arrays the program may update in place (weights, optimizer state). */
  readonly donate?: readonly string[];
  /**
   * In what activations are held and multiplied. Default `'float32'`. With `'bfloat16'` inputs,
   * results and taps stay float32, as do parameters, their gradients, statistics and losses; see
   * precision.ts. Needs a CUDA device: the kernels of the CPU compute in float32.
   */
  readonly precision?: ComputeDType;
  /** Named intermediates that `runWithTaps` gives: all, or those whose name is listed. */
  readonly taps?: boolean | readonly string[];
  /** What never changes between runs; `fn` gets it as its second argument. */
  readonly constants?: Constants<C>;
  /** Rewrites of the traced graph, before those that every program gets. */
  readonly rewrites?: readonly Rewrite[];
  /** Replaces operations by ones that suit constants; see {@link Specialize}. */
  readonly specialize?: Specialize;
}

/** What a run takes for one input: an array that stays, or host memory that is copied in. */
export type RunInput = DeviceArray | HostArray | HostParts;

/** Bytes a run needs, known from compile() on. */
export interface ProgramMemory {
  /** Intermediates and scratch; one arena serves all programs of a device. */
  readonly arenaBytes: number;
  /** Arrays the caller brings (weights, state, batch) and constants. */
  readonly inputBytes: number;
  /** Arrays a run creates; results updated in place are among the inputs. */
  readonly outputBytes: number;
  /** The sum: what must fit on the device during a run. */
  readonly peakBytes: number;
}

/** Time of one operation in a profiled run. */
export interface StepTime {
  readonly label: string;
  readonly kernel: string;
  readonly nanoseconds: number;
}

interface Compiled {
  readonly native: NativeProgram;
  readonly device: Device;
  readonly plan: Plan;
  /** What the caller brings to every run. */
  readonly inputs: readonly { readonly path: string; readonly spec: Spec }[];
  /** What follows them among the program's inputs. */
  readonly bound: readonly Bound[];
  readonly steps: readonly { readonly label: string; readonly kernel: string }[];
  readonly resultSpecs: readonly Spec[];
  readonly taps: readonly string[];
}

// A constant as a program's input: there already, or made by the first run.
interface Bound {
  readonly spec: Spec;
  present(): DeviceArray | undefined;
  make(): Promise<DeviceArray>;
}

/**
 * Traces `fn` once for inputs of the given specs and prepares it to run.
 *
 * @param name - for error messages.
 * @param fn - takes a tree of tensors like `specs`, and one like the constants' tree.
 * @param specs - a tree of specs, the form of the argument `fn` and `run` take.
 * @returns a program; the same inputs give the same outputs, bit for bit, on one machine.
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT, ERR_NOT_DIFFERENTIABLE as the traced operations do.
 * @example
 * const program = compile('double', ({ x }) => ({ y: add(x, x) }), { x: float32(2, 3) });
 * const { y } = await program.run({ x: new Float32Array(6) });
 */
export function compile<I extends object, O, C = object>(
  name: string,
  fn: (inputs: MapTree<I, Spec, Tensor>, constants: MapTree<C, ConstantSource, Tensor>) => O,
  specs: I,
  options: CompileOptions<C> = {},
): Program<I, O> {
  const { constants, precision = 'float32' } = options;
  const { device } = resolveDevice(options.device ?? 'cpu');
  if (device === 'cpu' && precision !== 'float32') {
    throw new SiglipError(
      'ERR_DEVICE',
      `compile: ${name} must run on a CUDA device to compute in ${precision}, got cpu`,
    );
  }
  const { graph, inputs, leaves, derived, donated, outputs, taps } = lower(
    name,
    fn,
    specs,
    options,
  );
  const compiled = assemble(name, graph, {
    inputs,
    bound: derived.map(({ tensor }) => tensor),
    donated,
    device,
  });
  return new Program<I, O>(
    name,
    {
      ...compiled,
      bound:
        constants === undefined
          ? []
          : derived.map((value) => bind(value, constants, leaves, device)),
      taps,
    },
    outputs,
  );
}

/** What compile() makes of a function before it plans and encodes; needs no device. */
export interface Lowered<O> {
  readonly graph: Graph;
  readonly inputs: readonly Input[];
  readonly leaves: ReadonlyMap<Tensor, string>;
  readonly derived: readonly Derived[];
  readonly donated: ReadonlySet<Tensor>;
  readonly outputs: O;
  readonly taps: readonly string[];
}

/** Traces a function and applies all rewrites; see {@link compile}. */
export function lower<I extends object, O, C = object>(
  name: string,
  fn: (inputs: MapTree<I, Spec, Tensor>, constants: MapTree<C, ConstantSource, Tensor>) => O,
  specs: I,
  options: CompileOptions<C> = {},
): Lowered<O> {
  const trace = new Trace();
  const { constants, specialize, precision = 'float32' } = options;
  const inputs: Input[] = [];
  const leaves = new Map<Tensor, string>();
  const outputs = recordInto(trace, () => {
    const symbols = mapTree<I, Spec, Tensor>(specs, (spec, path) => {
      const tensor = recordInput(trace, spec, path);
      inputs.push({ path, tensor });
      return tensor;
    });
    const constantSymbols = mapTree<C, ConstantSource, Tensor>(
      constants?.tree ?? ({} as C),
      (source, path) => {
        const tensor = recordInput(trace, source, path);
        leaves.set(tensor, path);
        return tensor;
      },
    );
    const kept = [...inputs.map(({ tensor }) => tensor), ...leaves.keys()];
    const donated = donatedTensors(name, inputs, options.donate ?? []);
    return materialize(fn(symbols, constantSymbols), trace, kept, donated);
  });
  const results = flatten(outputs).map(({ path, leaf }) => {
    if (leaf instanceof Tensor) return leaf;
    throw new SiglipError('ERR_ARGUMENT', `compile: ${name}'s output ${path} must be a tensor`);
  });
  const taps = [...trace.taps].filter(([tapName]) => wanted(tapName, options.taps));
  let graph: Graph = {
    nodes: trace.nodes.filter((node) => node.definition !== undefined),
    results: [...results, ...taps.map(([, tensor]) => tensor)],
  };
  for (const rewrite of [prune, ...(options.rewrites ?? []), ...rewrites]) graph = rewrite(graph);
  if (specialize !== undefined) graph = specialized(graph, leaves, specialize);
  graph = narrowed(graph, precision, leaves);
  let derived: readonly Derived[] = [];
  if (constants !== undefined) ({ graph, derived } = hoist(graph, leaves));
  return {
    graph,
    inputs,
    leaves,
    derived,
    donated: donatedTensors(name, inputs, options.donate ?? []),
    outputs,
    taps: taps.map(([tapName]) => tapName),
  };
}

/** An input of the caller's. */
export interface Input {
  readonly path: string;
  readonly tensor: Tensor;
}

function recordInput(trace: Trace, { dtype, shape }: Spec, path: string): Tensor {
  const node = trace.record(undefined, {}, {}, { value: { dtype, shape } }, path);
  const tensor = node.outputs['value'];
  if (tensor !== undefined) return tensor;
  throw new SiglipError('ERR_SHAPE', `compile: ${path} must be a spec`);
}

// A finished graph as a native program. Its inputs are those of the caller, then the bound ones.
function assemble(
  name: string,
  graph: Graph,
  given: {
    readonly inputs: readonly Input[];
    readonly bound: readonly Tensor[];
    readonly donated: ReadonlySet<Tensor>;
    readonly device: Device;
  },
): Omit<Compiled, 'bound' | 'taps'> {
  const { inputs, bound, donated, device } = given;
  const encoder = new Encoder(graph, device);
  const planned = plan(graph, [...inputs.map(({ tensor }) => tensor), ...bound], {
    donated,
    scratchBytes: (node) => encoder.scratchBytes(node),
  });
  const steps = encoder.encode(planned);
  const native = new (loadAddon().Program)(
    {
      name,
      arenaBytes: planned.arenaBytes,
      bufferBytes: [...planned.buffers],
      steps: steps.map(({ step }) => step),
    },
    device,
  );
  return {
    native,
    device,
    plan: planned,
    inputs: inputs.map(({ path, tensor }) => ({ path, spec: tensor })),
    steps: steps.map(({ step, kernel }) => ({ label: step.label, kernel })),
    resultSpecs: graph.results.map(({ dtype, shape }) => ({ dtype, shape })),
  };
}

// A derived value is computed by a program of its own, whose inputs are opened for it alone.
function bind<C>(
  { key, tensor, nodes }: Derived,
  constants: Constants<C>,
  leaves: ReadonlyMap<Tensor, string>,
  device: Device,
): Bound {
  const open = async (path: string): Promise<DeviceArray> =>
    moved(await constants.source(path).open(), device);
  const make = async (): Promise<DeviceArray> => {
    if (nodes.length === 0) return open(key);
    const read = new Set(nodes.flatMap(operandsOf));
    const inputs = [...leaves]
      .filter(([leaf]) => read.has(leaf))
      .map(([leaf, path]) => ({ path, tensor: leaf }));
    const graph = { nodes, results: [tensor] };
    const program = new Program<Record<string, Spec>, { value: Tensor }>(
      key,
      {
        ...assemble(key, graph, { inputs, bound: [], donated: new Set(), device }),
        bound: [],
        taps: [],
      },
      { value: tensor },
    );
    const opened: Record<string, DeviceArray> = {};
    try {
      for (const { path } of inputs) opened[path] = await open(path);
      return (await program.run(opened)).value;
    } finally {
      disposeArrays(opened);
      program.dispose();
    }
  };
  return {
    spec: tensor,
    present: () => constants.present(key),
    make: () => constants.value(key, make),
  };
}

function wanted(tapName: string, taps: CompileOptions['taps']): boolean {
  return typeof taps === 'object' ? taps.includes(tapName) : taps === true;
}

function donatedTensors(
  name: string,
  inputs: readonly { readonly path: string; readonly tensor: Tensor }[],
  donate: readonly string[],
): ReadonlySet<Tensor> {
  for (const key of donate) {
    if (!inputs.some(({ path }) => path.split('.')[0] === key)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `compile: donate must name inputs of ${name}, got ${key}`,
      );
    }
  }
  return new Set(
    inputs
      .filter(({ path }) => donate.includes(path.split('.')[0] ?? ''))
      .map(({ tensor }) => tensor),
  );
}

// A result needs memory of its own: copy what is an input (unless it was donated), shares memory with
// another result or is a part of something.
function materialize<O>(
  outputs: O,
  trace: Trace,
  inputs: readonly Tensor[],
  donated: ReadonlySet<Tensor>,
): O {
  const roots = rootsOf({ nodes: trace.nodes, results: [] });
  const taken = new Set<Tensor>(inputs.filter((x) => !donated.has(x)));
  return mapTree<O, Tensor, Tensor>(outputs, (leaf) => {
    if (!(leaf instanceof Tensor)) return leaf;
    const root = roots.get(leaf) ?? leaf;
    const own = taken.has(root) || bytesOf(root) !== bytesOf(leaf) ? copy(leaf) : leaf;
    taken.add(root);
    return own;
  }) as O;
}

/** A kernel call and the kernel's name. */
interface EncodedStep {
  readonly step: NativeStep;
  readonly kernel: string;
}

/** Turns nodes into native steps: kernel calls with their tensors as views. */
export class Encoder {
  private readonly calls = new Map<Node, KernelCall>();

  constructor(
    private readonly graph: Graph,
    private readonly device: Device,
  ) {
    const skipped = leftOut(graph);
    for (const node of graph.nodes) {
      const kernel = node.definition?.kernel;
      if (kernel === undefined || kernel === 'alias') continue;
      const outputs: Record<string, Ref | null> = {};
      for (const [name, output] of Object.entries(node.outputs)) {
        outputs[name] = skipped.has(output) ? null : output;
      }
      // The builder's type was checked against the operation's operands where it was declared.
      const call = { ...node.inputs, ...node.attributes, ...outputs } as Parameters<
        typeof kernel
      >[0];
      this.calls.set(node, kernel(call));
    }
  }

  scratchBytes(node: Node): number {
    const call = this.calls.get(node);
    if (call === undefined) return 0;
    const { index } = kernelOf(call.kernel);
    const args = this.arguments(call, null, (ref) => viewOf(ref, 0, 0));
    return loadAddon().scratchBytes(index, args, this.device);
  }

  /** The steps of the whole graph. */
  encode(planned: Plan): EncodedStep[] {
    return this.graph.nodes.flatMap((node) => this.step(node, planned));
  }

  /** The step of one operation; none for one that only renames memory. */
  step(node: Node, planned: Plan): EncodedStep[] {
    const call = this.calls.get(node);
    if (call === undefined) return [];
    const { index } = kernelOf(call.kernel);
    const place = planned.scratch.get(node);
    const bytes = place === undefined ? 0 : this.scratchBytes(node);
    const scratch: NativeView | null =
      place === undefined ? null : { ...place, dtype: dtypeCode('uint8'), shape: [bytes] };
    const args = this.arguments(call, scratch, (ref) => {
      const tensor = ref instanceof Reshaped ? ref.of : ref;
      const at = tensor instanceof Tensor ? planned.places.get(tensor) : undefined;
      if (at === undefined) {
        throw new SiglipError('ERR_ARGUMENT', `compile: ${node.label} must read computed values`);
      }
      return viewOf(ref, at.storage, at.offset);
    });
    return [{ step: { kernel: index, label: node.label, args }, kernel: call.kernel }];
  }

  private arguments(
    call: KernelCall,
    scratch: NativeView | null,
    view: (ref: Ref) => NativeView,
  ): NativeArgument[] {
    const given = call.arguments.values();
    return kernelOf(call.kernel).arguments.map(({ kind }) => {
      if (kind === 'scratch') return scratch;
      return encodeArgument(given.next().value ?? null, view);
    });
  }
}

function encodeArgument(argument: KernelArgument, view: (ref: Ref) => NativeView): NativeArgument {
  if (argument === null || typeof argument === 'number') return argument;
  return 'dtype' in argument ? view(argument) : argument.map(view);
}

function viewOf({ dtype, shape }: Ref, storage: number, offset: number): NativeView {
  return { storage, offset, dtype: dtypeCode(dtype), shape: [...shape] };
}

// A run that is queued.
interface Started<O> {
  readonly results: MapTree<O, Tensor, DeviceArray>;
  readonly taps: Map<string, DeviceArray>;
  /** Arrays that were created for the run. */
  readonly owned: readonly DeviceArray[];
  /** Those of them that hold taps and no result. */
  readonly unshared: readonly DeviceArray[];
  readonly ended: Promise<Float64Array | undefined>;
}

// Arrays made for a run: copies of what came from the host, by input, and results that are not
// updated in place, in the order of the program's buffers.
interface RunArrays<O> {
  readonly inputs: DeviceArray[];
  readonly results: DeviceArray[];
  tree?: MapTree<O, Tensor, DeviceArray>;
}

// So many sets of arrays are kept for the next read(), none larger than that: to make and free three
// arrays takes longer than to copy an image.
const maxSpare = 2;
const maxSpareBytes = 4 * 2 ** 20;

// Where the array of a result comes from: an input, or the arrays made for the run.
interface ResultPlace {
  readonly of: 'inputs' | 'made';
  readonly index: number;
}

/** A compiled function. Holds no memory of its own but the share in its device's arena. */
export class Program<I, O> {
  private constantsBound = false;
  private disposed = false;
  private readonly spare: RunArrays<O>[] = [];
  private readonly resultPlaces: readonly ResultPlace[];
  // Of the results that are not updated in place, one per buffer.
  private readonly madeSpecs: readonly Spec[];

  constructor(
    readonly name: string,
    private readonly compiled: Compiled,
    private readonly outputs: O,
  ) {
    const { plan: planned, inputs, resultSpecs } = compiled;
    const made = [...new Set(planned.results.filter((buffer) => buffer >= inputs.length))].sort(
      (a, b) => a - b,
    );
    this.resultPlaces = planned.results.map((buffer) =>
      buffer < inputs.length
        ? { of: 'inputs', index: buffer }
        : { of: 'made', index: made.indexOf(buffer) },
    );
    this.madeSpecs = made.map((buffer) => resultSpecs[planned.results.indexOf(buffer)]);
  }

  /** Where it runs. */
  get device(): Device {
    return this.compiled.device;
  }

  /** What a run needs, in bytes. */
  get memory(): ProgramMemory {
    const { plan: planned, inputs, bound } = this.compiled;
    const inputBytes = totalBytes([...inputs, ...bound].map(({ spec }) => spec));
    const outputBytes = planned.buffers
      .slice(inputs.length + bound.length)
      .reduce((sum, bytes) => sum + bytes, 0);
    const { arenaBytes } = planned;
    return {
      arenaBytes,
      inputBytes,
      outputBytes,
      peakBytes: arenaBytes + inputBytes + outputBytes,
    };
  }

  /** The operations in the order in which they run. */
  get steps(): readonly { readonly label: string; readonly kernel: string }[] {
    return this.compiled.steps;
  }

  /**
   * Runs the program off the JavaScript thread. Host arrays are copied in first. Results are new
   * arrays that the caller disposes, except those updated in place, which are the donated inputs.
   *
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED for wrong inputs, before anything runs.
   */
  async run(inputs: MapTree<I, Spec, RunInput>): Promise<MapTree<O, Tensor, DeviceArray>> {
    const { results, unshared } = await this.execute(inputs, false);
    disposeArrays(unshared);
    return results;
  }

  /**
   * As run(), but gives the contents of one result, which is read behind the run without another turn
   * of the JavaScript thread. Arrays that the run created are disposed, or, small ones, kept for the
   * next read.
   */
  async read<D extends DType>(
    inputs: MapTree<I, Spec, RunInput>,
    select: (results: MapTree<O, Tensor, DeviceArray>) => DeviceArray<D>,
  ): Promise<HostArrayOf[D]> {
    const arrays = this.spare.pop() ?? { inputs: [], results: [] };
    try {
      const { results, ended } = await this.start(inputs, false, arrays);
      const [contents] = await Promise.all([select(results).read(), ended]);
      this.keep(arrays);
      return contents;
    } catch (error) {
      disposeRunArrays(arrays);
      throw error;
    }
  }

  /** As run(), with the named intermediates the program was compiled with. */
  async runWithTaps(
    inputs: MapTree<I, Spec, RunInput>,
  ): Promise<{ outputs: MapTree<O, Tensor, DeviceArray>; taps: Map<string, DeviceArray> }> {
    const { results, taps } = await this.execute(inputs, false);
    return { outputs: results, taps };
  }

  /** As run(), with the time of every operation. */
  async profile(
    inputs: MapTree<I, Spec, RunInput>,
  ): Promise<{ outputs: MapTree<O, Tensor, DeviceArray>; times: StepTime[] }> {
    const { results, unshared, nanoseconds } = await this.execute(inputs, true);
    disposeArrays(unshared);
    const times = this.compiled.steps.map((step, i) => ({
      ...step,
      nanoseconds: nanoseconds?.[i] ?? 0,
    }));
    return { outputs: results, times };
  }

  /**
   * Brings the constants the program reads to the device, which else its first run does.
   *
   * @throws what their sources throw; ERR_ABORTED, ERR_DISPOSED
   */
  async prepare(signal?: AbortSignal): Promise<void> {
    for (const value of this.compiled.bound) {
      expectNotAborted(this.name, signal);
      await value.make();
    }
  }

  /** Gives back the program's share of the arena. Idempotent. */
  dispose(): void {
    this.disposed = true;
    this.compiled.native.dispose();
    for (const arrays of this.spare.splice(0)) disposeRunArrays(arrays);
  }

  private keep(arrays: RunArrays<O>): void {
    let bytes = 0;
    for (const array of arrays.results) bytes += array.bytes;
    arrays.inputs.forEach((array) => (bytes += array.bytes));
    if (this.disposed || this.spare.length >= maxSpare || bytes > maxSpareBytes) {
      disposeRunArrays(arrays);
    } else {
      this.spare.push(arrays);
    }
  }

  private async execute(
    tree: MapTree<I, Spec, RunInput>,
    profile: boolean,
  ): Promise<Started<O> & { nanoseconds: Float64Array | undefined }> {
    const started = await this.start(tree, profile);
    try {
      return { ...started, nanoseconds: await started.ended };
    } catch (error) {
      disposeArrays(started.owned);
      throw error;
    }
  }

  // Queues a run. Who calls has to listen to its end. With `kept`, whose arrays are used and to which
  // those are added that are missing, it is left to the caller to dispose what the run made.
  private async start(
    tree: MapTree<I, Spec, RunInput>,
    profile: boolean,
    kept?: RunArrays<O>,
  ): Promise<Started<O>> {
    const { native, device, plan: planned, inputs, bound, taps } = this.compiled;
    const arrays: RunArrays<O> = kept ?? { inputs: [], results: [] };
    try {
      const given = flatten(tree);
      if (given.length !== inputs.length) {
        throw new SiglipError(
          'ERR_ARGUMENT',
          `${this.name}: inputs must be ${String(inputs.length)} arrays, got ${String(given.length)}`,
        );
      }
      const brought = inputs.map(({ path, spec }, i) => {
        const leaf = given[i];
        if (leaf?.path !== path) {
          throw new SiglipError(
            'ERR_ARGUMENT',
            `${this.name}: input ${String(i)} must be ${path}, got ${leaf?.path ?? 'nothing'}`,
          );
        }
        if (!(leaf.leaf instanceof DeviceArray) && planned.results.includes(i)) {
          throw new SiglipError(
            'ERR_ARGUMENT',
            `${this.name}: ${path} must be a DeviceArray, which the run updates in place, got host memory`,
          );
        }
        return this.admit(leaf.leaf as RunInput, path, spec, arrays.inputs, i);
      });
      // From the second run on without waiting, so that runs queue up in the order of their calls.
      if (!this.constantsBound) {
        const present = bound.map((value) => value.present());
        const constants = present.every((value) => value !== undefined)
          ? present
          : await Promise.all(bound.map((value) => value.make()));
        native.bind(
          inputs.length,
          constants.map(({ buffer }) => buffer),
        );
        this.constantsBound = true;
      }
      // Throws when they are gone.
      bound.at(0)?.present();
      for (const spec of this.madeSpecs.slice(arrays.results.length)) {
        arrays.results.push(DeviceArray.empty(spec, device));
      }
      const buffers = [...brought, ...arrays.results].map(({ buffer }) => buffer);
      const resultArrays = this.resultPlaces.map(({ of, index }) =>
        of === 'inputs' ? brought[index] : arrays.results[index],
      );
      const leafCount = resultArrays.length - taps.length;
      const results = arrays.tree ?? this.resultTree(resultArrays);
      if (!this.resultPlaces.some(({ of }) => of === 'inputs')) arrays.tree = results;
      return {
        results,
        taps: new Map(taps.map((tapName, i) => [tapName, resultArrays[leafCount + i]])),
        owned: arrays.results,
        unshared: taps.length === 0 ? [] : without(arrays.results, resultArrays, leafCount),
        ended: native.run(buffers, profile),
      };
    } catch (error) {
      if (kept === undefined) disposeArrays(arrays.results);
      throw error;
    } finally {
      // The run that was queued keeps their memory until it is done with it.
      if (kept === undefined) disposeArrays(Object.values(arrays.inputs));
    }
  }

  private resultTree(resultArrays: readonly DeviceArray[]): MapTree<O, Tensor, DeviceArray> {
    let next = 0;
    return mapTree<O, Tensor, DeviceArray>(this.outputs, () => resultArrays[next++]);
  }

  // What comes from the host goes into the array made for it before, or into a new one.
  private admit(
    input: RunInput,
    path: string,
    spec: Spec,
    made: DeviceArray[],
    index: number,
  ): DeviceArray {
    if (input instanceof DeviceArray) {
      this.checkInput(input, path, spec);
      return input;
    }
    const known = made.at(index);
    if (known?.overwrite(input) === true) return known;
    const array = DeviceArray.from(input, spec.shape, this.device);
    made[index] = array;
    known?.dispose();
    this.checkInput(array, path, spec);
    return array;
  }

  private checkInput(array: DeviceArray, path: string, spec: Spec): void {
    if (array.device !== this.device) {
      throw new SiglipError(
        'ERR_DEVICE',
        `${this.name}: ${path} must be on ${this.device}, got an array on ${array.device}`,
      );
    }
    const sameShape =
      array.shape.length === spec.shape.length &&
      array.shape.every((n, axis) => n === spec.shape[axis]);
    if (array.dtype === spec.dtype && sameShape) return;
    throw new SiglipError(
      array.dtype === spec.dtype ? 'ERR_SHAPE' : 'ERR_DTYPE',
      `${this.name}: ${path} must be ${describe(spec)}, got ${describe(array)}`,
    );
  }
}

// The arrays that are not among the first of the results.
function without(
  arrays: readonly DeviceArray[],
  results: readonly DeviceArray[],
  count: number,
): DeviceArray[] {
  const first = new Set(results.slice(0, count));
  return arrays.filter((array) => !first.has(array));
}

function disposeRunArrays({ inputs, results }: RunArrays<unknown>): void {
  disposeArrays(Object.values(inputs));
  disposeArrays(results);
}

/** Disposes every array of a tree. */
export function disposeArrays(tree: unknown): void {
  for (const { leaf } of flatten(tree)) (leaf as DeviceArray).dispose();
}

// Inputs that never change between runs, such as a model's weights at inference. What follows from
// them alone is computed once and kept for all programs: packed weights, a projected probe.
import type { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { Spec } from '../native/spec';
import type { Graph } from './rewrite';
import type { Node } from './tensor';
import { Tensor, operandsOf } from './tensor';
import { flatten } from './tree';

/** An array that never changes, brought to a program's device when the program first needs it. */
export interface ConstantSource extends Spec {
  /** The array, on whatever device; who asks disposes it. */
  open(signal?: AbortSignal): Promise<DeviceArray>;
}

/**
 * A tree of constants and everything that programs derived from them. Programs compiled with it,
 * all for one device, share what they have in common. Nothing is opened before the first run that needs it, and what is
 * only needed to derive something else is given back at once.
 *
 * @example
 * const constants = new Constants({ weight });
 * const program = compile('project', ({ x }, { weight }) => ({ y: linear(x, weight) }),
 *   { x: float32(4, 8) }, { constants });
 */
export class Constants<C> {
  private readonly values = new Map<string, Promise<DeviceArray>>();
  private readonly ready = new Map<string, DeviceArray>();
  // Derivations run one after the other, so that only one's operands are on the device.
  private last: Promise<unknown> = Promise.resolve();
  private gone = false;

  constructor(readonly tree: C) {}

  /** The source of a path of the tree. */
  source(path: string): ConstantSource {
    for (const { path: found, leaf } of flatten(this.tree)) {
      if (found === path) return leaf as ConstantSource;
    }
    throw new SiglipError(
      'ERR_ARGUMENT',
      `constants: path must be in the tree, got ${path}, which is not`,
    );
  }

  /** What `make` gave for the key, now or before. A failure is not kept. */
  value(key: string, make: () => Promise<DeviceArray>): Promise<DeviceArray> {
    this.checkAlive();
    const known = this.values.get(key);
    if (known !== undefined) return known;
    const value = this.last.then(async () => {
      this.checkAlive();
      const array = await make();
      if (this.gone) array.dispose();
      this.checkAlive();
      this.ready.set(key, array);
      return array;
    });
    this.last = value.catch(() => {
      this.values.delete(key);
    });
    this.values.set(key, value);
    return value;
  }

  /** The value if it is there already. */
  present(key: string): DeviceArray | undefined {
    this.checkAlive();
    return this.ready.get(key);
  }

  /** Bytes on the device. */
  get bytes(): number {
    return [...this.ready.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Frees everything now. Idempotent; runs that come later throw ERR_DISPOSED. */
  dispose(): void {
    this.gone = true;
    for (const array of this.ready.values()) array.dispose();
    this.ready.clear();
    this.values.clear();
  }

  private checkAlive(): void {
    if (!this.gone) return;
    throw new SiglipError('ERR_DISPOSED', 'constants: they must be alive, got disposed ones');
  }
}

/** What a program takes from constants: a leaf of the tree, or what some operations make of it. */
export interface Derived {
  /** Equal for equal computations of equal leaves, whatever the program. */
  readonly key: string;
  readonly tensor: Tensor;
  /** The operations that compute it, in order; none for a leaf. */
  readonly nodes: readonly Node[];
}

/** Follows which values depend on constants alone. */
export class ConstantValues {
  private readonly keys = new Map<Tensor, string>();
  private readonly producers = new Map<Tensor, Node>();

  constructor(leaves: ReadonlyMap<Tensor, string>) {
    for (const [tensor, path] of leaves) this.keys.set(tensor, path);
  }

  has(x: Tensor): boolean {
    return this.keys.has(x);
  }

  /** To be told every operation in order. Gives whether it depends on constants alone. */
  follow(node: Node): boolean {
    const operands = operandsOf(node);
    const constant =
      operands.length > 0 &&
      operands.every((x) => this.keys.has(x)) &&
      Object.keys(node.definition?.inPlace ?? {}).length === 0;
    if (!constant) return false;
    const text = this.expression(node);
    for (const [name, output] of Object.entries(node.outputs)) {
      this.keys.set(output, `${text}.${name}:${output.dtype}`);
      this.producers.set(output, node);
    }
    return true;
  }

  derived(tensor: Tensor): Derived {
    const nodes: Node[] = [];
    const visit = (x: Tensor): void => {
      const node = this.producers.get(x);
      if (node === undefined || nodes.includes(node)) return;
      operandsOf(node).forEach(visit);
      nodes.push(node);
    };
    visit(tensor);
    return { key: this.keys.get(tensor) ?? '', tensor, nodes };
  }

  private expression({ definition, inputs, attributes }: Node): string {
    const operands = Object.entries(inputs).map(([name, operand]) => {
      if (operand === null) return '';
      const list = operand instanceof Tensor ? [operand] : operand;
      return `${name}=${list.map((x) => this.keys.get(x) ?? '').join('+')}`;
    });
    return `${definition?.name ?? ''}(${operands.join(',')};${JSON.stringify(attributes)})`;
  }
}

/**
 * Takes out of a graph what depends on constants alone. What is left reads the derived values as if
 * they were inputs. Results stay, as do operations that only rename a leaf's memory.
 */
export function hoist(
  graph: Graph,
  leaves: ReadonlyMap<Tensor, string>,
): { readonly graph: Graph; readonly derived: readonly Derived[] } {
  const values = new ConstantValues(leaves);
  const results = new Set(graph.results);
  const renamed = new Set<Tensor>(leaves.keys());
  const left: Node[] = [];
  for (const node of graph.nodes) {
    const outputs = Object.values(node.outputs);
    if (node.definition?.kernel === 'alias' && operandsOf(node).every((x) => renamed.has(x))) {
      values.follow(node);
      outputs.forEach((x) => renamed.add(x));
      left.push(node);
    } else if (outputs.some((x) => results.has(x)) || !values.follow(node)) {
      left.push(node);
    }
  }
  // An alias of a leaf that nothing left reads goes with what read it.
  const read = new Set(graph.results);
  const used: Node[] = [];
  for (const node of left.reverse()) {
    const outputs = Object.values(node.outputs);
    const dead = outputs.every((x) => renamed.has(x) && !read.has(x));
    if (dead) continue;
    operandsOf(node).forEach((x) => read.add(x));
    used.unshift(node);
  }
  const computed = new Set(used.flatMap((node) => Object.values(node.outputs)));
  const derived = [...read]
    .reverse()
    .filter((x) => values.has(x) && !computed.has(x))
    .map((x) => values.derived(x));
  return { graph: { nodes: used, results: graph.results }, derived };
}

// The projections to queries, keys and values are products of the same rows by three weights. As one
// product, by the weights under one another, they read the rows once, fill a GPU better and need fewer
// launches; so do their backwards, dx = Σ dy_i W_i being one product as well.
import type { Device } from '../array';
import type { Graph, Node, Rewrite } from '../graph';
import { copy, extent, indexOf, operandsOf, recordInto, substitute, Tensor, Trace } from '../graph';
import type { Heads, Limits } from '../ops';
import {
  joinedBackward,
  joinedForward,
  joinRows,
  linearBackwardInput,
  linearBackwardWeight,
  linearForward,
  rowRange,
} from '../ops';

const parts = ['q', 'k', 'v'] as const;

/** Three layers of one input, whose outputs only attention reads, and what reads those of its backward. */
interface Projections {
  readonly layers: readonly Node[];
  readonly attentions: readonly Node[];
  readonly backwards: readonly Backward[];
}

interface Backward {
  readonly attention: Node;
  /** Products for the gradient of the input, or none; their sum is all that is read of them. */
  readonly toInput: readonly Node[];
  /** Products for the gradients of weights and biases, or none. */
  readonly toWeights: readonly Node[];
}

/** For compile(): joins them in self-attention wherever nothing else reads what each gives. */
export const joinProjections: Rewrite = (graph) => {
  const joiner = new Joiner(graph);
  for (const projections of new Finder(graph).all()) joiner.join(projections);
  return joiner.after();
};

/** For compile(): the rewrites that pay on a device. */
export function rewritesFor(device: Device = 'cpu'): readonly Rewrite[] {
  return device === 'cpu' ? [] : [joinProjections];
}

class Finder {
  private readonly producers: ReadonlyMap<Tensor, Node>;
  private readonly readers: ReadonlyMap<Tensor, readonly number[]>;
  private readonly results: ReadonlySet<Tensor>;

  constructor(private readonly graph: Graph) {
    ({ producers: this.producers, readers: this.readers } = indexOf(graph));
    this.results = new Set(graph.results);
  }

  all(): Projections[] {
    const taken = new Set<Node>();
    const found: Projections[] = [];
    for (const node of this.graph.nodes) {
      const projections = node.definition?.name === 'attention' ? this.of(node) : undefined;
      if (projections === undefined || projections.layers.some((layer) => taken.has(layer)))
        continue;
      projections.layers.forEach((layer) => taken.add(layer));
      found.push(projections);
    }
    return found;
  }

  private of(attention: Node): Projections | undefined {
    if (attention.inputs['keySegments'] !== null) return undefined;
    const layers = parts.map((part) => this.producers.get(attention.inputs[part] as Tensor));
    if (!layers.every((layer) => layer !== undefined) || !areAlike(layers)) return undefined;
    const tensors = parts.map((part) => attention.inputs[part] as Tensor);
    const readsAll = (node: Node): boolean =>
      parts.every((part, i) => node.inputs[part] === tensors[i]);
    const readers = this.readersOf(tensors[0]);
    const others = tensors.slice(1).flatMap((x) => this.readersOf(x));
    if (
      readers === undefined ||
      !others.every((node) => node !== undefined && readers.includes(node))
    )
      return undefined;
    if (layers.some((layer, i) => layer.outputs['y'] !== tensors[i] || this.isRead(layer, 'pre')))
      return undefined;
    const attentions = readers.filter(({ definition }) => definition?.name === 'attention');
    const behind = readers.filter(({ definition }) => definition?.name === 'attention_backward');
    if (attentions.length + behind.length < readers.length || !readers.every(readsAll))
      return undefined;
    const backwards = behind.map((node) => this.backward(node, layers));
    if (!backwards.every((backward) => backward !== undefined)) return undefined;
    return { layers, attentions, backwards };
  }

  private backward(attention: Node, layers: readonly Node[]): Backward | undefined {
    const gradients = ['dq', 'dk', 'dv'].map((name) => attention.outputs[name]);
    const readers = gradients.map((x) => this.readersOf(x));
    if (!readers.every((nodes) => nodes !== undefined)) return undefined;
    const named = (name: string): Node[] =>
      readers.flatMap((nodes) => nodes.filter(({ definition }) => definition?.name === name));
    const toInput = named('linear_backward_input');
    const toWeights = named('linear_backward_weight');
    const each = (nodes: readonly Node[], fits: (node: Node, i: number) => boolean): boolean =>
      nodes.length === 0 || (nodes.length === parts.length && nodes.every(fits));
    const complete =
      readers.flat().length === toInput.length + toWeights.length &&
      each(
        toInput,
        ({ inputs, outputs }, i) =>
          inputs['dy'] === gradients[i] &&
          inputs['weight'] === layers[i].inputs['weight'] &&
          inputs['residual'] === null &&
          inputs['pre'] === null &&
          this.isOnlyAdded(outputs['dx']),
      ) &&
      each(
        toWeights,
        ({ inputs }, i) =>
          inputs['dy'] === gradients[i] && inputs['x'] === toWeights[0].inputs['x'],
      );
    return complete ? { attention, toInput, toWeights } : undefined;
  }

  /** Who reads it; none where it is a result. */
  private readersOf(x: Tensor): readonly Node[] | undefined {
    if (this.results.has(x)) return undefined;
    return [...new Set(this.readers.get(x) ?? [])].map((position) => this.graph.nodes[position]);
  }

  private isRead(node: Node, output: string): boolean {
    const x = node.outputs[output];
    return this.results.has(x) || (this.readers.get(x) ?? []).length > 0;
  }

  /** Whether it may be left out of the sums that read it, nothing else doing so. */
  private isOnlyAdded(x: Tensor): boolean {
    const positions = this.readers.get(x) ?? [];
    const [reader] = positions.map((position) => this.graph.nodes[position]);
    return !this.results.has(x) && positions.length === 1 && reader.definition?.name === 'add';
  }
}

function areAlike(layers: readonly Node[]): boolean {
  const [first] = layers;
  return (
    new Set(layers).size === parts.length &&
    layers.every(({ definition, inputs, attributes }) => {
      const { x, weight, bias, residual } = inputs;
      return (
        definition?.name === 'linear' &&
        x === first.inputs['x'] &&
        weight instanceof Tensor &&
        weight.shape.join() === (first.inputs['weight'] as Tensor).shape.join() &&
        (bias === null) === (first.inputs['bias'] === null) &&
        residual === null &&
        (attributes as { activation: number }).activation === 0
      );
    })
  );
}

interface Parameters {
  readonly weight: Tensor;
  readonly bias: Tensor | null;
}

class Joiner {
  /** What takes the place of a node: others, or nothing. */
  private readonly replaced = new Map<Node, readonly Node[]>();
  private readonly substitutions = new Map<Tensor, Tensor>();
  /** Summands that are part of another one now. */
  private readonly gone = new Set<Tensor>();
  /** Parameters of joined layers, by the weight of the first. */
  private readonly parameters = new Map<Tensor, Parameters>();
  private readonly positions: ReadonlyMap<Node, number>;

  constructor(private readonly before: Graph) {
    this.positions = new Map(before.nodes.map((node, i) => [node, i]));
  }

  join({ layers, attentions, backwards }: Projections): void {
    const last = this.inOrder(layers)[parts.length - 1];
    const { x } = last.inputs as { x: Tensor };
    const { qkv, weight } = this.replace(layers, last, () => {
      const joined = this.joinedParameters(layers);
      const { y } = linearForward({ x, ...joined, residual: null }, { activation: 0 });
      return { qkv: y, weight: joined.weight };
    });
    for (const node of attentions) {
      this.replace([node], node, () => {
        const { o, lse } = joinedForward({ qkv, ...limitsOf(node) }, node.attributes as Heads);
        this.substitutions.set(node.outputs['o'], o);
        this.substitutions.set(node.outputs['lse'], lse);
      });
    }
    for (const backward of backwards) this.joinBackward(backward, qkv, weight);
  }

  /** The graph with everything in its place. */
  after(): Graph {
    const nodes: Node[] = [];
    for (const node of this.before.nodes) {
      for (const one of this.replaced.get(node) ?? [node]) {
        if (!this.leavesOut(one)) nodes.push(this.reading(one));
      }
    }
    // What is a part of an array is no result.
    const results = this.before.results.map((x) => {
      const now = this.now(x);
      if (now === x || now.node.definition?.kernel !== 'alias') return now;
      const { nodes: copies, value } = recorded(() => copy(now));
      nodes.push(...copies.map((node) => ({ ...node, label: x.node.label })));
      return value;
    });
    return { nodes, results };
  }

  private joinBackward(
    { attention, toInput, toWeights }: Backward,
    qkv: Tensor,
    weight: Tensor,
  ): void {
    const { dout, o, lse } = attention.inputs as { dout: Tensor; o: Tensor; lse: Tensor };
    const dqkv = this.replace([attention, ...toInput], attention, () => {
      const operands = { dout, qkv, o, lse, ...limitsOf(attention) };
      const joined = joinedBackward(operands, attention.attributes as Heads).dqkv;
      if (toInput.length > 0) {
        const { dx } = linearBackwardInput({ dy: joined, weight, residual: null, pre: null }, {});
        const [kept, ...others] = this.inOrder(toInput).map(({ outputs }) => outputs['dx']);
        this.substitutions.set(kept, dx);
        for (const other of others) this.gone.add(other);
      }
      return joined;
    });
    if (toWeights.length === 0) return;
    const [first] = this.inOrder(toWeights);
    this.replace(toWeights, first, () => {
      const { dweight, dbias } = linearBackwardWeight(
        { dy: dqkv, x: first.inputs['x'] as Tensor },
        {},
      );
      toWeights.forEach(({ outputs }, i) => {
        const rows = extent(outputs['dweight'], 0);
        this.substitutions.set(outputs['dweight'], rowRange(dweight, i * rows, rows));
        this.substitutions.set(outputs['dbias'], rowRange(dbias, i * rows, rows));
      });
    });
  }

  private joinedParameters(layers: readonly Node[]): Parameters {
    const of = (name: string): Tensor[] => layers.map(({ inputs }) => inputs[name] as Tensor);
    const weights = of('weight');
    const known = this.parameters.get(weights[0]);
    if (known !== undefined) return known;
    const bias = layers[0].inputs['bias'] === null ? null : joinRows(of('bias'));
    const joined = { weight: joinRows(weights), bias };
    this.parameters.set(weights[0], joined);
    return joined;
  }

  /** Puts what `body` records in the place of one of the nodes that it makes superfluous. */
  private replace<T>(nodes: readonly Node[], place: Node, body: () => T): T {
    const { nodes: added, value } = recorded(body);
    for (const node of nodes) this.replaced.set(node, []);
    this.replaced.set(
      place,
      added.map((node) => ({ ...node, label: place.label })),
    );
    return value;
  }

  /** Whether it is a sum that has lost a summand, and so is the other one. */
  private leavesOut({ definition, inputs, outputs }: Node): boolean {
    if (definition?.name !== 'add') return false;
    const { a, b } = inputs as { a: Tensor; b: Tensor };
    if (!this.gone.has(a) && !this.gone.has(b)) return false;
    this.substitutions.set(outputs['y'], this.gone.has(a) ? b : a);
    return true;
  }

  private reading(node: Node): Node {
    const stale = operandsOf(node).filter((x) => this.substitutions.has(x));
    if (stale.length === 0) return node;
    return {
      ...node,
      inputs: substitute(node.inputs, new Map(stale.map((x) => [x, this.now(x)]))),
    };
  }

  private now(x: Tensor): Tensor {
    const other = this.substitutions.get(x);
    return other === undefined ? x : this.now(other);
  }

  private inOrder(nodes: readonly Node[]): Node[] {
    const at = (node: Node): number => this.positions.get(node) ?? 0;
    return [...nodes].sort((a, b) => at(a) - at(b));
  }
}

function limitsOf({ inputs }: Node): Limits {
  const { keyMask, segments, keySegments, causal } = inputs as unknown as Limits;
  return { keyMask, segments, keySegments, causal };
}

function recorded<T>(body: () => T): { readonly nodes: readonly Node[]; readonly value: T } {
  const trace = new Trace();
  const value = recordInto(trace, body);
  return { nodes: trace.nodes, value };
}

// Rewrites of a finished graph, each a plain function from graph to graph that needs no device:
//   - prune: operations whose results nobody reads are dropped;
//   - fuseActivations: a pointwise activation moves into the epilogue of the product before it;
//   - fuseActivationGradients: so does the gradient of one into the product before it;
//   - fuseResiduals: `add(x, y)` moves into the operation that computes y.
// What can be fused into what is declared by the operations themselves (OpDefinition.fusions).
import { substitute } from './gradient';
import { ConstantValues } from './constants';
import type { Node, Operand } from './tensor';
import { Tensor, Trace, operandsOf, recordInto } from './tensor';

/** A list of operations in execution order with the tensors that must survive. */
export interface Graph {
  readonly nodes: readonly Node[];
  readonly results: readonly Tensor[];
}

export type Rewrite = (graph: Graph) => Graph;

/** Drops every operation that contributes neither to a result nor to memory updated in place. */
export const prune: Rewrite = ({ nodes, results }) => {
  const needed = new Set<Tensor>(results);
  const kept: Node[] = [];
  for (const node of [...nodes].reverse()) {
    const used = Object.values(node.outputs).some((output) => needed.has(output));
    if (!used && node.definition !== undefined) continue;
    kept.push(node);
    for (const x of operandsOf(node)) needed.add(x);
  }
  return { nodes: kept.reverse(), results };
};

/** How often each tensor is read, a result counting as one reading. */
export function countUses({ nodes, results }: Graph): ReadonlyMap<Tensor, number> {
  const uses = new Map<Tensor, number>();
  const count = (x: Tensor): void => {
    uses.set(x, (uses.get(x) ?? 0) + 1);
  };
  for (const node of nodes) operandsOf(node).forEach(count);
  results.forEach(count);
  return uses;
}

/** A node like `node` with some parts replaced and outputs of its own. */
export function rebuilt(
  node: Node,
  changes: Partial<Pick<Node, 'inputs' | 'attributes' | 'label'>>,
): Node {
  const outputs: Record<string, Tensor> = {};
  const result: Node = { ...node, ...changes, outputs };
  for (const [name, output] of Object.entries(node.outputs)) {
    outputs[name] = new Tensor(result, name, output);
  }
  return result;
}

// The same operation reading other tensors; its outputs keep their identity.
function reading(node: Node, substitutions: ReadonlyMap<Tensor, Tensor>): Node {
  return operandsOf(node).some((x) => substitutions.has(x))
    ? { ...node, inputs: substitute(node.inputs, substitutions) }
    : node;
}

/**
 * Which node computes a tensor, and at which positions it is read. Tensor.node is of no use here: it
 * names the node as it was first recorded.
 */
export function indexOf({ nodes }: Graph): {
  producers: ReadonlyMap<Tensor, Node>;
  readers: ReadonlyMap<Tensor, readonly number[]>;
} {
  const producers = new Map<Tensor, Node>();
  const readers = new Map<Tensor, number[]>();
  nodes.forEach((node, position) => {
    for (const output of Object.values(node.outputs)) producers.set(output, node);
    for (const x of operandsOf(node)) readers.set(x, [...(readers.get(x) ?? []), position]);
  });
  return { producers, readers };
}

/** gelu(linear(x)) becomes one operation that gives both the activation and what went into it. */
export const fuseActivations: Rewrite = (graph) => {
  const { producers } = indexOf(graph);
  const absorbed = new Map<Node, Node>(); // producer -> the activation it takes over
  for (const node of graph.nodes) {
    const [x] = operandsOf(node);
    const producer = x === undefined ? undefined : producers.get(x);
    const activation = producer?.definition?.fusions?.activation;
    if (producer === undefined || activation === undefined || absorbed.has(producer)) continue;
    if (activation.of !== node.definition?.name || producer.outputs[activation.output] !== x)
      continue;
    absorbed.set(producer, node);
  }
  const gone = new Set(absorbed.values());
  const substitutions = new Map<Tensor, Tensor>();
  const nodes: Node[] = [];
  for (const node of graph.nodes) {
    if (gone.has(node)) continue;
    const current = reading(node, substitutions);
    const consumer = absorbed.get(node);
    const activation = node.definition?.fusions?.activation;
    if (consumer === undefined || activation === undefined) {
      nodes.push(current);
      continue;
    }
    const fused = rebuilt(current, {
      attributes: { ...node.attributes, ...activation.attributes },
      label: `${node.label}+${activation.of}`,
    });
    replaceOutput(substitutions, node, activation.output, fused, activation.before);
    for (const name of Object.keys(consumer.outputs)) {
      replaceOutput(substitutions, consumer, name, fused, activation.output);
    }
    nodes.push(fused);
  }
  return { nodes, results: graph.results.map((x) => substitutions.get(x) ?? x) };
};

function replaceOutput(
  substitutions: Map<Tensor, Tensor>,
  from: Node,
  fromName: string,
  to: Node,
  toName: string,
): void {
  const before = from.outputs[fromName];
  const after = to.outputs[toName];
  if (before !== undefined && after !== undefined) substitutions.set(before, after);
}

/** A product that takes over an operation which reads it, another operand of that one becoming its own. */
interface Takeover {
  readonly producer: Node;
  readonly operand: string;
  readonly value: Operand;
  readonly output: string;
  /** What the label of the two together ends in. */
  readonly suffix: string;
}

// Puts every producer in the place of the operation that it takes over, by that operation.
function takenOver(graph: Graph, takeovers: ReadonlyMap<Node, Takeover>): Graph {
  const leaving = new Set([...takeovers.values()].map(({ producer }) => producer));
  const substitutions = new Map<Tensor, Tensor>();
  const nodes: Node[] = [];
  for (const node of graph.nodes) {
    // What was itself chosen to leave cannot take over: nothing is added to a sum, nor to a gradient.
    if (leaving.has(node)) continue;
    const takeover = takeovers.get(node);
    if (takeover === undefined) {
      nodes.push(reading(node, substitutions));
      continue;
    }
    const { producer, operand, value, output, suffix } = takeover;
    const fused = rebuilt(producer, {
      inputs: substitute({ ...producer.inputs, [operand]: value }, substitutions),
      label: `${producer.label}+${suffix}`,
    });
    for (const name of Object.keys(producer.outputs)) {
      replaceOutput(substitutions, producer, name, fused, name);
    }
    for (const name of Object.keys(node.outputs)) {
      replaceOutput(substitutions, node, name, fused, output);
    }
    nodes.push(fused);
  }
  return { nodes, results: graph.results.map((x) => substitutions.get(x) ?? x) };
}

/** gelu'(pre) ∘ linear_backward_input(dy) becomes one operation where nobody else reads the product. */
export const fuseActivationGradients: Rewrite = (graph) => {
  const uses = countUses(graph);
  const { producers } = indexOf(graph);
  const takeovers = new Map<Node, Takeover>();
  for (const node of graph.nodes) {
    for (const y of operandsOf(node)) {
      const producer = producers.get(y);
      const { activationGradient: fusion, residual } = producer?.definition?.fusions ?? {};
      if (producer === undefined || fusion?.of !== node.definition?.name) continue;
      if (fusion === undefined || node.inputs[fusion.upstream] !== y) continue;
      if (producer.outputs[fusion.output] !== y || uses.get(y) !== 1) continue;
      if (residual !== undefined && producer.inputs[residual.operand] !== null) continue;
      const { operand, output, of: suffix } = fusion;
      const value = node.inputs[fusion.argument];
      takeovers.set(node, { producer, operand, value, output, suffix });
    }
  }
  return takenOver(graph, takeovers);
};

/** add(x, y) becomes the residual operand of the operation that computes y, if nobody else reads y. */
export const fuseResiduals: Rewrite = (graph) => {
  const uses = countUses(graph);
  const { producers, readers } = indexOf(graph);
  const takeovers = new Map<Node, Takeover>();
  const leaving = new Set<Node>();
  graph.nodes.forEach((node, position) => {
    if (node.definition?.name !== 'add') return;
    const { a, b } = node.inputs;
    if (!(a instanceof Tensor) || !(b instanceof Tensor) || a === b) return;
    const candidates: readonly (readonly [Tensor, Tensor])[] = [
      [b, a],
      [a, b],
    ];
    for (const [y, other] of candidates) {
      const producer = producers.get(y);
      const residual = producer?.definition?.fusions?.residual;
      if (producer === undefined || residual === undefined || leaving.has(producer)) continue;
      if (producer.outputs[residual.output] !== y || producer.inputs[residual.operand] !== null)
        continue;
      // The producer moves to where the sum is: y must be read by the sum alone, and what else it
      // gives (a bias gradient) not before.
      const free = Object.values(producer.outputs).every((output) =>
        output === y
          ? uses.get(y) === 1
          : (readers.get(output) ?? []).every((reader) => reader > position),
      );
      if (!free) continue;
      takeovers.set(node, { producer, ...residual, value: other, suffix: 'add' });
      leaving.add(producer);
      return;
    }
  });
  return takenOver(graph, takeovers);
};

/**
 * Replaces operations by others chosen for the program at hand, such as a product with a constant
 * weight by one that reads the weight packed. `specialize` may record operations; it gives the
 * tensors that take the place of the outputs, or undefined to leave the operation.
 */
export type Specialize = (
  node: Node,
  isConstant: (x: Tensor) => boolean,
) => Readonly<Record<string, Tensor>> | undefined;

/** Applies `specialize` to every operation; see there. */
export function specialized(
  graph: Graph,
  leaves: ReadonlyMap<Tensor, string>,
  specialize: Specialize,
): Graph {
  const constants = new ConstantValues(leaves);
  const substitutions = new Map<Tensor, Tensor>();
  const nodes: Node[] = [];
  for (const node of graph.nodes) {
    const current = reading(node, substitutions);
    const trace = new Trace();
    const outputs = recordInto(trace, () => specialize(current, (x) => constants.has(x)));
    const added = outputs === undefined ? [current] : trace.nodes;
    for (const [name, output] of Object.entries(outputs ?? {})) {
      const before = node.outputs[name];
      if (before !== undefined) substitutions.set(before, output);
    }
    for (const one of added) {
      constants.follow(one);
      nodes.push(outputs === undefined ? one : { ...one, label: current.label });
    }
  }
  return { nodes, results: graph.results.map((x) => substitutions.get(x) ?? x) };
}

/** What compile() applies to every graph, in this order. */
export const rewrites: readonly Rewrite[] = [
  prune,
  fuseActivations,
  fuseActivationGradients,
  fuseResiduals,
  prune,
];

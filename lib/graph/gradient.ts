// Reverse-mode differentiation as a transformation of the trace: every operation's rule appends the
// operations of its backward. Operations of a checkpointed segment are first recorded again, so that
// the originals' results need not be kept until then.
import { SiglipError } from '../errors';
import { add, fill } from './intrinsics';
import type { GradientContext } from './op';
import { expectSpec } from './op';
import type { Node, Operand, Operands, Segment } from './tensor';
import { Tensor, currentTrace, operandsOf } from './tensor';
import type { MapTree } from './tree';
import { flatten, mapTree } from './tree';

/**
 * The gradient of a scalar with respect to every tensor of a tree.
 *
 * @param loss - float32, shape [1].
 * @param wrt - tensors of the same trace; what the loss does not depend on gets zeros.
 * @returns a tree of the same form.
 * @throws ERR_SHAPE when the loss is no scalar, ERR_NOT_DIFFERENTIABLE when the path from `wrt` to
 * the loss leads through an operation without a gradient.
 */
export function gradient<T>(loss: Tensor, wrt: T): MapTree<T, Tensor, Tensor> {
  if (loss.shape.length !== 1 || loss.shape[0] !== 1) {
    throw new SiglipError(
      'ERR_SHAPE',
      `gradient: loss must have shape [1], got [${loss.shape.join(', ')}]`,
    );
  }
  return backward('gradient', [loss], () => [fill(1, [1])], wrt);
}

/**
 * The gradient of a scalar that lies beyond the trace, from its gradient with respect to outputs of
 * the trace (a vector-Jacobian product).
 *
 * @param outputs - float32 tensors of any shapes.
 * @param upstream - the scalar's gradient with respect to each output, of its shape.
 * @param wrt - as in {@link gradient}.
 * @returns a tree of the form of `wrt`.
 * @throws ERR_SHAPE, ERR_DTYPE when an upstream gradient is not like its output; as {@link gradient}.
 */
export function pullback<T>(
  outputs: readonly Tensor[],
  upstream: readonly Tensor[],
  wrt: T,
): MapTree<T, Tensor, Tensor> {
  if (outputs.length !== upstream.length) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `pullback: upstream must be one for each of ${String(outputs.length)} outputs, got ${String(upstream.length)}`,
    );
  }
  for (const [i, output] of outputs.entries()) {
    expectSpec('pullback', `upstream ${String(i)}`, upstream[i], output);
  }
  return backward('pullback', outputs, () => upstream, wrt);
}

function backward<T>(
  who: string,
  outputs: readonly Tensor[],
  upstream: () => readonly Tensor[],
  wrt: T,
): MapTree<T, Tensor, Tensor> {
  const trace = currentTrace(who);
  const targets = flatten(wrt).map(({ leaf }) => leaf as Tensor);
  const forward = [...trace.nodes];
  const dependent = dependents(forward, targets);
  const gradients = new Map<Tensor, Tensor>();
  const recomputed = new Map<Segment, ReadonlyMap<Tensor, Tensor>>();
  const grow = (x: Tensor, dx: Tensor): void => {
    const sum = gradients.get(x);
    gradients.set(x, sum === undefined ? dx : add(sum, dx));
  };

  const seeds = upstream();
  for (const [i, output] of outputs.entries()) grow(output, seeds[i]);
  for (const node of forward.reverse()) {
    const { definition } = node;
    if (definition === undefined || definition.gradient === 'stops') continue;
    const incoming = outputGradients(node, gradients);
    if (incoming === undefined || !operandsOf(node).some((x) => dependent.has(x))) continue;
    if (definition.gradient === 'notDifferentiable') {
      throw new SiglipError(
        'ERR_NOT_DIFFERENTIABLE',
        `gradient: ${node.label} must not lie between the loss and what it is differentiated by, got a path through it`,
      );
    }
    const context = contextOf(node, incoming, recomputed);
    trace.scopes.push(`${scopeOf(node)}backward`);
    const produced = definition.gradient(context);
    for (const [name, dx] of Object.entries(produced)) {
      const x = node.inputs[name];
      if (x instanceof Tensor && dx !== undefined && dependent.has(x)) grow(x, dx);
    }
    trace.scopes.pop();
  }
  return mapTree<T, Tensor, Tensor>(wrt, (x) => gradients.get(x) ?? fill(0, x.shape));
}

// Everything computed from the targets, the targets included.
function dependents(nodes: readonly Node[], targets: readonly Tensor[]): ReadonlySet<Tensor> {
  const found = new Set<Tensor>(targets);
  for (const node of nodes) {
    if (node.definition?.gradient === 'stops') continue;
    if (operandsOf(node).some((x) => found.has(x))) {
      for (const output of Object.values(node.outputs)) found.add(output);
    }
  }
  return found;
}

function outputGradients(
  node: Node,
  gradients: ReadonlyMap<Tensor, Tensor>,
): Record<string, Tensor> | undefined {
  const incoming: Record<string, Tensor> = {};
  for (const [name, output] of Object.entries(node.outputs)) {
    const dy = gradients.get(output);
    if (dy !== undefined) incoming[name] = dy;
  }
  return Object.keys(incoming).length === 0 ? undefined : incoming;
}

function scopeOf(node: Node): string {
  const slash = node.label.lastIndexOf('/');
  return slash < 0 ? '' : `${node.label.slice(0, slash)}.`;
}

function contextOf(
  node: Node,
  gradients: Record<string, Tensor>,
  recomputed: Map<Segment, ReadonlyMap<Tensor, Tensor>>,
): GradientContext<Operands, string, object> {
  if (node.segment === undefined) {
    return { inputs: node.inputs, outputs: node.outputs, attributes: node.attributes, gradients };
  }
  let copies = recomputed.get(node.segment);
  if (copies === undefined) {
    copies = recordAgain(node.segment);
    recomputed.set(node.segment, copies);
  }
  return {
    inputs: substitute(node.inputs, copies),
    outputs: substitute(node.outputs, copies) as Record<string, Tensor>,
    attributes: node.attributes,
    gradients,
  };
}

function recordAgain(segment: Segment): ReadonlyMap<Tensor, Tensor> {
  const trace = currentTrace('gradient');
  const copies = new Map<Tensor, Tensor>();
  for (const node of [...segment.nodes]) {
    const again = trace.record(
      node.definition,
      substitute(node.inputs, copies),
      node.attributes,
      node.outputs,
      `${node.label}/again`,
    );
    for (const [name, output] of Object.entries(node.outputs)) {
      const copied = again.outputs[name];
      if (copied !== undefined) copies.set(output, copied);
    }
  }
  return copies;
}

/** Operands with every tensor of the map's keys replaced. */
export function substitute(inputs: Operands, map: ReadonlyMap<Tensor, Tensor>): Operands {
  const replace = (operand: Operand): Operand => {
    if (operand === null) return null;
    if (operand instanceof Tensor) return map.get(operand) ?? operand;
    return operand.map((x) => map.get(x) ?? x);
  };
  return Object.fromEntries(
    Object.entries(inputs).map(([name, operand]) => [name, replace(operand)]),
  );
}

/**
 * Activation checkpointing: the results inside `fn` are not kept for the backward but computed again
 * from its inputs when the backward reaches it. Same values, bit for bit; less memory, one more
 * forward of that part.
 */
export function checkpoint<A extends readonly unknown[], R>(
  fn: (...inputs: A) => R,
): (...inputs: A) => R {
  return (...inputs) => {
    const trace = currentTrace('checkpoint');
    if (trace.segment !== undefined) return fn(...inputs);
    trace.segment = { nodes: [] };
    try {
      return fn(...inputs);
    } finally {
      trace.segment = undefined;
    }
  };
}

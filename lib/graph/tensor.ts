// Symbolic values and the trace that records them. A Tensor has a dtype and a shape but no data; it
// exists only while a function is being traced by compile().
import { SiglipError } from '../errors';
import type { DType, Spec } from '../native/spec';
import type { OpDefinition } from './op';

/** A symbolic value: one output of one recorded operation, or an input of the program. */
export class Tensor implements Spec {
  readonly dtype: DType;
  readonly shape: readonly number[];

  constructor(
    readonly node: Node,
    readonly output: string,
    spec: Spec,
  ) {
    this.dtype = spec.dtype;
    this.shape = spec.shape;
  }
}

/** What an operation takes: a tensor, an absent optional tensor, or a list of tensors. */
export type Operand = Tensor | null | readonly Tensor[];
export type Operands = Readonly<Record<string, Operand>>;

/** A stretch of a trace that is computed again in the backward instead of being kept. */
export interface Segment {
  readonly nodes: Node[];
}

/** One recorded operation. `definition` is undefined for the inputs of the program. */
export interface Node {
  readonly definition: OpDefinition | undefined;
  readonly inputs: Operands;
  readonly attributes: object;
  readonly outputs: Readonly<Record<string, Tensor>>;
  /** Scope path and operation, for error messages and profiles: `vision.blocks.0/layer_norm`. */
  readonly label: string;
  readonly segment: Segment | undefined;
}

/** The tensors an operation reads, lists flattened, absent ones left out. */
export function operandsOf(node: Node): Tensor[] {
  return Object.values(node.inputs).flatMap((operand) => {
    if (operand === null) return [];
    return operand instanceof Tensor ? [operand] : [...operand];
  });
}

/** The record of one traced function. */
export class Trace {
  readonly nodes: Node[] = [];
  readonly taps = new Map<string, Tensor>();
  readonly scopes: string[] = [];
  segment: Segment | undefined;

  /** Appends an operation whose output specs are already known. */
  record(
    definition: OpDefinition | undefined,
    inputs: Operands,
    attributes: object,
    specs: Readonly<Record<string, Spec>>,
    name: string,
  ): Node {
    const outputs: Record<string, Tensor> = {};
    const node: Node = {
      definition,
      inputs,
      attributes,
      outputs,
      label: this.scopes.length === 0 ? name : `${this.scopes.join('.')}/${name}`,
      segment: this.segment,
    };
    for (const [output, spec] of Object.entries(specs)) {
      outputs[output] = new Tensor(node, output, spec);
    }
    this.nodes.push(node);
    this.segment?.nodes.push(node);
    return node;
  }
}

let active: Trace | undefined;

/** The trace being recorded; an operation outside of compile() has nothing to write to. */
export function currentTrace(who: string): Trace {
  if (active === undefined) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `${who}: must be called while compile() traces a function, got a call outside of a trace`,
    );
  }
  return active;
}

/** Records everything `body` does into `trace`. Synchronous by design: traces never interleave. */
export function recordInto<T>(trace: Trace, body: () => T): T {
  if (active !== undefined) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      'compile: must not be called while a function is being traced, got a nested call',
    );
  }
  active = trace;
  try {
    return body();
  } finally {
    active = undefined;
  }
}

/** Names a part of the computation; scopes nest into labels such as `vision.blocks.3`. */
export function scope<T>(name: string, body: () => T): T {
  const trace = currentTrace('scope');
  trace.scopes.push(name);
  try {
    return body();
  } finally {
    trace.scopes.pop();
  }
}

/**
 * Names an intermediate so that a program compiled with `taps` can read it out. The name is prefixed
 * with the current scope. Returns the tensor itself.
 */
export function tap(name: string, tensor: Tensor): Tensor {
  const trace = currentTrace('tap');
  const full = [...trace.scopes, name].join('.');
  if (trace.taps.has(full)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `tap: name must be used once in a trace, got ${full} again`,
    );
  }
  trace.taps.set(full, tensor);
  return tensor;
}

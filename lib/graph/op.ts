// How an operation is declared: its shape rule, the kernel it calls and its gradient, in one place.
import { SiglipError } from '../errors';
import type { KernelCall, Ref } from '../native/kernels';
import type { Spec } from '../native/spec';
import type { Operands } from './tensor';
import type { Tensor } from './tensor';
import { currentTrace } from './tensor';

type RefOf<T> = T extends readonly Tensor[]
  ? readonly Ref[]
  : T extends Tensor
    ? Ref
    : T extends null
      ? null
      : never;

/** Operands, attributes and outputs under the names of the kernel's own arguments. */
export type KernelArguments<I, O extends string, A> = { [K in keyof I]: RefOf<I[K]> } & A &
  Record<O, Ref>;

export interface GradientContext<I, O extends string, A> {
  readonly inputs: I;
  readonly outputs: Readonly<Record<O, Tensor>>;
  readonly attributes: A;
  /** Gradient of the loss with respect to each output; absent where the output was not used. */
  readonly gradients: Readonly<Partial<Record<O, Tensor>>>;
}

/**
 * The gradient with respect to each differentiable input. `notDifferentiable` makes a gradient
 * asked through the operation an error at trace time, never a silent zero; `stops` declares that
 * the gradient ends here on purpose.
 */
export type GradientRule<I, O extends string, A> =
  | ((context: GradientContext<I, O, A>) => Partial<Record<keyof I, Tensor>>)
  | 'notDifferentiable'
  | 'stops';

/** Epilogues a producer can take over from its consumer; see rewrite.ts. */
export interface Fusions {
  /** `add(other, output)` becomes this operand of the producer. */
  readonly residual?: { readonly operand: string; readonly output: string };
  /** A pointwise operation on `output` becomes an attribute; its argument is kept as `before`. */
  readonly activation?: {
    readonly of: string;
    readonly attributes: object;
    readonly output: string;
    readonly before: string;
  };
  /**
   * The gradient of a pointwise operation behind it, an operation with `upstream` and `argument`, is taken
   * in the same pass: its argument becomes this operand.
   */
  readonly activationGradient?: {
    readonly of: string;
    readonly upstream: string;
    readonly argument: string;
    readonly operand: string;
    readonly output: string;
  };
}

/**
 * What becomes of the float32 operands and outputs of an operation in a program of a narrower
 * precision; see precision.ts. What is in no list stays float32.
 */
export interface Narrowing<Operand extends string, Output extends string> {
  /** Of the program's precision. */
  readonly narrow?: readonly (Operand | Output)[];
  /** All of one dtype: narrow when every operand among them comes so. */
  readonly alike?: readonly (Operand | Output)[];
  /** The kernel takes either: as they come. */
  readonly any?: readonly Operand[];
  /** Tables of which little is read: narrow when constant, to halve their memory, else as they come. */
  readonly stored?: readonly Operand[];
}

export interface OpDefinition<I = Operands, O extends string = string, A extends object = object> {
  /** The kernel's word, snake_case. */
  readonly name: string;
  /** The shape rule: checks the operands and gives the specs of all outputs. */
  infer(inputs: I, attributes: A): Readonly<Record<O, Spec>>;
  /** The native call, or `alias` for an operation that only renames memory (its sole operand). */
  readonly kernel: ((call: KernelArguments<I, O, A>) => KernelCall) | 'alias';
  /** Of an alias of a part of the memory: elements before it. Default 0. */
  readonly aliasOffset?: (inputs: I, attributes: A) => number;
  /** What is of a program's precision, or that nothing is. */
  readonly precision: Narrowing<keyof I & string, O> | 'float32';
  readonly gradient: GradientRule<I, O, A>;
  /** Outputs that overwrite the memory of an operand: output name -> operand name. */
  readonly inPlace?: Readonly<Partial<Record<O, keyof I & string>>>;
  /** Outputs the kernel may leave out (MaybeOut) when nobody reads them. */
  readonly optionalOutputs?: readonly O[];
  readonly fusions?: Fusions;
}

/**
 * Declares an operation and returns the function that records it. The returned function checks
 * shapes by `infer` and gives all outputs by name.
 */
export function op<
  I extends { readonly [K in keyof I]: Operands[string] },
  O extends string,
  A extends object,
>(definition: OpDefinition<I, O, A>): (inputs: I, attributes: A) => Readonly<Record<O, Tensor>> {
  return (inputs, attributes) => {
    const trace = currentTrace(definition.name);
    const specs = definition.infer(inputs, attributes);
    for (const spec of Object.values<Spec>(specs)) checkExtents(definition.name, spec);
    const node = trace.record(
      definition as unknown as OpDefinition,
      inputs,
      attributes,
      specs,
      definition.name,
    );
    return node.outputs;
  };
}

/** A tensor's memory under the shape a kernel wants to see. */
export class Reshaped implements Spec {
  readonly dtype: Spec['dtype'];

  constructor(
    readonly of: Ref,
    readonly shape: readonly number[],
  ) {
    this.dtype = of.dtype;
  }
}

function checkExtents(who: string, spec: Spec): void {
  if (!spec.shape.every((extent) => Number.isSafeInteger(extent) && extent > 0)) {
    throw new SiglipError(
      'ERR_SHAPE',
      `${who}: every extent must be a positive integer, got ${describe(spec)}`,
    );
  }
}

/** `float32 [2, 3]`. */
export function describe(spec: Spec): string {
  return `${spec.dtype} [${spec.shape.join(', ')}]`;
}

/** Throws ERR_DTYPE or ERR_SHAPE unless `tensor` has exactly the expected spec. */
export function expectSpec(who: string, what: string, tensor: Spec, expected: Spec): void {
  if (tensor.dtype !== expected.dtype) {
    throw new SiglipError(
      'ERR_DTYPE',
      `${who}: ${what} must be ${describe(expected)}, got ${describe(tensor)}`,
    );
  }
  const same =
    tensor.shape.length === expected.shape.length &&
    tensor.shape.every((extent, axis) => extent === expected.shape[axis]);
  if (!same) {
    throw new SiglipError(
      'ERR_SHAPE',
      `${who}: ${what} must have shape [${expected.shape.join(', ')}], got [${tensor.shape.join(', ')}]`,
    );
  }
}

/**
 * Throws unless `tensor` is float32 (or `dtype`) with as many axes as `form` names, and returns its
 * extents. `form` is the text of the message: `(B, T, D)`. A leading `…` allows any number of axes.
 */
export function expectRank(
  who: string,
  what: string,
  tensor: Spec,
  form: readonly string[],
  dtype: Spec['dtype'] = 'float32',
): readonly number[] {
  const open = form[0] === '…';
  const rank = open ? form.length - 1 : form.length;
  if (tensor.dtype !== dtype) {
    throw new SiglipError(
      'ERR_DTYPE',
      `${who}: ${what} must be ${dtype} (${form.join(', ')}), got ${describe(tensor)}`,
    );
  }
  if (open ? tensor.shape.length < rank : tensor.shape.length !== rank) {
    throw new SiglipError(
      'ERR_SHAPE',
      `${who}: ${what} must have shape (${form.join(', ')}), got [${tensor.shape.join(', ')}]`,
    );
  }
  return tensor.shape;
}

/** Extent of an axis, negative from the end. The axis must exist. */
export function extent(spec: Spec, axis: number): number {
  const value = spec.shape.at(axis);
  if (value === undefined) {
    throw new SiglipError(
      'ERR_SHAPE',
      `extent: axis ${String(axis)} must exist, got ${describe(spec)}`,
    );
  }
  return value;
}

/** Number of elements. */
export function elements(spec: Spec): number {
  return spec.shape.reduce((product, n) => product * n, 1);
}

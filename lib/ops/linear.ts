// y = x · Wᵀ + bias over the last axis. The bias, a GELU after it and a residual added to it run in
// the epilogue of the product (see native/ops/linear/linear.h and graph/rewrite.ts).
//
// For inference the weight may be packed, as it is or as bfloat16 or int8; activations stay float32
// between operations and are rounded or quantised inside (see native/ops/linear_float32,
// linear_bfloat16 and linear_int8).
import { SiglipError } from '../errors';
import type { Fusions, Spec, Specialize } from '../graph';
import { expectRank, expectSpec, extent, op, Tensor } from '../graph';
import { kernels } from '../native/kernels';

// Values of the kernels' `activation` argument, as in native/cpu/activation.h.
const activationNone = 0;
const activationGelu = 1;

/** What is added in the same pass as the product. */
interface Epilogue {
  readonly bias: Tensor | null;
  readonly residual: Tensor | null;
}

// The epilogue takes over what a reader of `y` does next; `pre` is what went into the activation.
const fusions: Fusions = {
  residual: { operand: 'residual', output: 'y' },
  activation: {
    of: 'gelu',
    attributes: { activation: activationGelu },
    output: 'y',
    before: 'pre',
  },
};

function outputShape(x: Tensor, width: number): readonly number[] {
  return [...x.shape.slice(0, -1), width];
}

// The outputs of a layer of `width` outputs, once what its epilogue reads was checked.
function layerOutputs(
  who: string,
  x: Tensor,
  width: number,
  { bias, residual }: Epilogue,
): { pre: Spec; y: Spec } {
  const y = { dtype: 'float32', shape: outputShape(x, width) } as const;
  if (bias !== null) expectSpec(who, 'bias', bias, { dtype: 'float32', shape: [width] });
  if (residual !== null) expectSpec(who, 'residual', residual, y);
  return { pre: y, y };
}

export const linearForward = op<
  { x: Tensor; weight: Tensor } & Epilogue,
  'pre' | 'y',
  { activation: number }
>({
  name: 'linear',
  infer: ({ x, weight, ...epilogue }) => {
    expectRank('linear', 'x', x, ['…', 'M', 'in']);
    const [width = 0, inputs = 0] = expectRank('linear', 'weight', weight, ['out', 'in']);
    if (extent(x, -1) !== inputs) {
      throw new SiglipError(
        'ERR_SHAPE',
        `linear: the last axis of x must be the weight's ${String(inputs)} inputs, got [${x.shape.join(', ')}]`,
      );
    }
    return layerOutputs('linear', x, width, epilogue);
  },
  kernel: kernels.linearForward,
  optionalOutputs: ['pre'],
  fusions,
  precision: { narrow: ['x', 'weight', 'bias', 'residual', 'pre', 'y'] },
  gradient: ({ inputs: { x, weight, bias }, gradients: { y: dy } }) => {
    if (dy === undefined) return {};
    const { dweight, dbias } = linearBackwardWeight({ dy, x }, {});
    return {
      x: linearBackwardInput({ dy, weight, residual: null, pre: null }, {}).dx,
      weight: dweight,
      ...(bias === null ? {} : { bias: dbias }),
    };
  },
});

export const linearBackwardInput = op<
  { dy: Tensor; weight: Tensor; residual: Tensor | null; pre: Tensor | null },
  'dx',
  object
>({
  name: 'linear_backward_input',
  infer: ({ dy, weight }) => ({
    dx: { dtype: 'float32', shape: outputShape(dy, extent(weight, 1)) },
  }),
  kernel: kernels.linearBackwardInput,
  precision: { narrow: ['dy', 'weight', 'residual', 'pre', 'dx'] },
  gradient: 'notDifferentiable',
  fusions: {
    residual: { operand: 'residual', output: 'dx' },
    activationGradient: {
      of: 'gelu_backward',
      upstream: 'dy',
      argument: 'x',
      operand: 'pre',
      output: 'dx',
    },
  },
});

export const linearBackwardWeight = op<{ dy: Tensor; x: Tensor }, 'dweight' | 'dbias', object>({
  name: 'linear_backward_weight',
  infer: ({ dy, x }) => ({
    dweight: { dtype: 'float32', shape: [extent(dy, -1), extent(x, -1)] },
    dbias: { dtype: 'float32', shape: [extent(dy, -1)] },
  }),
  kernel: kernels.linearBackwardWeight,
  optionalOutputs: ['dbias'],
  precision: { narrow: ['dy', 'x'] },
  gradient: 'notDifferentiable',
});

/**
 * A linear layer: x · Wᵀ + bias.
 *
 * @param x - (…, in) float32.
 * @param weight - (out, in), the checkpoints' layout.
 * @param bias - (out); none by default.
 * @returns (…, out).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function linear(x: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor {
  return linearForward({ x, weight, bias, residual: null }, { activation: activationNone }).y;
}

/** In what the weights of linear layers are held and multiplied. */
export type Precision = 'float32' | 'bfloat16' | 'int8';

/** Names of all precisions. */
export const precisions = ['float32', 'bfloat16', 'int8'] as const satisfies readonly Precision[];

/** What a layer does besides the product; each absent by default. */
export interface LinearEpilogue {
  /** (outputs) */
  readonly bias?: Tensor | null;
  /** (…, outputs), added last. */
  readonly residual?: Tensor | null;
  /** Value of the kernels' `activation` argument. */
  readonly activation?: number;
}

/** A linear layer whose weight is packed once for the machine at hand. Not differentiable. */
export interface PackedLinear {
  /** Bytes of a packed weight (`outputs`, `inputs`), the same on every machine. */
  readonly bytes: (outputs: number, inputs: number) => number;
  /**
   * Packs a weight. The bytes can be read on the machine that packed them; their order is not defined
   * beyond that.
   *
   * @param weight - (out, in) float32.
   * @returns (bytes(out, in)) uint8.
   * @throws ERR_SHAPE, ERR_DTYPE.
   */
  readonly pack: (weight: Tensor) => Tensor;
  /**
   * The layer: x · Wᵀ, then bias, activation and residual. A GELU behind it and a residual added to
   * it run in its epilogue.
   *
   * @param x - (…, in) float32.
   * @param packed - (bytes(outputs, in)) uint8.
   * @param outputs - Outputs of the layer.
   * @returns (…, outputs).
   * @throws ERR_SHAPE, ERR_DTYPE.
   */
  readonly layer: (x: Tensor, packed: Tensor, outputs: number, epilogue?: LinearEpilogue) => Tensor;
}

// A form in which a weight may be packed.
interface PackedForm {
  readonly precision: Precision;
  readonly bytes: (outputs: number, inputs: number) => number;
  /** Sums of more products do not fit. */
  readonly maxInputs: number;
  readonly packKernel: typeof kernels.linearInt8Pack;
  readonly forwardKernel: typeof kernels.linearInt8Forward;
}

// Outputs are packed in groups of this many.
function roundedOutputs(outputs: number): number {
  return Math.ceil(outputs / 64) * 64;
}

// The narrow forms pack inputs in groups of four.
function roundedInputs(inputs: number): number {
  return Math.ceil(inputs / 4) * 4;
}

// With what a rewrite needs: all outputs.
interface PackedOps extends PackedLinear {
  readonly outputs: (
    x: Tensor,
    packed: Tensor,
    outputs: number,
    epilogue: LinearEpilogue,
  ) => { readonly pre: Tensor; readonly y: Tensor };
}

function packedOps(form: PackedForm): PackedOps {
  const { bytes, maxInputs, packKernel, forwardKernel } = form;
  const name = `linear_${form.precision}`;
  const expectInputs = (what: string, inputs: number): void => {
    if (inputs <= maxInputs) return;
    throw new SiglipError(
      'ERR_SHAPE',
      `${name}: the last axis of ${what} must be at most ${String(maxInputs)}, got ${String(inputs)}`,
    );
  };
  const pack = op<{ weight: Tensor }, 'packed', object>({
    name: `${name}_pack`,
    infer: ({ weight }) => {
      const [outputs = 0, inputs = 0] = expectRank(name, 'weight', weight, ['out', 'in']);
      expectInputs('weight', inputs);
      return { packed: { dtype: 'uint8', shape: [bytes(outputs, inputs)] } };
    },
    kernel: packKernel,
    precision: 'float32',
    gradient: 'notDifferentiable',
  });
  const forward = op<
    { x: Tensor; packed: Tensor } & Epilogue,
    'pre' | 'y',
    { activation: number; outputs: number }
  >({
    name,
    infer: ({ x, packed, ...epilogue }, { outputs }) => {
      expectRank(name, 'x', x, ['…', 'M', 'in']);
      const inputs = extent(x, -1);
      expectInputs('x', inputs);
      const shape = [bytes(outputs, inputs)];
      expectSpec(name, 'packed', packed, { dtype: 'uint8', shape });
      return layerOutputs(name, x, outputs, epilogue);
    },
    kernel: forwardKernel,
    precision: 'float32',
    optionalOutputs: ['pre'],
    fusions,
    gradient: 'notDifferentiable',
  });
  const outputs: PackedOps['outputs'] = (x, packed, width, epilogue) => {
    const { bias = null, residual = null, activation = activationNone } = epilogue;
    return forward({ x, packed, bias, residual }, { activation, outputs: width });
  };
  return {
    bytes,
    pack: (weight) => pack({ weight }, {}).packed,
    layer: (x, packed, width, epilogue = {}) => outputs(x, packed, width, epilogue).y,
    outputs,
  };
}

const packed: Readonly<Record<Precision, PackedOps>> = {
  /** The sums of {@link linear}. */
  float32: packedOps({
    precision: 'float32',
    bytes: (outputs, inputs) => 4 * roundedOutputs(outputs) * inputs,
    maxInputs: Infinity,
    packKernel: kernels.linearFloat32Pack,
    forwardKernel: kernels.linearFloat32Forward,
  }),
  /** Both operands rounded to bfloat16, summed up in float32. */
  bfloat16: packedOps({
    precision: 'bfloat16',
    bytes: (outputs, inputs) => 2 * roundedOutputs(outputs) * roundedInputs(inputs),
    maxInputs: Infinity,
    packKernel: kernels.linearBfloat16Pack,
    forwardKernel: kernels.linearBfloat16Forward,
  }),
  /**
   * Both operands quantised symmetrically, x per row and W per output, summed up exactly. Each output
   * has a scale and a correction of 4 bytes. A row of x with an infinity or a NaN gives a row of NaN.
   */
  int8: packedOps({
    precision: 'int8',
    bytes: (outputs, inputs) => roundedOutputs(outputs) * (roundedInputs(inputs) + 8),
    maxInputs: 2 ** 17,
    packKernel: kernels.linearInt8Pack,
    forwardKernel: kernels.linearInt8Forward,
  }),
};

/** Linear layers with packed weights, by the precision of the product. */
export const packedLinear: Readonly<Record<Precision, PackedLinear>> = packed;

/**
 * For compile(): linear layers with constant weights read them packed.
 *
 * @param precisionOf - in what a layer computes, by the label of its node.
 */
export function packLinears(precisionOf: (label: string) => Precision): Specialize {
  return ({ definition, inputs: { x, weight, bias, residual }, attributes, label }, isConstant) => {
    if (definition?.name !== 'linear' || !(x instanceof Tensor) || !(weight instanceof Tensor)) {
      return undefined;
    }
    if (!isConstant(weight)) return undefined;
    const { pack, outputs } = packed[precisionOf(label)];
    return outputs(x, pack(weight), extent(weight, 0), {
      bias: bias instanceof Tensor ? bias : null,
      residual: residual instanceof Tensor ? residual : null,
      ...(attributes as { activation: number }),
    });
  };
}

// y = x · Wᵀ + bias over the last axis. The bias, a GELU after it and a residual added to it run in
// the epilogue of the product (see native/ops/linear/linear.h and graph/rewrite.ts).
//
// For inference the weight may be packed as int8 or bfloat16; activations stay float32 between
// operations and are quantised or rounded inside (see native/ops/linear_int8/linear_int8.h and
// native/ops/linear_bfloat16/linear_bfloat16.h).
import { SiglipError } from '../errors';
import type { Fusions, Spec, Tensor } from '../graph';
import { expectRank, expectSpec, extent, op } from '../graph';
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

const linearForward = op<
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
  gradient: ({ inputs: { x, weight, bias }, gradients: { y: dy } }) => {
    if (dy === undefined) return {};
    const { dweight, dbias } = linearBackwardWeight({ dy, x }, {});
    return {
      x: linearBackwardInput({ dy, weight, residual: null }, {}).dx,
      weight: dweight,
      ...(bias === null ? {} : { bias: dbias }),
    };
  },
});

const linearBackwardInput = op<
  { dy: Tensor; weight: Tensor; residual: Tensor | null },
  'dx',
  object
>({
  name: 'linear_backward_input',
  infer: ({ dy, weight }) => ({
    dx: { dtype: 'float32', shape: outputShape(dy, extent(weight, 1)) },
  }),
  kernel: kernels.linearBackwardInput,
  gradient: 'notDifferentiable',
  fusions: { residual: { operand: 'residual', output: 'dx' } },
});

const linearBackwardWeight = op<{ dy: Tensor; x: Tensor }, 'dweight' | 'dbias', object>({
  name: 'linear_backward_weight',
  infer: ({ dy, x }) => ({
    dweight: { dtype: 'float32', shape: [extent(dy, -1), extent(x, -1)] },
    dbias: { dtype: 'float32', shape: [extent(dy, -1)] },
  }),
  kernel: kernels.linearBackwardWeight,
  optionalOutputs: ['dbias'],
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

// A form in which a weight may be packed, and the two operations on it.
interface PackedForm {
  /** The operation's name. */
  readonly name: string;
  /** Bytes of a packed weight. */
  readonly bytes: (outputs: number, inputs: number) => number;
  /** Sums of more products do not fit. */
  readonly maxInputs: number;
  readonly packKernel: typeof kernels.linearInt8Pack;
  readonly forwardKernel: typeof kernels.linearInt8Forward;
}

interface PackedOps {
  pack(weight: Tensor): Tensor;
  layer(x: Tensor, packed: Tensor, outputs: number, bias: Tensor | null): Tensor;
}

function packedOps({ name, bytes, maxInputs, packKernel, forwardKernel }: PackedForm): PackedOps {
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
    optionalOutputs: ['pre'],
    fusions,
    gradient: 'notDifferentiable',
  });
  return {
    pack: (weight) => pack({ weight }, {}).packed,
    layer: (x, packed, outputs, bias) =>
      forward({ x, packed, bias, residual: null }, { activation: activationNone, outputs }).y,
  };
}

/**
 * Bytes of a weight (`outputs`, `inputs`) packed as int8, the same on every machine: outputs are
 * rounded up to 64 and inputs to 4, and each output has a scale and a correction of 4 bytes.
 */
export function linearInt8Bytes(outputs: number, inputs: number): number {
  return Math.ceil(outputs / 64) * 64 * (Math.ceil(inputs / 4) * 4 + 8);
}

const int8 = packedOps({
  name: 'linear_int8',
  bytes: linearInt8Bytes,
  maxInputs: 2 ** 17,
  packKernel: kernels.linearInt8Pack,
  forwardKernel: kernels.linearInt8Forward,
});

/**
 * Packs the weight of a linear layer as int8 with a scale per output. The bytes can be read on the
 * machine that packed them; their order is not defined beyond that.
 *
 * @param weight - (out, in) float32.
 * @returns ({@link linearInt8Bytes}(out, in)) uint8.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function packLinearInt8(weight: Tensor): Tensor {
  return int8.pack(weight);
}

/**
 * A linear layer with a weight packed by {@link packLinearInt8}: x · Wᵀ + bias, both operands
 * quantised symmetrically, x per row and W per output, summed up exactly. A GELU behind it and a
 * residual added to it run in its epilogue. Not differentiable.
 *
 * @param x - (…, in) float32. A row with an infinity or a NaN gives a row of NaN.
 * @param packed - ({@link linearInt8Bytes}(outputs, in)) uint8.
 * @param outputs - Outputs of the layer.
 * @param bias - (outputs); none by default.
 * @returns (…, outputs).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function linearInt8(
  x: Tensor,
  packed: Tensor,
  outputs: number,
  bias: Tensor | null = null,
): Tensor {
  return int8.layer(x, packed, outputs, bias);
}

/**
 * Bytes of a weight (`outputs`, `inputs`) packed as bfloat16, the same on every machine: outputs are
 * rounded up to 64 and inputs to 4.
 */
export function linearBfloat16Bytes(outputs: number, inputs: number): number {
  return 2 * Math.ceil(outputs / 64) * 64 * Math.ceil(inputs / 4) * 4;
}

const bfloat16 = packedOps({
  name: 'linear_bfloat16',
  bytes: linearBfloat16Bytes,
  maxInputs: Infinity,
  packKernel: kernels.linearBfloat16Pack,
  forwardKernel: kernels.linearBfloat16Forward,
});

/**
 * Packs the weight of a linear layer as bfloat16. The bytes can be read on the machine that packed
 * them; their order is not defined beyond that.
 *
 * @param weight - (out, in) float32.
 * @returns ({@link linearBfloat16Bytes}(out, in)) uint8.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function packLinearBfloat16(weight: Tensor): Tensor {
  return bfloat16.pack(weight);
}

/**
 * A linear layer with a weight packed by {@link packLinearBfloat16}: x · Wᵀ + bias, both operands
 * rounded to bfloat16, summed up in float32. A GELU behind it and a residual added to it run in its
 * epilogue. Not differentiable.
 *
 * @param x - (…, in) float32.
 * @param packed - ({@link linearBfloat16Bytes}(outputs, in)) uint8.
 * @param outputs - Outputs of the layer.
 * @param bias - (outputs); none by default.
 * @returns (…, outputs).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function linearBfloat16(
  x: Tensor,
  packed: Tensor,
  outputs: number,
  bias: Tensor | null = null,
): Tensor {
  return bfloat16.layer(x, packed, outputs, bias);
}

// Linear layers with a weight packed as int8, for inference: activations stay float32 between
// operations and are quantised per row inside (see native/ops/linear_int8/linear_int8.h).
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op } from '../graph';
import { kernels } from '../native/kernels';

// Values of the kernel's `activation` argument.
const activationNone = 0;
const activationGelu = 1;

// Sums of more products do not fit.
const maxInputs = 2 ** 17;

/**
 * Bytes of a weight (`outputs`, `inputs`) packed as int8, the same on every machine: outputs are
 * rounded up to 64 and inputs to 4, and each output has a scale and a correction of 4 bytes.
 */
export function linearInt8Bytes(outputs: number, inputs: number): number {
  return Math.ceil(outputs / 64) * 64 * (Math.ceil(inputs / 4) * 4 + 8);
}

function expectInputs(what: string, inputs: number): void {
  if (inputs <= maxInputs) return;
  throw new SiglipError(
    'ERR_SHAPE',
    `linear_int8: the last axis of ${what} must be at most ${String(maxInputs)}, got ${String(inputs)}`,
  );
}

const linearInt8Pack = op<{ weight: Tensor }, 'packed', object>({
  name: 'linear_int8_pack',
  infer: ({ weight }) => {
    const [outputs = 0, inputs = 0] = expectRank('linear_int8', 'weight', weight, ['out', 'in']);
    expectInputs('weight', inputs);
    return { packed: { dtype: 'uint8', shape: [linearInt8Bytes(outputs, inputs)] } };
  },
  kernel: kernels.linearInt8Pack,
  gradient: 'notDifferentiable',
});

const linearInt8Forward = op<
  { x: Tensor; packed: Tensor; bias: Tensor | null; residual: Tensor | null },
  'pre' | 'y',
  { activation: number; outputs: number }
>({
  name: 'linear_int8',
  infer: ({ x, packed, bias, residual }, { outputs }) => {
    expectRank('linear_int8', 'x', x, ['…', 'M', 'in']);
    const inputs = extent(x, -1);
    expectInputs('x', inputs);
    const y = { dtype: 'float32', shape: [...x.shape.slice(0, -1), outputs] } as const;
    expectSpec('linear_int8', 'packed', packed, {
      dtype: 'uint8',
      shape: [linearInt8Bytes(outputs, inputs)],
    });
    if (bias !== null)
      expectSpec('linear_int8', 'bias', bias, { dtype: 'float32', shape: [outputs] });
    if (residual !== null) expectSpec('linear_int8', 'residual', residual, y);
    return { pre: y, y };
  },
  kernel: kernels.linearInt8Forward,
  optionalOutputs: ['pre'],
  fusions: {
    residual: { operand: 'residual', output: 'y' },
    activation: {
      of: 'gelu',
      attributes: { activation: activationGelu },
      output: 'y',
      before: 'pre',
    },
  },
  gradient: 'notDifferentiable',
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
  return linearInt8Pack({ weight }, {}).packed;
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
  return linearInt8Forward(
    { x, packed, bias, residual: null },
    { activation: activationNone, outputs },
  ).y;
}

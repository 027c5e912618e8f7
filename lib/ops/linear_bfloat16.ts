// Linear layers with a weight packed as bfloat16, for inference: activations stay float32 between
// operations and are rounded inside (see native/ops/linear_bfloat16/linear_bfloat16.h).
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op } from '../graph';
import { kernels } from '../native/kernels';

// Values of the kernel's `activation` argument.
const activationNone = 0;
const activationGelu = 1;

/**
 * Bytes of a weight (`outputs`, `inputs`) packed as bfloat16, the same on every machine: outputs are
 * rounded up to 64 and inputs to 4.
 */
export function linearBfloat16Bytes(outputs: number, inputs: number): number {
  return 2 * Math.ceil(outputs / 64) * 64 * Math.ceil(inputs / 4) * 4;
}

const linearBfloat16Pack = op<{ weight: Tensor }, 'packed', object>({
  name: 'linear_bfloat16_pack',
  infer: ({ weight }) => {
    const [outputs = 0, inputs = 0] = expectRank('linear_bfloat16', 'weight', weight, [
      'out',
      'in',
    ]);
    return { packed: { dtype: 'uint8', shape: [linearBfloat16Bytes(outputs, inputs)] } };
  },
  kernel: kernels.linearBfloat16Pack,
  gradient: 'notDifferentiable',
});

const linearBfloat16Forward = op<
  { x: Tensor; packed: Tensor; bias: Tensor | null; residual: Tensor | null },
  'pre' | 'y',
  { activation: number; outputs: number }
>({
  name: 'linear_bfloat16',
  infer: ({ x, packed, bias, residual }, { outputs }) => {
    expectRank('linear_bfloat16', 'x', x, ['…', 'M', 'in']);
    const y = { dtype: 'float32', shape: [...x.shape.slice(0, -1), outputs] } as const;
    expectSpec('linear_bfloat16', 'packed', packed, {
      dtype: 'uint8',
      shape: [linearBfloat16Bytes(outputs, extent(x, -1))],
    });
    if (bias !== null) {
      expectSpec('linear_bfloat16', 'bias', bias, { dtype: 'float32', shape: [outputs] });
    }
    if (residual !== null) expectSpec('linear_bfloat16', 'residual', residual, y);
    return { pre: y, y };
  },
  kernel: kernels.linearBfloat16Forward,
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
 * Packs the weight of a linear layer as bfloat16. The bytes can be read on the machine that packed
 * them; their order is not defined beyond that.
 *
 * @param weight - (out, in) float32.
 * @returns ({@link linearBfloat16Bytes}(out, in)) uint8.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function packLinearBfloat16(weight: Tensor): Tensor {
  return linearBfloat16Pack({ weight }, {}).packed;
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
  return linearBfloat16Forward(
    { x, packed, bias, residual: null },
    { activation: activationNone, outputs },
  ).y;
}

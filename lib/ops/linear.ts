// y = x · Wᵀ + bias over the last axis. The bias, a GELU after it and a residual added to it run in
// the epilogue of the product (see native/ops/linear/linear.h and graph/rewrite.ts).
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op } from '../graph';
import { kernels } from '../native/kernels';

// Values of the kernel's `activation` argument.
const activationNone = 0;
const activationGelu = 1;

function outputShape(x: Tensor, width: number): readonly number[] {
  return [...x.shape.slice(0, -1), width];
}

const linearForward = op<
  { x: Tensor; weight: Tensor; bias: Tensor | null; residual: Tensor | null },
  'pre' | 'y',
  { activation: number }
>({
  name: 'linear',
  infer: ({ x, weight, bias, residual }) => {
    expectRank('linear', 'x', x, ['…', 'M', 'in']);
    const [width = 0, inputs = 0] = expectRank('linear', 'weight', weight, ['out', 'in']);
    if (extent(x, -1) !== inputs) {
      throw new SiglipError(
        'ERR_SHAPE',
        `linear: the last axis of x must be the weight's ${String(inputs)} inputs, got [${x.shape.join(', ')}]`,
      );
    }
    const y = { dtype: 'float32', shape: outputShape(x, width) } as const;
    if (bias !== null) expectSpec('linear', 'bias', bias, { dtype: 'float32', shape: [width] });
    if (residual !== null) expectSpec('linear', 'residual', residual, y);
    return { pre: y, y };
  },
  kernel: kernels.linearForward,
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

// Columns of a packed weight come in groups of this many on every processor.
const packedColumns = 64;

const linearPack = op<{ weight: Tensor }, 'packed', object>({
  name: 'linear_pack',
  infer: ({ weight }) => {
    const [width = 0, inputs = 0] = expectRank('linear_pack', 'weight', weight, ['out', 'in']);
    const columns = packedColumns * Math.ceil(width / packedColumns);
    return { packed: { dtype: 'uint8', shape: [4 * inputs * columns] } };
  },
  kernel: kernels.linearPack,
  gradient: 'notDifferentiable',
});

const linearPacked = op<
  { x: Tensor; packed: Tensor; bias: Tensor | null; residual: Tensor | null },
  'y',
  { activation: number; width: number }
>({
  name: 'linear_packed',
  infer: ({ x }, { width }) => ({ y: { dtype: 'float32', shape: outputShape(x, width) } }),
  kernel: ({ x, packed, bias, residual, activation, y }) =>
    kernels.linearPackedForward({ x, packed, bias, residual, activation, y }),
  gradient: 'notDifferentiable',
});

/** The operands and attributes of a recorded linear layer, as a rewrite finds them. */
export interface LinearCall {
  readonly x: Tensor;
  readonly weight: Tensor;
  readonly bias: Tensor | null;
  readonly residual: Tensor | null;
  readonly activation: number;
}

/** The same layer with its weight packed for this processor, for weights that stay as they are. */
export function packedLinear({ weight, ...call }: LinearCall): Tensor {
  const { activation, ...operands } = call;
  const { packed } = linearPack({ weight }, {});
  return linearPacked({ ...operands, packed }, { activation, width: extent(weight, 0) }).y;
}

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

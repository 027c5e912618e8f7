// Addition into memory that stays: gradients over the micro-batches of one step.
import type { Tensor } from '../graph';
import { expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

const accumulateInPlace = op<{ x: Tensor; accumulator: Tensor }, 'sum', object>({
  name: 'accumulate',
  infer: ({ x, accumulator }) => {
    const like = { dtype: 'float32', shape: accumulator.shape } as const;
    expectSpec('accumulate', 'accumulator', accumulator, like);
    expectSpec('accumulate', 'x', x, like);
    return { sum: accumulator };
  },
  kernel: ({ x, accumulator }) => kernels.accumulate({ x, accumulator }),
  inPlace: { sum: 'accumulator' },
  precision: { any: ['x'] },
  gradient: 'notDifferentiable',
});

/** accumulator + x, in the accumulator's memory; its former value must not be read afterwards. */
export function accumulate(accumulator: Tensor, x: Tensor): Tensor {
  return accumulateInPlace({ x, accumulator }, {}).sum;
}

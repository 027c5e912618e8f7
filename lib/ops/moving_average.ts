// Exponential moving average in memory that stays: the weights of a teacher, the centre of its logits.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectSpec, op } from '../graph';
import { kernels } from '../native/kernels';

const movingAverageInPlace = op<{ x: Tensor; average: Tensor }, 'moved', { momentum: number }>({
  name: 'moving_average',
  infer: ({ x, average }, { momentum }) => {
    const like = { dtype: 'float32', shape: average.shape } as const;
    expectSpec('movingAverage', 'average', average, like);
    expectSpec('movingAverage', 'x', x, like);
    if (!(momentum >= 0 && momentum <= 1)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `movingAverage: momentum must be in [0, 1], got ${String(momentum)}`,
      );
    }
    return { moved: average };
  },
  kernel: ({ x, average, momentum }) => kernels.movingAverage({ x, average, momentum }),
  inPlace: { moved: 'average' },
  precision: 'float32',
  gradient: 'notDifferentiable',
});

/**
 * momentum · average + (1 − momentum) · x, in the memory of the average.
 *
 * @param average - (…), donated to the program.
 * @param x - (…), of the same shape.
 * @param momentum - in [0, 1].
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT.
 */
export function movingAverage(average: Tensor, x: Tensor, momentum: number): Tensor {
  return movingAverageInPlace({ x, average }, { momentum }).moved;
}

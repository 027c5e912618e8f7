// Another shape over the same memory: no kernel, no copy.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { elements, op } from '../graph';

const reshapeForward = op<{ x: Tensor }, 'y', { shape: readonly number[] }>({
  name: 'reshape',
  infer: ({ x }, { shape }) => {
    const y = { dtype: x.dtype, shape };
    if (elements(y) !== elements(x)) {
      throw new SiglipError(
        'ERR_SHAPE',
        `reshape: shape must hold ${String(elements(x))} elements, got [${shape.join(', ')}]`,
      );
    }
    return { y };
  },
  kernel: 'alias',
  precision: { alike: ['x', 'y'] },
  gradient: ({ inputs: { x }, gradients: { y: dy } }) =>
    dy === undefined ? {} : { x: reshape(dy, x.shape) },
});

/** The elements of `x` in row-major order under another shape. @throws ERR_SHAPE. */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  return reshapeForward({ x }, { shape: [...shape] }).y;
}

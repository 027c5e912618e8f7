// The operations the graph itself needs: the gradients of a value used twice are summed, a gradient
// starts as one and is zero where nothing depends on a value, results get memory of their own, and
// programs of another precision cast. The other operations live in lib/ops, which re-exports some.
import { SiglipError } from '../errors';
import { kernels } from '../native/kernels';
import type { DType, Spec } from '../native/spec';
import { describe, expectSpec, op } from './op';
import type { Tensor } from './tensor';

const addForward = op<{ a: Tensor; b: Tensor }, 'y', object>({
  name: 'add',
  infer: ({ a, b }) => {
    expectSpec('add', 'b', b, { dtype: 'float32', shape: a.shape });
    expectSpec('add', 'a', a, { dtype: 'float32', shape: a.shape });
    return { y: a };
  },
  kernel: kernels.addForward,
  precision: { alike: ['a', 'b', 'y'] },
  gradient: ({ gradients: { y: dy } }) => (dy === undefined ? {} : { a: dy, b: dy }),
});

/** a + b, element by element; both of one shape. */
export function add(a: Tensor, b: Tensor): Tensor {
  return addForward({ a, b }, {}).y;
}

const fillForward = op<object, 'y', { value: number; shape: readonly number[]; dtype: DType }>({
  name: 'fill',
  infer: (_, { shape, dtype }) => ({ y: { dtype, shape } }),
  kernel: ({ value, y }) => kernels.fill({ value, y }),
  precision: 'float32',
  gradient: 'stops',
});

/** A tensor of one value, float32 unless another dtype is asked for. */
export function fill(value: number, shape: readonly number[], dtype: DType = 'float32'): Tensor {
  return fillForward({}, { value, shape, dtype }).y;
}

/** Whether every element is known to be 1, as that of a loss's gradient with respect to itself. */
export function isOnes({ node: { definition, attributes } }: Tensor): boolean {
  return definition?.name === 'fill' && (attributes as { value: number }).value === 1;
}

const copyForward = op<{ x: Tensor }, 'y', object>({
  name: 'copy',
  infer: ({ x }) => ({ y: { dtype: x.dtype, shape: x.shape } satisfies Spec }),
  kernel: kernels.copyForward,
  precision: { alike: ['x', 'y'] },
  gradient: ({ gradients: { y: dy } }) => (dy === undefined ? {} : { x: dy }),
});

/** A copy in memory of its own. */
export function copy(x: Tensor): Tensor {
  return copyForward({ x }, {}).y;
}

const stopGradientForward = op<{ x: Tensor }, 'y', object>({
  name: 'stop_gradient',
  infer: ({ x }) => ({ y: { dtype: x.dtype, shape: x.shape } satisfies Spec }),
  kernel: 'alias',
  precision: { alike: ['x', 'y'] },
  gradient: 'stops',
});

/** The same value; gradients do not pass. */
export function stopGradient(x: Tensor): Tensor {
  return stopGradientForward({ x }, {}).y;
}

const castForward = op<{ x: Tensor }, 'y', { dtype: DType }>({
  name: 'cast',
  infer: ({ x }, { dtype }) => {
    const y = { dtype, shape: x.shape } satisfies Spec;
    for (const spec of [x, y]) {
      if (spec.dtype === 'float32' || spec.dtype === 'bfloat16') continue;
      throw new SiglipError(
        'ERR_DTYPE',
        `cast: x and y must be float32 or bfloat16, got ${describe(x)} to ${dtype}`,
      );
    }
    return { y };
  },
  kernel: ({ x, y }) => kernels.castForward({ x, y }),
  precision: { any: ['x'] },
  gradient: ({ inputs: { x }, gradients: { y: dy } }) =>
    dy === undefined ? {} : { x: cast(dy, x.dtype) },
});

/**
 * The values of `x` in another dtype, to the nearest, ties to even.
 *
 * @param x - float32 or bfloat16.
 * @param dtype - float32 or bfloat16.
 * @throws ERR_DTYPE.
 */
export function cast(x: Tensor, dtype: DType): Tensor {
  return castForward({ x }, { dtype }).y;
}

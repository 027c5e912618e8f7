// The two operations the graph itself needs: the gradients of a value used twice are summed, and a
// gradient starts as one and is zero where nothing depends on a value. The other operations live in
// lib/ops, which re-exports these.
import { kernels } from '../native/kernels';
import type { Spec } from '../native/spec';
import { expectSpec, op } from './op';
import type { Tensor } from './tensor';

const addForward = op<{ a: Tensor; b: Tensor }, 'y', object>({
  name: 'add',
  infer: ({ a, b }) => {
    expectSpec('add', 'b', b, { dtype: 'float32', shape: a.shape });
    expectSpec('add', 'a', a, { dtype: 'float32', shape: a.shape });
    return { y: a };
  },
  kernel: kernels.addForward,
  gradient: ({ gradients: { y: dy } }) => (dy === undefined ? {} : { a: dy, b: dy }),
});

/** a + b, element by element; both of one shape. */
export function add(a: Tensor, b: Tensor): Tensor {
  return addForward({ a, b }, {}).y;
}

const fillForward = op<object, 'y', { value: number; shape: readonly number[] }>({
  name: 'fill',
  infer: (_, { shape }) => ({ y: { dtype: 'float32', shape } }),
  kernel: ({ value, y }) => kernels.fill({ value, y }),
  gradient: 'stops',
});

/** A float32 tensor of one value. */
export function fill(value: number, shape: readonly number[]): Tensor {
  return fillForward({}, { value, shape }).y;
}

const copyForward = op<{ x: Tensor }, 'y', object>({
  name: 'copy',
  infer: ({ x }) => ({ y: { dtype: x.dtype, shape: x.shape } satisfies Spec }),
  kernel: kernels.copyForward,
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
  gradient: 'stops',
});

/** The same value; gradients do not pass. */
export function stopGradient(x: Tensor): Tensor {
  return stopGradientForward({ x }, {}).y;
}

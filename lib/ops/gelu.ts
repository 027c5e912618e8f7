// GELU in its tanh approximation (the `gelu_pytorch_tanh` of the checkpoints, flax's default).
import type { Tensor } from '../graph';
import { expectRank, op } from '../graph';
import { kernels } from '../native/kernels';

const geluForward = op<{ x: Tensor }, 'y', object>({
  name: 'gelu',
  infer: ({ x }) => ({ y: { dtype: 'float32', shape: expectRank('gelu', 'x', x, ['…', 'D']) } }),
  kernel: kernels.geluForward,
  precision: { alike: ['x', 'y'] },
  gradient: ({ inputs: { x }, gradients: { y: dy } }) =>
    dy === undefined ? {} : { x: geluBackward({ dy, x }, {}).dx },
});

const geluBackward = op<{ dy: Tensor; x: Tensor }, 'dx', object>({
  name: 'gelu_backward',
  infer: ({ x }) => ({ dx: x }),
  kernel: kernels.geluBackward,
  precision: { alike: ['dy', 'x', 'dx'] },
  gradient: 'notDifferentiable',
});

/** 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), element by element. */
export function gelu(x: Tensor): Tensor {
  return geluForward({ x }, {}).y;
}

// GELU in its tanh approximation (the `gelu_pytorch_tanh` of the checkpoints, flax's default), or with
// the normal distribution itself (PyTorch's default, the projection heads of DINO).
import type { Tensor } from '../graph';
import { expectRank, op } from '../graph';
import { kernels } from '../native/kernels';

// Values of the kernels' `form` argument, as in native/cpu/activation.h.
const geluTanh = 1;
const geluErf = 2;

type Pointwise = (x: Tensor) => Tensor;

// Products take over the tanh form alone, which they know by its name.
const forms = { tanh: gelus('gelu', geluTanh), erf: gelus('gelu_erf', geluErf) };

function gelus(name: string, form: number): Pointwise {
  const forward = op<{ x: Tensor }, 'y', object>({
    name,
    infer: ({ x }) => ({ y: { dtype: 'float32', shape: expectRank('gelu', 'x', x, ['…', 'D']) } }),
    kernel: ({ x, y }) => kernels.geluForward({ x, form, y }),
    precision: { alike: ['x', 'y'] },
    gradient: ({ inputs: { x }, gradients: { y: dy } }) =>
      dy === undefined ? {} : { x: backward({ dy, x }, {}).dx },
  });
  const backward = op<{ dy: Tensor; x: Tensor }, 'dx', object>({
    name: `${name}_backward`,
    infer: ({ x }) => ({ dx: x }),
    kernel: ({ dy, x, dx }) => kernels.geluBackward({ dy, x, form, dx }),
    precision: { alike: ['dy', 'x', 'dx'] },
    gradient: 'notDifferentiable',
  });
  return (x) => forward({ x }, {}).y;
}

/**
 * x Φ(x), element by element.
 *
 * @param form - `'tanh'`, the default: 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))). `'erf'`: Φ the
 * normal distribution itself.
 */
export function gelu(x: Tensor, form: 'tanh' | 'erf' = 'tanh'): Tensor {
  return forms[form](x);
}

// The plain product of two matrices, each transposed on request. Its own derivative.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, op } from '../graph';
import { kernels } from '../native/kernels';

interface Transposes {
  readonly transposeA: number;
  readonly transposeB: number;
}

type Product = (
  operands: { a: Tensor; b: Tensor },
  transposes: Transposes,
) => Readonly<Record<'y', Tensor>>;

// The backward is the same product. Its result may be the gradient of a parameter, which is float32
// whatever the operands are.
const [matmulForward, matmulBackward] = [
  product('matmul', ['a', 'b', 'y']),
  product('matmul_backward', ['a', 'b']),
];

function product(name: string, narrow: readonly ('a' | 'b' | 'y')[]): Product {
  return op<{ a: Tensor; b: Tensor }, 'y', Transposes>({
    name,
    infer: ({ a, b }, { transposeA, transposeB }) => {
      const [a0 = 0, a1 = 0] = expectRank('matmul', 'a', a, ['M', 'K']);
      const [b0 = 0, b1 = 0] = expectRank('matmul', 'b', b, ['K', 'N']);
      const [m, k] = transposeA === 1 ? [a1, a0] : [a0, a1];
      const [inner, n] = transposeB === 1 ? [b1, b0] : [b0, b1];
      if (k !== inner) {
        throw new SiglipError(
          'ERR_SHAPE',
          `matmul: the inner extents must be equal, got ${String(k)} and ${String(inner)}`,
        );
      }
      return { y: { dtype: 'float32', shape: [m, n] } };
    },
    kernel: kernels.matmulForward,
    precision: { narrow },
    // With op(a) = A and op(b) = B: dA = dy Bᵀ, dB = Aᵀ dy, transposed again where the operand was.
    gradient: ({
      inputs: { a, b },
      attributes: { transposeA, transposeB },
      gradients: { y: dy },
    }) => {
      if (dy === undefined) return {};
      const times = (x: Tensor, y: Tensor, tx: number, ty: number): Tensor =>
        matmulBackward({ a: x, b: y }, { transposeA: tx, transposeB: ty }).y;
      return {
        a: transposeA === 1 ? times(b, dy, transposeB, 1) : times(dy, b, 0, 1 - transposeB),
        b: transposeB === 1 ? times(dy, a, 1, transposeA) : times(a, dy, 1 - transposeA, 0),
      };
    },
  });
}

/**
 * op(a) · op(b).
 *
 * @param a - (M, K), or (K, M) with `transposeA`.
 * @param b - (K, N), or (N, K) with `transposeB`.
 * @returns (M, N) float32.
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function matmul(
  a: Tensor,
  b: Tensor,
  options: { readonly transposeA?: boolean; readonly transposeB?: boolean } = {},
): Tensor {
  const { transposeA = false, transposeB = false } = options;
  return matmulForward({ a, b }, { transposeA: transposeA ? 1 : 0, transposeB: transposeB ? 1 : 0 })
    .y;
}

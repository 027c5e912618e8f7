// y = op(a) op(b), op being the transpose when asked for.
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

/** The transpose of a matrix. */
export function transpose(a: NdArray): NdArray {
  const [M, N] = a.shape;
  const y = zeros([N, M]);
  for (let m = 0; m < M; m++) for (let n = 0; n < N; n++) y.data[n * M + m] = a.data[m * N + n];
  return y;
}

/** Which operand is transposed before the product. */
export interface MatmulOptions {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
}

/** op(a) (M, K), op(b) (K, N) -> (M, N). */
export function matmul(a: NdArray, b: NdArray, options: MatmulOptions = {}): NdArray {
  const left = options.transposeA === true ? transpose(a) : a;
  const right = options.transposeB === true ? transpose(b) : b;
  const [M, K] = left.shape;
  const N = right.shape[1];
  const y = zeros([M, N]);
  for (let m = 0; m < M; m++) {
    for (let n = 0; n < N; n++) {
      for (let k = 0; k < K; k++) y.data[m * N + n] += left.data[m * K + k] * right.data[k * N + n];
    }
  }
  return y;
}

/** d op(a) = dy op(b)ᵀ, d op(b) = op(a)ᵀ dy. */
export function matmulBackward(
  dy: NdArray,
  a: NdArray,
  b: NdArray,
  options: MatmulOptions = {},
): { da: NdArray; db: NdArray } {
  const left = options.transposeA === true ? transpose(a) : a;
  const right = options.transposeB === true ? transpose(b) : b;
  const dleft = matmul(dy, right, { transposeB: true });
  const dright = matmul(left, dy, { transposeA: true });
  return {
    da: options.transposeA === true ? transpose(dleft) : dleft,
    db: options.transposeB === true ? transpose(dright) : dright,
  };
}

// y[m, g] = a[m, g] · op(b[g]): one product per group. a (M, G, K), b (G, K, N), or (G, N, K) when
// transposed.
import { matmul } from './matmul';
import type { NdArray } from './nd_array';
import { ndArray, zeros } from './nd_array';

/** Group g of (M, G, K) as a matrix (M, K). */
function columnsOf(x: NdArray, g: number): NdArray {
  const [M, G, K] = x.shape;
  const matrix = zeros([M, K]);
  for (let m = 0; m < M; m++) {
    const start = (m * G + g) * K;
    matrix.data.set(x.data.subarray(start, start + K), m * K);
  }
  return matrix;
}

/** Group g of (G, K, N) as a matrix. */
function matrixOf(x: NdArray, g: number): NdArray {
  const [, K, N] = x.shape;
  return ndArray([K, N], x.data.subarray(g * K * N, (g + 1) * K * N));
}

export function groupMatmul(a: NdArray, b: NdArray, transposeB: boolean): NdArray {
  const [M, G] = a.shape;
  const N = b.shape[transposeB ? 1 : 2];
  const y = zeros([M, G, N]);
  for (let g = 0; g < G; g++) {
    const product = matmul(columnsOf(a, g), matrixOf(b, g), { transposeA: false, transposeB });
    for (let m = 0; m < M; m++) {
      y.data.set(product.data.subarray(m * N, (m + 1) * N), (m * G + g) * N);
    }
  }
  return y;
}

/** da[m, g] = dy[m, g] · op(b[g])ᵀ; db[g] = Σ_m a[m, g] ⊗ dy[m, g], transposed where b was. */
export function groupMatmulBackward(
  dy: NdArray,
  a: NdArray,
  b: NdArray,
  transposeB: boolean,
): { da: NdArray; db: NdArray } {
  const db = zeros(b.shape);
  const each = b.shape[1] * b.shape[2];
  for (let g = 0; g < a.shape[1]; g++) {
    const [left, right] = transposeB ? [dy, a] : [a, dy];
    const outer = { transposeA: true, transposeB: false };
    db.data.set(matmul(columnsOf(left, g), columnsOf(right, g), outer).data, g * each);
  }
  return { da: groupMatmul(dy, b, !transposeB), db };
}

// One matrix product per group: what a head does with its own part of a projection.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, extent, op } from '../graph';
import { kernels } from '../native/kernels';

const groupMatmulForward = op<{ a: Tensor; b: Tensor }, 'y', { transposeB: number }>({
  name: 'group_matmul',
  infer: ({ a, b }, { transposeB }) => {
    const [m = 0, groups = 0, k = 0] = expectRank('groupMatmul', 'a', a, ['M', 'G', 'K']);
    const [b0 = 0, b1 = 0, b2 = 0] = expectRank('groupMatmul', 'b', b, ['G', 'K', 'N']);
    const [inner, n] = transposeB === 1 ? [b2, b1] : [b1, b2];
    if (b0 !== groups || inner !== k) {
      throw new SiglipError(
        'ERR_SHAPE',
        `groupMatmul: groups and inner extents must be equal, got ${String(groups)} of ${String(k)} and ${String(b0)} of ${String(inner)}`,
      );
    }
    return { y: { dtype: 'float32', shape: [m, groups, n] } };
  },
  kernel: kernels.groupMatmulForward,
  // da = dy op(b)ᵀ; db = Σ_m a ⊗ dy, the other way round where b was transposed.
  precision: { narrow: ['a', 'b', 'y'] },
  gradient: ({ inputs: { a, b }, attributes: { transposeB }, gradients: { y: dy } }) => {
    if (dy === undefined) return {};
    const da: Tensor = groupMatmulForward({ a: dy, b }, { transposeB: 1 - transposeB }).y;
    const sides = transposeB === 1 ? { x: dy, y: a } : { x: a, y: dy };
    return { a: da, b: groupMatmulOuter(sides, {}).products };
  },
});

const groupMatmulOuter = op<{ x: Tensor; y: Tensor }, 'products', object>({
  name: 'group_matmul_outer',
  infer: ({ x, y }) => ({
    products: { dtype: 'float32', shape: [extent(x, 1), extent(x, 2), extent(y, 2)] },
  }),
  kernel: kernels.groupMatmulOuter,
  precision: { narrow: ['x', 'y'] },
  gradient: 'notDifferentiable',
});

/**
 * a[:, g] · op(b[g]) for every group g.
 *
 * @param a - (M, G, K).
 * @param b - (G, K, N), or (G, N, K) with `transposeB`.
 * @returns (M, G, N).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function groupMatmul(
  a: Tensor,
  b: Tensor,
  options: { readonly transposeB?: boolean } = {},
): Tensor {
  return groupMatmulForward({ a, b }, { transposeB: options.transposeB === true ? 1 : 0 }).y;
}

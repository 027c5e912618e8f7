// Attention pooling by queries folded into the keys' projection: neither keys nor values of the tokens
// are ever computed (native/ops/attention_pool/attention_pool.h).
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { describe, expectRank, expectSpec, op, Reshaped } from '../graph';
import type { Ref } from '../native/kernels';
import { kernels } from '../native/kernels';

interface Inputs {
  readonly x: Tensor;
  readonly u: Tensor;
  readonly keyMask: Tensor | null;
  readonly segments: Tensor | null;
}

// Packed rows (T, D) as the kernel sees them: one batch.
function batched(x: Ref): Ref {
  return x.shape.length === 2 ? new Reshaped(x, [1, ...x.shape]) : x;
}

const attentionPoolForward = op<Inputs, 'y' | 'lse', object>({
  name: 'attention_pool',
  infer: ({ x, u, keyMask, segments }) => {
    expectRank('attentionPool', 'x', x, segments === null ? ['B', 'N', 'D'] : ['T', 'D']);
    expectRank('attentionPool', 'u', u, ['…', 'H', 'D']);
    const [width = 0, tokens = 0, batch = 1] = [...x.shape].reverse();
    const [, heads = 0] = [...u.shape].reverse();
    let sequences = batch;
    if (segments !== null) {
      const [starts = 0] = expectRank('attentionPool', 'segments', segments, ['S + 1'], 'int32');
      sequences = starts - 1;
      if (keyMask !== null) {
        throw new SiglipError(
          'ERR_ARGUMENT',
          'attentionPool: keyMask must be absent with segments, got both',
        );
      }
    }
    const shape = [sequences, heads, width];
    if (u.shape.length > 3) {
      throw new SiglipError(
        'ERR_SHAPE',
        `attentionPool: u must have shape (H, D) or (B, H, D), got ${describe(u)}`,
      );
    }
    expectSpec('attentionPool', 'u', u, {
      dtype: 'float32',
      shape: u.shape.length === 2 ? [heads, width] : shape,
    });
    if (keyMask !== null) {
      expectSpec('attentionPool', 'keyMask', keyMask, { dtype: 'uint8', shape: [batch, tokens] });
    }
    return {
      y: { dtype: 'float32', shape },
      lse: { dtype: 'float32', shape: [sequences, heads] },
    };
  },
  kernel: ({ x, u, keyMask, segments, y, lse }) =>
    kernels.attentionPoolForward({ x: batched(x), u, keyMask, segments, y, lse }),
  precision: { narrow: ['x'] },
  gradient: ({ inputs, outputs: { y, lse }, gradients: { y: dy } }) => {
    if (dy === undefined) return {};
    const { dx, du } = attentionPoolBackward({ dy, ...inputs, y, lse }, {});
    return { x: dx, u: du };
  },
});

const attentionPoolBackward = op<
  Inputs & { readonly dy: Tensor; readonly y: Tensor; readonly lse: Tensor },
  'dx' | 'du',
  object
>({
  name: 'attention_pool_backward',
  infer: ({ x, u }) => ({ dx: x, du: u }),
  kernel: ({ dy, x, u, keyMask, segments, y, lse, dx, du }) =>
    kernels.attentionPoolBackward({
      dy,
      x: batched(x),
      u,
      keyMask,
      segments,
      y,
      lse,
      dx: batched(dx),
      du,
    }),
  precision: { narrow: ['x', 'dx'] },
  gradient: 'notDifferentiable',
});

/**
 * For every head h the mean Σ_t p_t x_t of the tokens with p = softmax_t ⟨u_h, x_t⟩.
 *
 * @param x - (B, N, D); with `segments` (T, D).
 * @param u - (H, D), the same for all sequences, or (B, H, D): Wk_hᵀ q_h times the scale.
 * @param options - `keyMask` (B, N) and `segments` as in `attention`. A sequence without tokens gives
 * zeros.
 * @returns (B, H, D), B the number of images or segments.
 * @throws ERR_SHAPE, ERR_DTYPE; ERR_ARGUMENT for both a mask and segments.
 */
export function attentionPool(
  x: Tensor,
  u: Tensor,
  options: {
    readonly keyMask?: Tensor | null | undefined;
    readonly segments?: Tensor | null | undefined;
  } = {},
): Tensor {
  const { keyMask = null, segments = null } = options;
  return attentionPoolForward({ x, u, keyMask, segments }, {}).y;
}

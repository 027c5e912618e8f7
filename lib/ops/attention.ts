// Fused multi-head attention. The scores are never stored: the backward computes them again from
// the log-sum-exp that the forward keeps (native/ops/attention/attention.h).
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, op, Reshaped } from '../graph';
import type { Ref } from '../native/kernels';
import { kernels } from '../native/kernels';

interface Heads {
  readonly heads: number;
  readonly scale: number;
}

// (B, T, D) as the kernel sees it: (B, T, H, head width).
function byHead(x: Ref, heads: number): Ref {
  const [batch = 0, tokens = 0, width = 0] = x.shape;
  return new Reshaped(x, [batch, tokens, heads, width / heads]);
}

const attentionForward = op<
  { q: Tensor; k: Tensor; v: Tensor; keyMask: Tensor | null },
  'o' | 'lse',
  Heads
>({
  name: 'attention',
  infer: ({ q, k, v, keyMask }, { heads }) => {
    const [batch = 0, queries = 0, width = 0] = expectRank('attention', 'q', q, ['B', 'Tq', 'D']);
    const [, keys = 0] = expectRank('attention', 'k', k, ['B', 'Tk', 'D']);
    const memory = { dtype: 'float32', shape: [batch, keys, width] } as const;
    expectSpec('attention', 'k', k, memory);
    expectSpec('attention', 'v', v, memory);
    if (!Number.isInteger(heads) || heads < 1 || width % heads !== 0) {
      throw new SiglipError(
        'ERR_SHAPE',
        `attention: heads must divide the width ${String(width)}, got ${String(heads)}`,
      );
    }
    if (keyMask !== null) {
      expectSpec('attention', 'keyMask', keyMask, { dtype: 'uint8', shape: [batch, keys] });
    }
    return {
      o: { dtype: 'float32', shape: q.shape },
      lse: { dtype: 'float32', shape: [batch, heads, queries] },
    };
  },
  kernel: ({ q, k, v, keyMask, heads, scale, o, lse }) =>
    kernels.attentionForward({
      q: byHead(q, heads),
      k: byHead(k, heads),
      v: byHead(v, heads),
      keyMask,
      scale,
      o: byHead(o, heads),
      lse,
    }),
  gradient: ({ inputs: { q, k, v, keyMask }, outputs: { o, lse }, attributes, gradients }) => {
    if (gradients.o === undefined) return {};
    const { dq, dk, dv } = attentionBackward(
      { dout: gradients.o, q, k, v, keyMask, o, lse },
      attributes,
    );
    return { q: dq, k: dk, v: dv };
  },
});

const attentionBackward = op<
  {
    dout: Tensor;
    q: Tensor;
    k: Tensor;
    v: Tensor;
    keyMask: Tensor | null;
    o: Tensor;
    lse: Tensor;
  },
  'dq' | 'dk' | 'dv',
  Heads
>({
  name: 'attention_backward',
  infer: ({ q, k, v }) => ({ dq: q, dk: k, dv: v }),
  kernel: ({ dout, q, k, v, keyMask, o, lse, heads, scale, dq, dk, dv }) =>
    kernels.attentionBackward({
      dout: byHead(dout, heads),
      q: byHead(q, heads),
      k: byHead(k, heads),
      v: byHead(v, heads),
      keyMask,
      o: byHead(o, heads),
      lse,
      scale,
      dq: byHead(dq, heads),
      dk: byHead(dk, heads),
      dv: byHead(dv, heads),
    }),
  gradient: 'notDifferentiable',
});

/**
 * softmax(q kᵀ / √(head width)) v, head by head. No causal mask.
 *
 * @param q - (B, Tq, D); a single query (Tq = 1) is the MAP head's form.
 * @param k - (B, Tk, D).
 * @param v - (B, Tk, D).
 * @param options - `heads`; `keyMask` (B, Tk) uint8, 1 where a key counts, 0 for padding: a masked
 * key has no influence on anything, a row without any key gives zeros.
 * @returns (B, Tq, D).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: { readonly heads: number; readonly keyMask?: Tensor | null },
): Tensor {
  const { heads, keyMask = null } = options;
  const scale = Math.sqrt(heads / (q.shape.at(-1) ?? 1));
  return attentionForward({ q, k, v, keyMask }, { heads, scale }).o;
}

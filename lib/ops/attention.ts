// Fused multi-head attention. The scores are never stored: the backward computes them again from
// the log-sum-exp that the forward keeps (native/ops/attention/attention.h).
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, expectSpec, extent, op, Reshaped } from '../graph';
import type { Ref } from '../native/kernels';
import { kernels } from '../native/kernels';

interface Heads {
  readonly heads: number;
  readonly scale: number;
}

// (B, T, D) as the kernel sees it: (B, T, H, head width). Packed rows (T, D) are one batch.
function byHead(x: Ref, heads: number): Ref {
  const [width = 0, tokens = 0, batch = 1] = [...x.shape].reverse();
  return new Reshaped(x, [batch, tokens, heads, width / heads]);
}

const attentionForward = op<
  { q: Tensor; k: Tensor; v: Tensor; keyMask: Tensor | null; segments: Tensor | null },
  'o' | 'lse',
  Heads
>({
  name: 'attention',
  infer: ({ q, k, v, keyMask, segments }, { heads }) => {
    const packed = segments !== null;
    const lead = packed ? [] : ['B'];
    expectRank('attention', 'q', q, [...lead, 'Tq', 'D']);
    expectRank('attention', 'k', k, [...lead, 'Tk', 'D']);
    const [width = 0, queries = 0, batch = 1] = [...q.shape].reverse();
    const keys = packed ? queries : extent(k, 1);
    const memory = {
      dtype: 'float32',
      shape: packed ? [keys, width] : [batch, keys, width],
    } as const;
    expectSpec('attention', 'k', k, memory);
    expectSpec('attention', 'v', v, memory);
    if (!Number.isInteger(heads) || heads < 1 || width % heads !== 0) {
      throw new SiglipError(
        'ERR_SHAPE',
        `attention: heads must divide the width ${String(width)}, got ${String(heads)}`,
      );
    }
    if (segments !== null) {
      const [starts = 0] = expectRank('attention', 'segments', segments, ['S + 1'], 'int32');
      if (starts < 2) {
        throw new SiglipError(
          'ERR_SHAPE',
          `attention: segments must have at least 2 elements, got ${String(starts)}`,
        );
      }
      if (keyMask !== null) {
        throw new SiglipError(
          'ERR_ARGUMENT',
          'attention: keyMask must be absent with segments, got both',
        );
      }
    }
    if (keyMask !== null) {
      expectSpec('attention', 'keyMask', keyMask, { dtype: 'uint8', shape: [batch, keys] });
    }
    return {
      o: { dtype: 'float32', shape: q.shape },
      lse: { dtype: 'float32', shape: [batch, heads, queries] },
    };
  },
  kernel: ({ q, k, v, keyMask, segments, heads, scale, o, lse }) =>
    kernels.attentionForward({
      q: byHead(q, heads),
      k: byHead(k, heads),
      v: byHead(v, heads),
      keyMask,
      segments,
      scale,
      o: byHead(o, heads),
      lse,
    }),
  precision: { narrow: ['q', 'k', 'v', 'o'] },
  gradient: ({
    inputs: { q, k, v, keyMask, segments },
    outputs: { o, lse },
    attributes,
    gradients,
  }) => {
    if (gradients.o === undefined) return {};
    const { dq, dk, dv } = attentionBackward(
      { dout: gradients.o, q, k, v, keyMask, segments, o, lse },
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
    segments: Tensor | null;
    o: Tensor;
    lse: Tensor;
  },
  'dq' | 'dk' | 'dv',
  Heads
>({
  name: 'attention_backward',
  infer: ({ q, k, v }) => ({ dq: q, dk: k, dv: v }),
  kernel: ({ dout, q, k, v, keyMask, segments, o, lse, heads, scale, dq, dk, dv }) =>
    kernels.attentionBackward({
      dout: byHead(dout, heads),
      q: byHead(q, heads),
      k: byHead(k, heads),
      v: byHead(v, heads),
      keyMask,
      segments,
      o: byHead(o, heads),
      lse,
      scale,
      dq: byHead(dq, heads),
      dk: byHead(dk, heads),
      dv: byHead(dv, heads),
    }),
  precision: { narrow: ['dout', 'q', 'k', 'v', 'o', 'dq', 'dk', 'dv'] },
  gradient: 'notDifferentiable',
});

/** Which keys a query attends to; by default all of its image. */
export interface AttentionScope {
  /**
   * (B, Tk) uint8, 1 where a key counts, 0 for padding: a masked key has no influence on anything, a
   * row without any key gives zeros.
   */
  readonly keyMask?: Tensor | null | undefined;
  /**
   * (S + 1) int32: the rows are S sequences one after the other without padding, sequence s in rows
   * [segments[s], segments[s + 1]), and a query attends to its own sequence. Rows behind the last
   * belong to none: they give zeros, get none as gradients, and reach nothing. Starts that do not
   * begin at 0, fall or leave the rows make the run fail with ERR_ARGUMENT.
   */
  readonly segments?: Tensor | null | undefined;
}

/**
 * softmax(q kᵀ / √(head width)) v, head by head. No causal mask.
 *
 * @param q - (B, Tq, D); with `segments` (T, D), as k and v.
 * @param k - (B, Tk, D).
 * @param v - (B, Tk, D).
 * @returns the shape of q.
 * @throws ERR_SHAPE, ERR_DTYPE; ERR_ARGUMENT for both a mask and segments.
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: { readonly heads: number } & AttentionScope,
): Tensor {
  const { heads, keyMask = null, segments = null } = options;
  const scale = Math.sqrt(heads / (q.shape.at(-1) ?? 1));
  return attentionForward({ q, k, v, keyMask, segments }, { heads, scale }).o;
}

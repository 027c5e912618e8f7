// Self-attention whose queries, keys and values are side by side: one product made them of one array.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { expectRank, op, Reshaped } from '../graph';
import type { Ref } from '../native/kernels';
import { kernels } from '../native/kernels';
import type { AttentionScope, Heads, Limits } from './attention';
import { byHead, expectLimits } from './attention';

// (B, T, 3 D) as the kernel sees it: (B, T, 3, H, head width).
function byPart(x: Ref, heads: number): Ref {
  const [width = 0, tokens = 0, batch = 1] = [...x.shape].reverse();
  return new Reshaped(x, [batch, tokens, 3, heads, width / 3 / heads]);
}

/**
 * Self-attention whose queries, keys and values lie side by side: qkv (…, T, 3 D) is what one product
 * makes of the three weights.
 */
export const joinedForward = op<{ qkv: Tensor } & Limits, 'o' | 'lse', Heads>({
  name: 'joined_attention',
  infer: ({ qkv, ...limits }, { heads }) => {
    const rows = limits.segments === null ? ['B', 'T'] : ['T'];
    expectRank('joinedAttention', 'qkv', qkv, [...rows, '3 D']);
    const [width = 0, tokens = 0, batch = 1] = [...qkv.shape].reverse();
    if (!Number.isInteger(heads) || heads < 1 || width % (3 * heads) !== 0) {
      throw new SiglipError(
        'ERR_SHAPE',
        `joinedAttention: three times heads must divide the width ${String(width)}, got ${String(heads)} heads`,
      );
    }
    expectLimits('joinedAttention', limits, { batch, keys: tokens });
    return {
      o: { dtype: 'float32', shape: [...qkv.shape.slice(0, -1), width / 3] },
      lse: { dtype: 'float32', shape: [batch, heads, tokens] },
    };
  },
  kernel: ({ qkv, keyMask, segments, keySegments, causal, heads, scale, narrow, o, lse }) =>
    kernels.attentionForward({
      q: byPart(qkv, heads),
      k: byPart(qkv, heads),
      v: byPart(qkv, heads),
      keyMask,
      segments,
      keySegments,
      causal,
      scale,
      narrow: narrow === true ? 1 : 0,
      o: byHead(o, heads),
      lse,
    }),
  precision: { narrow: ['qkv', 'o'] },
  gradient: ({ inputs, outputs: { o, lse }, attributes, gradients: { o: dout } }) =>
    dout === undefined ? {} : { qkv: joinedBackward({ dout, ...inputs, o, lse }, attributes).dqkv },
});

/** The backward of {@link joinedForward}: the gradients lie side by side as well. */
export const joinedBackward = op<
  { dout: Tensor; qkv: Tensor; o: Tensor; lse: Tensor } & Limits,
  'dqkv',
  Heads
>({
  name: 'joined_attention_backward',
  infer: ({ qkv }) => ({ dqkv: qkv }),
  kernel: ({ dout, qkv, keyMask, segments, keySegments, causal, o, lse, heads, scale, dqkv }) =>
    kernels.attentionBackward({
      dout: byHead(dout, heads),
      q: byPart(qkv, heads),
      k: byPart(qkv, heads),
      v: byPart(qkv, heads),
      keyMask,
      segments,
      keySegments,
      causal,
      o: byHead(o, heads),
      lse,
      scale,
      dq: byPart(dqkv, heads),
      dk: byPart(dqkv, heads),
      dv: byPart(dqkv, heads),
    }),
  precision: { narrow: ['dout', 'qkv', 'o', 'dqkv'] },
  gradient: 'notDifferentiable',
});

/**
 * {@link attention} of q, k and v that are the first, second and last D of every row.
 *
 * @param qkv - (B, T, 3 D); with `segments` (T, 3 D).
 * @returns (…, T, D).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function joinedAttention(
  qkv: Tensor,
  { heads, keyMask = null, segments = null }: { readonly heads: number } & AttentionScope,
): Tensor {
  const scale = Math.sqrt((3 * heads) / (qkv.shape.at(-1) ?? 1));
  const limits = { keyMask, segments, keySegments: null, causal: null };
  return joinedForward({ qkv, ...limits }, { heads, scale }).o;
}

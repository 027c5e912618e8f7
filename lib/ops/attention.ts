// Fused multi-head attention. The scores are never stored: the backward computes them again from
// the log-sum-exp that the forward keeps (native/ops/attention/attention.h).
import { SiglipError } from '../errors';
import type { Specialize, Tensor } from '../graph';
import { expectRank, expectSpec, extent, op, Reshaped } from '../graph';
import type { KernelCall, Ref } from '../native/kernels';
import { kernels } from '../native/kernels';

export interface Heads {
  readonly heads: number;
  readonly scale: number;
  /** Whether products may be of operands rounded to bfloat16, where that is faster. */
  readonly narrow?: boolean;
}

/** (B, T, D) as the kernel sees it: (B, T, H, head width). Packed rows (T, D) are one batch. */
function byHead(x: Ref, heads: number): Ref {
  const [width = 0, tokens = 0, batch = 1] = [...x.shape].reverse();
  return new Reshaped(x, [batch, tokens, heads, width / heads]);
}

/** What limits the keys of a query. */
export interface Limits {
  keyMask: Tensor | null;
  segments: Tensor | null;
  keySegments: Tensor | null;
  causal: Tensor | null;
}

/** What the calls of attention have in common, whether its operands are apart or joined. */
type CommonCall = Heads & {
  readonly [K in keyof Limits | 'o' | 'lse']: K extends 'o' | 'lse' ? Ref : Ref | null;
};

function forwardCall(
  operands: Readonly<Record<'q' | 'k' | 'v', Ref>>,
  { keyMask, segments, keySegments, causal, heads, scale, narrow, o, lse }: CommonCall,
): KernelCall {
  return kernels.attentionForward({
    ...operands,
    keyMask,
    segments,
    keySegments,
    causal,
    scale,
    narrow: narrow === true ? 1 : 0,
    o: byHead(o, heads),
    lse,
  });
}

function backwardCall(
  operands: Readonly<Record<'q' | 'k' | 'v', Ref>>,
  gradients: Readonly<Record<'dq' | 'dk' | 'dv', Ref>>,
  {
    dout,
    keyMask,
    segments,
    keySegments,
    causal,
    heads,
    scale,
    o,
    lse,
  }: CommonCall & { readonly dout: Ref },
): KernelCall {
  return kernels.attentionBackward({
    dout: byHead(dout, heads),
    ...operands,
    keyMask,
    segments,
    keySegments,
    causal,
    o: byHead(o, heads),
    lse,
    scale,
    ...gradients,
  });
}

type AttentionOperands = { q: Tensor; k: Tensor; v: Tensor } & Limits;

const attentionForward = op<AttentionOperands, 'o' | 'lse', Heads>({
  name: 'attention',
  infer: ({ q, k, v, ...limits }, { heads }) => {
    const { segments, keySegments, causal } = limits;
    const packed = segments !== null;
    const packedKeys = packed || keySegments !== null;
    expectRank('attention', 'q', q, packed ? ['Tq', 'D'] : ['B', 'Tq', 'D']);
    expectRank('attention', 'k', k, packedKeys ? ['Tk', 'D'] : ['B', 'Tk', 'D']);
    const [width = 0, queries = 0, batch = 1] = [...q.shape].reverse();
    const keys = packed || causal !== null ? queries : extent(k, -2);
    const memory = {
      dtype: 'float32',
      shape: packedKeys ? [keys, width] : [batch, keys, width],
    } as const;
    expectSpec('attention', 'k', k, memory);
    expectSpec('attention', 'v', v, memory);
    if (!Number.isInteger(heads) || heads < 1 || width % heads !== 0) {
      throw new SiglipError(
        'ERR_SHAPE',
        `attention: heads must divide the width ${String(width)}, got ${String(heads)}`,
      );
    }
    expectLimits('attention', limits, { batch, keys });
    return {
      o: { dtype: 'float32', shape: q.shape },
      lse: { dtype: 'float32', shape: [batch, heads, queries] },
    };
  },
  kernel: ({ q, k, v, ...call }) => {
    const { heads } = call;
    return forwardCall({ q: byHead(q, heads), k: byHead(k, heads), v: byHead(v, heads) }, call);
  },
  precision: { narrow: ['q', 'k', 'v', 'o'] },
  gradient: ({ inputs, outputs: { o, lse }, attributes, gradients }) => {
    if (gradients.o === undefined) return {};
    const { dq, dk, dv } = attentionBackward({ dout: gradients.o, ...inputs, o, lse }, attributes);
    return { q: dq, k: dk, v: dv };
  },
});

const attentionBackward = op<
  { dout: Tensor; q: Tensor; k: Tensor; v: Tensor; o: Tensor; lse: Tensor } & Limits,
  'dq' | 'dk' | 'dv',
  Heads
>({
  name: 'attention_backward',
  infer: ({ q, k, v }) => ({ dq: q, dk: k, dv: v }),
  kernel: ({ q, k, v, dq, dk, dv, ...call }) => {
    const of = (x: Ref): Ref => byHead(x, call.heads);
    const operands = { q: of(q), k: of(k), v: of(v) };
    return backwardCall(operands, { dq: of(dq), dk: of(dk), dv: of(dv) }, call);
  },
  precision: { narrow: ['dout', 'q', 'k', 'v', 'o', 'dq', 'dk', 'dv'] },
  gradient: 'notDifferentiable',
});

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
  kernel: ({ qkv, ...call }) => {
    const parts = byPart(qkv, call.heads);
    return forwardCall({ q: parts, k: parts, v: parts }, call);
  },
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
  kernel: ({ qkv, dqkv, ...call }) => {
    const parts = byPart(qkv, call.heads);
    const gradients = byPart(dqkv, call.heads);
    return backwardCall(
      { q: parts, k: parts, v: parts },
      { dq: gradients, dk: gradients, dv: gradients },
      call,
    );
  },
  precision: { narrow: ['dout', 'qkv', 'o', 'dqkv'] },
  gradient: 'notDifferentiable',
});

/** Throws unless there is one limit at most, and fits. */
function expectLimits(
  who: string,
  limits: Limits,
  { batch, keys }: { readonly batch: number; readonly keys: number },
): void {
  const { keyMask, segments, keySegments, causal } = limits;
  if (segments !== null) {
    const [starts = 0] = expectRank(who, 'segments', segments, ['S + 1'], 'int32');
    if (starts < 2) {
      throw new SiglipError(
        'ERR_SHAPE',
        `${who}: segments must have at least 2 elements, got ${String(starts)}`,
      );
    }
  }
  const [first, second] = Object.entries(limits)
    .filter(([, limit]) => limit !== null)
    .map(([name]) => name);
  if (second !== undefined) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `${who}: ${first} must be absent with ${second}, got both`,
    );
  }
  if (keySegments !== null) {
    expectSpec(who, 'keySegments', keySegments, { dtype: 'int32', shape: [batch + 1] });
  }
  if (causal !== null) expectSpec(who, 'causal', causal, { dtype: 'uint8', shape: [batch] });
  if (keyMask !== null) {
    expectSpec(who, 'keyMask', keyMask, { dtype: 'uint8', shape: [batch, keys] });
  }
}

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

/** As {@link AttentionScope}, with what a decoder needs; at most one of all these is given. */
export interface DecoderScope extends AttentionScope {
  /**
   * (B + 1) int32: k and v are packed, (T, D), and the queries of example b attend to the rows
   * [keySegments[b], keySegments[b + 1]). Rows behind the last get zeros as gradients. Starts are
   * checked as those of `segments`.
   */
  readonly keySegments?: Tensor | null | undefined;
  /**
   * (B) uint8, with as many keys as queries: in an example where it is 1, query i attends to the keys
   * 0 to i alone.
   */
  readonly causal?: Tensor | null | undefined;
}

/**
 * softmax(q kᵀ / √(head width)) v, head by head.
 *
 * @param q - (B, Tq, D); with `segments` (T, D), as k and v.
 * @param k - (B, Tk, D); with `keySegments` (T, D), as v.
 * @param v - (B, Tk, D).
 * @returns the shape of q.
 * @throws ERR_SHAPE, ERR_DTYPE; ERR_ARGUMENT for two limits of the keys at once.
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: { readonly heads: number } & DecoderScope,
): Tensor {
  const { heads, keyMask = null, segments = null, keySegments = null, causal = null } = options;
  const scale = Math.sqrt(heads / (q.shape.at(-1) ?? 1));
  const limits = { keyMask, segments, keySegments, causal };
  return attentionForward({ q, k, v, ...limits }, { heads, scale }).o;
}

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

/**
 * For compile(): attention of inference whose products may be of bfloat16, where that is faster.
 *
 * @param isNarrow - whether that is so, by the label of its node.
 */
export function narrowAttention(isNarrow: (label: string) => boolean): Specialize {
  return ({ definition, inputs, attributes, label }) => {
    if (!isNarrow(label)) return undefined;
    const narrowed = { ...(attributes as unknown as Heads), narrow: true };
    if (definition?.name === 'attention') {
      return attentionForward(inputs as unknown as AttentionOperands, narrowed);
    }
    if (definition?.name === 'joined_attention') {
      return joinedForward(inputs as unknown as { qkv: Tensor } & Limits, narrowed);
    }
    return undefined;
  };
}

// Multi-head attention with its four projections; scale 1/√(head width), no dropout.
import type { Tensor } from '../graph';
import { extent } from '../graph';
import * as ops from '../ops';
import type { LinearParameters } from './linear';
import { linear } from './linear';

/**
 * Parameters of an attention layer; all four projections are (D, D) with bias. Those of a decoder may be
 * without bias, and take keys and values from a memory of another width.
 */
export interface AttentionParameters<Leaf, Projection = LinearParameters<Leaf>> {
  readonly query: Projection;
  readonly key: Projection;
  readonly value: Projection;
  readonly out: Projection;
}

export interface AttentionOptions extends ops.AttentionScope {
  /** Number of heads; divides the width. */
  readonly heads: number;
}

/**
 * Attention of `x` to `memory`: queries from the one, keys and values from the other, then the
 * output projection. Self-attention is `attention(x, x, …)`.
 *
 * @param x - (B, Tq, D); with `segments` (T, D), as memory
 * @param memory - (B, Tk, D)
 * @returns the shape of x
 */
export function attention(
  x: Tensor,
  memory: Tensor,
  { query, key, value, out }: AttentionParameters<Tensor>,
  { heads, keyMask, segments }: AttentionOptions,
): Tensor {
  const mixed = ops.attention(linear(x, query), linear(memory, key), linear(memory, value), {
    heads,
    keyMask,
    segments,
  });
  return linear(mixed, out);
}

/**
 * Attention of one query per sequence, or of one for all, with the projections of the tokens folded
 * away: the query meets the key's weight before the tokens do, ⟨q_h, Wk_h x + bk_h⟩ = ⟨Wk_hᵀ q_h, x⟩
 * and a shift that the softmax does not see, and the mean of tokens meets the value's weight after the
 * softmax. Two products of (N, D) by (D, D) less.
 *
 * @param x - (B, D) what asks; (1, D) asks for every sequence
 * @param memory - (B, N, D); with `segments` (T, D)
 * @returns (B, D)
 */
export function pooledAttention(
  x: Tensor,
  memory: Tensor,
  { query, key, value, out }: AttentionParameters<Tensor>,
  { heads, keyMask, segments }: AttentionOptions,
): Tensor {
  const width = extent(x, -1);
  const headWidth = width / heads;
  const byHead = (weight: Tensor): Tensor => ops.reshape(weight, [heads, headWidth, width]);
  const asking = extent(x, 0);
  const queries = ops.reshape(linear(x, query), [asking, heads, headWidth]);
  const folded = ops.scaleBy(
    ops.groupMatmul(queries, byHead(key.weight)),
    1 / Math.sqrt(headWidth),
  );
  const u = asking === 1 ? ops.reshape(folded, [heads, width]) : folded;
  const means = ops.attentionPool(memory, u, { keyMask, segments });
  const mixed = ops.groupMatmul(means, byHead(value.weight), { transposeB: true });
  const flat = ops.reshape(mixed, [extent(means, 0), width]);
  return linear(ops.addRow(flat, value.bias), out);
}

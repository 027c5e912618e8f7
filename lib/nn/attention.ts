// Multi-head attention with biases in all four projections; scale 1/√(head width), no dropout.
import type { Tensor } from '../graph';
import * as ops from '../ops';
import type { LinearParameters } from './linear';
import { linear } from './linear';

/** Parameters of an attention layer; all four projections are (D, D) with bias. */
export interface AttentionParameters<Leaf> {
  readonly query: LinearParameters<Leaf>;
  readonly key: LinearParameters<Leaf>;
  readonly value: LinearParameters<Leaf>;
  readonly out: LinearParameters<Leaf>;
}

export interface AttentionOptions {
  /** Number of heads; divides the width. */
  readonly heads: number;
  /** (B, Tk) uint8: 1 attend, 0 ignore. Default: every token is attended to. */
  readonly keyMask?: Tensor | undefined;
}

/**
 * Attention of `x` to `memory`: queries from the one, keys and values from the other, then the
 * output projection. Self-attention is `attention(x, x, …)`.
 *
 * @param x - (B, Tq, D)
 * @param memory - (B, Tk, D)
 * @returns (B, Tq, D)
 */
export function attention(
  x: Tensor,
  memory: Tensor,
  parameters: AttentionParameters<Tensor>,
  options: AttentionOptions,
): Tensor {
  return attend(linear(x, parameters.query), memory, parameters, options);
}

/**
 * As {@link attention}, with queries that are already projected: a constant query is projected once
 * and not once per image.
 *
 * @param query - (B, Tq, D)
 * @param memory - (B, Tk, D)
 * @returns (B, Tq, D)
 */
export function attend(
  query: Tensor,
  memory: Tensor,
  { key, value, out }: Omit<AttentionParameters<Tensor>, 'query'>,
  { heads, keyMask }: AttentionOptions,
): Tensor {
  const mixed = ops.attention(query, linear(memory, key), linear(memory, value), {
    heads,
    keyMask: keyMask ?? null,
  });
  return linear(mixed, out);
}

// Pre-norm decoder block:
//   x = y + SelfAttention(LN1(y));   u = x + CrossAttention(LN2(x), memory);   y = u + Mlp(LN3(u))
// The keys and values of the memory are one thing and the block another, so that whoever decodes token by
// token makes them once.
import type { Tensor } from '../graph';
import { extent, scope, tap } from '../graph';
import * as ops from '../ops';
import type { AttentionParameters } from './attention';
import { layerNorm } from './layer_norm';
import type { OptionalBias } from './linear';
import { linear } from './linear';
import type { MlpParameters } from './mlp';
import { mlp } from './mlp';

export interface DecoderBlockParameters<Leaf> {
  readonly norm1: OptionalBias<Leaf>;
  readonly selfAttention: AttentionParameters<Leaf, OptionalBias<Leaf>>;
  readonly norm2: OptionalBias<Leaf>;
  /** Keys and values are projected from the width of the memory. */
  readonly crossAttention: AttentionParameters<Leaf, OptionalBias<Leaf>>;
  readonly norm3: OptionalBias<Leaf>;
  readonly mlp: MlpParameters<Leaf, OptionalBias<Leaf>>;
}

/** Keys and values of a layer. */
export interface KeysAndValues<Leaf> {
  readonly keys: Leaf;
  readonly values: Leaf;
}

/** Projects keys and values from `x` (…, D). */
export function keysAndValues(
  x: Tensor,
  { key, value }: Pick<AttentionParameters<Tensor, OptionalBias<Tensor>>, 'key' | 'value'>,
): KeysAndValues<Tensor> {
  return { keys: linear(x, key), values: linear(x, value) };
}

/** Which rows of the memory count, as in {@link ops.DecoderScope}. */
export interface MemoryScope {
  readonly keyMask?: Tensor | undefined;
  readonly keySegments?: Tensor | undefined;
}

export interface DecoderBlockOptions {
  readonly heads: number;
  /** Added to the variance in the layer norms. */
  readonly eps: number;
}

/**
 * y (B, T, D) -> (B, T, D).
 *
 * Taps: `selfAttention`, `crossAttention` and `mlp` (each before its residual), `output`.
 *
 * @param own - what gives the keys and values of the block's own tokens, from LN1(y), and their scope
 * @param memory - (M, N, D), or packed (R, D); B is a multiple of M, and B / M consecutive examples
 * share a memory
 */
export function decoderBlock(
  y: Tensor,
  parameters: DecoderBlockParameters<Tensor>,
  own: (normed: Tensor) => KeysAndValues<Tensor> & ops.DecoderScope,
  memory: KeysAndValues<Tensor> & MemoryScope,
  options: DecoderBlockOptions,
): Tensor {
  const { heads } = options;
  const { selfAttention, crossAttention } = parameters;
  const self = scope('selfAttention', () => {
    const normed = layerNorm(y, parameters.norm1, options);
    const { keys, values, ...limits } = own(normed);
    const mixed = ops.attention(linear(normed, selfAttention.query), keys, values, {
      heads,
      ...limits,
    });
    return linear(mixed, selfAttention.out);
  });
  const x = ops.add(y, tap('selfAttention', self));
  const cross = scope('crossAttention', () => {
    const queries = linear(layerNorm(x, parameters.norm2, options), crossAttention.query);
    const { keys, values, ...limits } = memory;
    const mixed = ops.attention(ops.reshape(queries, sharedShape(queries, memory)), keys, values, {
      heads,
      ...limits,
    });
    return linear(ops.reshape(mixed, queries.shape), crossAttention.out);
  });
  const u = ops.add(x, tap('crossAttention', cross));
  const transformed = scope('mlp', () =>
    mlp(layerNorm(u, parameters.norm3, options), parameters.mlp),
  );
  return tap('output', ops.add(u, tap('mlp', transformed)));
}

// Queries (B, T, D) of examples that share a memory are those of one sequence: (M, B/M · T, D).
function sharedShape(
  queries: Tensor,
  { keys, keySegments }: KeysAndValues<Tensor> & MemoryScope,
): number[] {
  const memories = keySegments === undefined ? extent(keys, 0) : extent(keySegments, 0) - 1;
  const [batch = 0, length = 0, width = 0] = queries.shape;
  return [memories, (batch / memories) * length, width];
}

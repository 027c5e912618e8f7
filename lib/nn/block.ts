// Pre-norm transformer block: y = x + Attention(LN1(x)); y + Mlp(LN2(y)).
import type { Tensor } from '../graph';
import { scope, tap } from '../graph';
import * as ops from '../ops';
import type { AttentionOptions, AttentionParameters } from './attention';
import { attention, pooledAttention } from './attention';
import type { LayerNormParameters } from './layer_norm';
import { layerNorm } from './layer_norm';
import type { MlpParameters } from './mlp';
import { mlp } from './mlp';

export interface BlockParameters<Leaf> {
  readonly norm1: LayerNormParameters<Leaf>;
  readonly attention: AttentionParameters<Leaf>;
  readonly norm2: LayerNormParameters<Leaf>;
  readonly mlp: MlpParameters<Leaf>;
}

export interface BlockOptions extends AttentionOptions {
  /** Added to the variance in both layer norms. */
  readonly eps: number;
}

/**
 * x (B, T, D) -> (B, T, D); with `segments` (T, D) -> (T, D).
 *
 * Taps: `attention` and `mlp` (each before its residual), `attentionResidual`, `output`.
 */
export function block(
  x: Tensor,
  parameters: BlockParameters<Tensor>,
  options: BlockOptions,
): Tensor {
  const attended = scope('attention', () => {
    const normed = layerNorm(x, parameters.norm1, options);
    return attention(normed, normed, parameters.attention, options);
  });
  return finish(x, attended, parameters, options);
}

/**
 * What {@link block} gives for one token alone: every token is a key and a value, but only this one
 * asks, and their projections fold away. The last block of a tower that is pooled at one token needs no
 * more.
 *
 * @param x - (B, T, D)
 * @param token - index of the token, 0 to T − 1
 * @returns (B, D)
 */
export function blockAtToken(
  x: Tensor,
  token: number,
  parameters: BlockParameters<Tensor>,
  options: BlockOptions,
): Tensor {
  const attended = scope('attention', () => {
    const normed = layerNorm(x, parameters.norm1, options);
    const asking = ops.tokenSelect(normed, token);
    return pooledAttention(asking, normed, parameters.attention, options);
  });
  return finish(ops.tokenSelect(x, token), attended, parameters, options);
}

function finish(
  x: Tensor,
  attended: Tensor,
  parameters: BlockParameters<Tensor>,
  options: BlockOptions,
): Tensor {
  const y = tap('attentionResidual', ops.add(x, tap('attention', attended)));
  const transformed = scope('mlp', () =>
    mlp(layerNorm(y, parameters.norm2, options), parameters.mlp),
  );
  return tap('output', ops.add(y, tap('mlp', transformed)));
}

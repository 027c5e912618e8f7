// Multi-head attention pooling (MAP): one learned query, the probe, attends to all tokens.
//   a = Attention(probe, tokens);   pooled = a + Mlp(LN(a))
// The residual is `a` itself: the probe is never added, and nothing is normalised before attention.
// The probe is the same for every image, so what it asks of a token is one vector per head, and no
// token is projected to keys and values (see pooledAttention).
import type { Tensor } from '../graph';
import { scope } from '../graph';
import * as ops from '../ops';
import type { AttentionParameters } from './attention';
import { pooledAttention } from './attention';
import type { BlockOptions } from './block';
import type { LayerNormParameters } from './layer_norm';
import { layerNorm } from './layer_norm';
import type { MlpParameters } from './mlp';
import { mlp } from './mlp';

export interface MapHeadParameters<Leaf> {
  /** (1, D) */
  readonly probe: Leaf;
  readonly attention: AttentionParameters<Leaf>;
  readonly norm: LayerNormParameters<Leaf>;
  readonly mlp: MlpParameters<Leaf>;
}

/**
 * tokens (B, N, D) -> (B, D). With `keyMask` (B, N) uint8 a masked token has exactly the effect of
 * an absent one; with `segments` (B + 1) int32 tokens are packed, (T, D). The order of tokens has no
 * effect.
 */
export function mapHead(
  tokens: Tensor,
  parameters: MapHeadParameters<Tensor>,
  options: BlockOptions,
): Tensor {
  const attended = scope('attention', () =>
    pooledAttention(parameters.probe, tokens, parameters.attention, options),
  );
  const transformed = scope('mlp', () =>
    mlp(layerNorm(attended, parameters.norm, options), parameters.mlp),
  );
  return ops.add(attended, transformed);
}

// Multi-head attention pooling (MAP): one learned query, the probe, attends to all tokens.
//   a = Attention(probe, tokens);   pooled = a + Mlp(LN(a))
// The residual is `a` itself: the probe is never added, and nothing is normalised before attention.
// The probe is the same for every image, so its projection is computed once and repeated.
import type { Tensor } from '../graph';
import { extent, scope } from '../graph';
import * as ops from '../ops';
import type { AttentionParameters } from './attention';
import { attend } from './attention';
import type { BlockOptions } from './block';
import type { LayerNormParameters } from './layer_norm';
import { layerNorm } from './layer_norm';
import { linear } from './linear';
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
 * an absent one; the order of tokens has none.
 */
export function mapHead(
  tokens: Tensor,
  parameters: MapHeadParameters<Tensor>,
  options: BlockOptions,
): Tensor {
  const batch = extent(tokens, 0);
  const attended = scope('attention', () => {
    const query = ops.repeatRow(linear(parameters.probe, parameters.attention.query), batch);
    return attend(query, tokens, parameters.attention, options); // (B, 1, D)
  });
  const transformed = scope('mlp', () =>
    mlp(layerNorm(attended, parameters.norm, options), parameters.mlp),
  );
  return ops.reshape(ops.add(attended, transformed), [batch, extent(tokens, 2)]);
}

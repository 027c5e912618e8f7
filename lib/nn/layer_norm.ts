import type { Tensor } from '../graph';
import * as ops from '../ops';
import type { OptionalBias } from './linear';

/** Parameters of a layer normalisation over the last axis: weight (D), bias (D). */
export interface LayerNormParameters<Leaf> {
  readonly weight: Leaf;
  readonly bias: Leaf;
}

/** x (…, D) -> (x − mean) / √(variance + eps) · weight + bias, statistics over D. */
export function layerNorm(
  x: Tensor,
  { weight, bias }: OptionalBias<Tensor>,
  options: { readonly eps: number },
): Tensor {
  return ops.layerNorm(x, weight, bias ?? null, options);
}

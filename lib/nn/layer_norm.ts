import type { Tensor } from '../graph';
import * as ops from '../ops';

/** Parameters of a layer normalisation over the last axis: weight (D), bias (D). */
export interface LayerNormParameters<Leaf> {
  readonly weight: Leaf;
  readonly bias: Leaf;
}

/** x (…, D) -> (x − mean) / √(variance + eps) · weight + bias, statistics over D. */
export function layerNorm(
  x: Tensor,
  { weight, bias }: LayerNormParameters<Tensor>,
  options: { readonly eps: number },
): Tensor {
  return ops.layerNorm(x, weight, bias, options);
}

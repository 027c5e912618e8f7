import type { Tensor } from '../graph';
import * as ops from '../ops';

/** Parameters of a linear layer: weight (out, in), bias (out). */
export interface LinearParameters<Leaf> {
  readonly weight: Leaf;
  readonly bias: Leaf;
}

/** Weight and bias of a layer that may go without a bias. */
export interface OptionalBias<Leaf> {
  readonly weight: Leaf;
  readonly bias: Leaf | undefined;
}

/** x (…, in) -> x · weightᵀ + bias (…, out). */
export function linear(x: Tensor, { weight, bias }: OptionalBias<Tensor>): Tensor {
  return ops.linear(x, weight, bias);
}

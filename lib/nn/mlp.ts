import type { Tensor } from '../graph';
import * as ops from '../ops';
import type { LinearParameters, OptionalBias } from './linear';
import { linear } from './linear';

/** Parameters of the two-layer perceptron: fc1 (M, D), fc2 (D, M). */
export interface MlpParameters<Leaf, Layer = LinearParameters<Leaf>> {
  readonly fc1: Layer;
  readonly fc2: Layer;
}

/** x (…, D) -> fc2(gelu(fc1(x))) (…, D), GELU in its tanh form. */
export function mlp(x: Tensor, { fc1, fc2 }: MlpParameters<Tensor, OptionalBias<Tensor>>): Tensor {
  return linear(ops.gelu(linear(x, fc1)), fc2);
}

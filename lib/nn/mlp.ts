import type { Tensor } from '../graph';
import * as ops from '../ops';
import type { LinearParameters } from './linear';
import { linear } from './linear';

/** Parameters of the two-layer perceptron: fc1 (M, D), fc2 (D, M). */
export interface MlpParameters<Leaf> {
  readonly fc1: LinearParameters<Leaf>;
  readonly fc2: LinearParameters<Leaf>;
}

/** x (…, D) -> fc2(gelu(fc1(x))) (…, D), GELU in its tanh form. */
export function mlp(x: Tensor, { fc1, fc2 }: MlpParameters<Tensor>): Tensor {
  return linear(ops.gelu(linear(x, fc1)), fc2);
}

// The projection head of self-distillation: features on the unit sphere and prototypes on it, whose
// products are the logits. Source: DINO vision_transformer.py (DINOHead), DINOv2 layers/dino_head.py.
import type { Tensor } from '../graph';
import { scope } from '../graph';
import * as ops from '../ops';
import type { LinearParameters } from './linear';
import { linear } from './linear';

/** Added to the norm of features and of prototypes. */
const NORM_EPS = 1e-12;

export interface ProjectionHeadParameters<Leaf> {
  /** weight (hidden, D) */
  readonly fc1: LinearParameters<Leaf>;
  /** weight (hidden, hidden) */
  readonly fc2: LinearParameters<Leaf>;
  /** weight (F, hidden) */
  readonly fc3: LinearParameters<Leaf>;
  /** (K, F), of which the direction of each row counts: weight normalisation with a gain of 1. */
  readonly prototypes: Leaf;
}

export interface ProjectionHeadOptions {
  /** GELU with the error function, as PyTorch has it (default), or in its tanh approximation. */
  readonly gelu?: 'erf' | 'tanh';
}

/** x (n, D) -> (n, F), unit rows: three linear layers with GELU between them. */
export function projectionFeatures(
  x: Tensor,
  { fc1, fc2, fc3 }: ProjectionHeadParameters<Tensor>,
  { gelu = 'erf' }: ProjectionHeadOptions = {},
): Tensor {
  return scope('features', () => {
    const hidden = ops.gelu(linear(ops.gelu(linear(x, fc1), gelu), fc2), gelu);
    return ops.l2Normalize(linear(hidden, fc3), { eps: NORM_EPS });
  });
}

/** The prototypes (K, F) at unit length. */
export function unitPrototypes({ prototypes }: ProjectionHeadParameters<Tensor>): Tensor {
  return scope('prototypes', () => ops.l2Normalize(prototypes, { eps: NORM_EPS }));
}

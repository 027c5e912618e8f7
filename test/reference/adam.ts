// Adam with big_vision's decoupled weight decay: the decay is not multiplied by the learning rate,
// and the schedule multiplies both.
import type { NdArray } from './nd_array';
import { inner, map, zip } from './nd_array';

/** Hyper-parameters of one update of one parameter. */
export interface AdamOptions {
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** 0 for a parameter that is not decayed. */
  readonly weightDecay: number;
  /** Global norm to which gradients are clipped; 0 or less means no clipping. */
  readonly clipNorm: number;
}

/** A parameter and its two moments. */
export interface AdamState {
  readonly param: NdArray;
  readonly m: NdArray;
  readonly v: NdArray;
}

/**
 * g ← grad min(1, clip/norm); m ← β1 m + (1−β1) g; v ← β2 v + (1−β2) g²;
 * update = multiplier (lr (m/c1) / (√(v/c2) + eps) + weightDecay θ); θ ← θ − update. Nothing changes
 * where the norm is not finite.
 */
export function adamUpdate(
  { param, m, v }: AdamState,
  grad: NdArray,
  gradNorm: number,
  { multiplier, c1, c2 }: { multiplier: number; c1: number; c2: number },
  { learningRate, beta1, beta2, eps, weightDecay, clipNorm }: AdamOptions,
): AdamState & { updateSquares: number; paramSquares: number } {
  if (!Number.isFinite(gradNorm)) {
    return { param, m, v, updateSquares: 0, paramSquares: inner(param, param) };
  }
  const clip = clipNorm > 0 ? Math.min(1, clipNorm / gradNorm) : 1;
  const g = map(grad, (value) => value * clip);
  const nextM = zip(m, g, (moment, value) => beta1 * moment + (1 - beta1) * value);
  const nextV = zip(v, g, (moment, value) => beta2 * moment + (1 - beta2) * value * value);
  const direction = zip(
    nextM,
    nextV,
    (first, second) => first / c1 / (Math.sqrt(second / c2) + eps),
  );
  const update = zip(
    direction,
    param,
    (u, theta) => multiplier * (learningRate * u + weightDecay * theta),
  );
  const next = zip(param, update, (theta, u) => theta - u);
  return {
    param: next,
    m: nextM,
    v: nextV,
    updateSquares: inner(update, update),
    paramSquares: inner(next, next),
  };
}

/** Cosine with linear warm-up, no floor: ½ (1 + cos(π progress)) min(1, step/warmup); `step` starts at 0. */
export function cosineSchedule(step: number, total: number, warmup: number): number {
  const progress = Math.min(Math.max((step - warmup) / (total - warmup), 0), 1);
  return 0.5 * (1 + Math.cos(Math.PI * progress)) * Math.min(1, step / warmup);
}

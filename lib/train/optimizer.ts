// Adam over a tree of parameters: clip by the global norm, update in place, measure the norms.
import { SiglipError } from '../errors';
import type { MapTree, Spec, Tensor } from '../graph';
import { flatten, mapTree } from '../graph';
import type { AdamConstants } from '../ops';
import { adam, globalNorm, rootSum } from '../ops';

/**
 * Hyper-parameters of the update. {@link defaultOptimizer} holds SigLIP 2's (arXiv 2502.14786 §2.1;
 * big_vision optax.py).
 */
export interface OptimizerConfig extends AdamConstants {
  /**
   * Factor on the learning rate by parameter path; the longest prefix of the path counts. Default
   * none. Small runs gain from `{ logitScale: 5, logitBias: 5 }`.
   */
  readonly learningRateFactors: Readonly<Record<string, number>>;
}

/**
 * β2 is 0.95: 0.999 is unstable for large batches (SigLIP, arXiv 2303.15343 §4.5). The decay of 1e-4
 * is relative to the schedule, which is AdamW's 0.1 at this learning rate.
 */
export const defaultOptimizer: OptimizerConfig = {
  learningRate: 1e-3,
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  weightDecay: 1e-4,
  clipNorm: 1,
  learningRateFactors: {},
};

/** First and second moments, each a tree like the parameters. */
export interface OptimizerState<T> {
  readonly m: T;
  readonly v: T;
}

/** What one update gives. */
export interface OptimizerUpdate<T> {
  readonly parameters: T;
  readonly state: OptimizerState<T>;
  /** Global norm of the gradient before clipping, (1). */
  readonly gradientNorm: Tensor;
  /** Global norm of what was subtracted from the parameters, (1). */
  readonly updateNorm: Tensor;
  /** Global norm of the parameters after the update, (1). */
  readonly parameterNorm: Tensor;
}

/**
 * The host's part of a step: [schedule multiplier, 1 − β1^k, 1 − β2^k] for the update of the given
 * zero-based step, k = step + 1.
 */
export function scheduleInput(
  multiplier: number,
  step: number,
  config: OptimizerConfig,
): Float32Array {
  const k = step + 1;
  return Float32Array.of(multiplier, 1 - config.beta1 ** k, 1 - config.beta2 ** k);
}

/**
 * Updates every parameter of a tree in place (inside a trace).
 *
 * @param parameters - the tree; its arrays must be donated to the program.
 * @param gradients - a tree of the same form.
 * @param state - the moments, donated as well.
 * @param schedule - (3), see {@link scheduleInput}.
 * @param decays - whether weight decay applies to the parameter of a path.
 * @param gradientNorm - (1), by which to clip; default the norm of `gradients`. Where they are a part
 * of the model's, that of the whole.
 */
export function updateParameters<T>(
  parameters: T,
  gradients: MapTree<T, Tensor, Tensor>,
  state: OptimizerState<T>,
  schedule: Tensor,
  config: OptimizerConfig,
  decays: (path: string) => boolean,
  gradientNorm?: Tensor,
): OptimizerUpdate<MapTree<T, Tensor, Tensor>> {
  const grads = byPath(gradients);
  const ms = byPath(state.m);
  const vs = byPath(state.v);
  const gradNorm = gradientNorm ?? globalNorm([...grads.values()]);
  const newM = new Map<string, Tensor>();
  const newV = new Map<string, Tensor>();
  const updateSquares: Tensor[] = [];
  const paramSquares: Tensor[] = [];
  const updated = mapTree<T, Tensor, Tensor>(parameters, (param, path) => {
    const result = adam(
      {
        param,
        grad: at(grads, path),
        m: at(ms, path),
        v: at(vs, path),
        gradNorm,
        schedule,
      },
      {
        learningRate: config.learningRate * factorOf(path, config.learningRateFactors),
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.eps,
        weightDecay: decays(path) ? config.weightDecay : 0,
        clipNorm: config.clipNorm,
      },
    );
    newM.set(path, result.newM);
    newV.set(path, result.newV);
    updateSquares.push(result.updateSquares);
    paramSquares.push(result.paramSquares);
    return result.newParam;
  });
  return {
    parameters: updated,
    state: {
      m: mapTree<T, Tensor, Tensor>(parameters, (_, path) => at(newM, path)),
      v: mapTree<T, Tensor, Tensor>(parameters, (_, path) => at(newV, path)),
    },
    gradientNorm: gradNorm,
    updateNorm: rootSum(updateSquares),
    parameterNorm: rootSum(paramSquares),
  };
}

function factorOf(path: string, factors: Readonly<Record<string, number>>): number {
  const matching = Object.keys(factors).filter(
    (prefix) => path === prefix || path.startsWith(`${prefix}.`),
  );
  const longest = matching.sort((a, b) => b.length - a.length).at(0);
  return longest === undefined ? 1 : (factors[longest] ?? 1);
}

function byPath(tree: unknown): Map<string, Tensor> {
  return new Map(flatten(tree).map(({ path, leaf }) => [path, leaf as Tensor]));
}

function at(map: ReadonlyMap<string, Tensor>, path: string): Tensor {
  const tensor = map.get(path);
  if (tensor === undefined)
    throw new SiglipError(
      'ERR_ARGUMENT',
      `updateParameters: trees must have one form, got none at ${path}`,
    );
  return tensor;
}

/** Specs of the moments for a tree of parameter specs. */
export function stateSpecs<T>(parameters: T): OptimizerState<MapTree<T, Spec, Spec>> {
  const same = mapTree<T, Spec, Spec>(parameters, (spec) => spec);
  return { m: same, v: same };
}

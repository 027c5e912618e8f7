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

/** The host's part of an update, (3) each; see {@link scheduleInput}. */
export interface Schedules {
  /** Of all parameters but those below. */
  readonly all: Tensor;
  /** By path, or beginning of a path: of parameters that entered later; the longest counts. */
  readonly entered: Readonly<Record<string, Tensor>>;
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
 * The host's part of a step: [schedule multiplier, 1 − β1^k, 1 − β2^k] for the k-th update, k from 1.
 *
 * @param step - updates before this one, counted from where the moments were zero. Of parameters that
 *   entered later that is not where the run began: with the common count their first updates would be
 *   0.447 of what they should be at β2 = 0.95. The two moments may have begun at different steps.
 */
export function scheduleInput(
  multiplier: number,
  step: number | { readonly m: number; readonly v: number },
  config: OptimizerConfig,
): Float32Array {
  const { m, v } = typeof step === 'number' ? { m: step, v: step } : step;
  return Float32Array.of(multiplier, 1 - config.beta1 ** (m + 1), 1 - config.beta2 ** (v + 1));
}

/**
 * Updates every parameter of a tree in place (inside a trace).
 *
 * @param parameters - the tree; its arrays must be donated to the program.
 * @param gradients - a tree of the same form.
 * @param state - the moments, donated as well.
 * @param schedules - see {@link scheduleInput}.
 * @param decays - whether weight decay applies to the parameter of a path.
 * @param gradientNorm - (1), by which to clip; default the norm of `gradients`. Where they are a part
 * of the model's, that of the whole.
 */
export function updateParameters<T>(
  parameters: T,
  gradients: MapTree<T, Tensor, Tensor>,
  state: OptimizerState<T>,
  schedules: Schedules,
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
        schedule: ofPath(path, schedules.entered) ?? schedules.all,
      },
      {
        learningRate: config.learningRate * (ofPath(path, config.learningRateFactors) ?? 1),
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

/** Of the entries whose key is the path or a beginning of it, the one with the longest. */
function ofPath<T>(path: string, entries: Readonly<Record<string, T>>): T | undefined {
  const matching = Object.keys(entries).filter(
    (prefix) => path === prefix || path.startsWith(`${prefix}.`),
  );
  const longest = matching.sort((a, b) => b.length - a.length).at(0);
  return longest === undefined ? undefined : entries[longest];
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

// Training steps of the two towers in float64: the trainer the product is compared with.
import type { AdamState } from './adam';
import { adamUpdate, cosineSchedule } from './adam';
import type { TwoTowers, TwoTowersConfig } from './model';
import { runTwoTowers } from './model';
import type { NdArray } from './nd_array';
import { item, zeros } from './nd_array';
import { globalNorm } from './reduce';
import { leaves, mapTree } from './tree';

/** Hyper-parameters of a run. */
export interface Recipe {
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  readonly clipNorm: number;
  readonly totalSteps: number;
  readonly warmupSteps: number;
  /** Whether the parameter of this path is decayed. */
  readonly decays: (path: string) => boolean;
}

/** One line of the record of a run. */
export interface StepRecord {
  readonly loss: number;
  readonly multiplier: number;
  readonly gradientNorm: number;
  readonly updateNorm: number;
  readonly parameterNorm: number;
  readonly gradientNorms: ReadonlyMap<string, number>;
}

/** The state of a run: parameters and moments by path. */
export class Trainer {
  private readonly states: Map<string, AdamState>;
  private step = 0;

  constructor(
    private model: TwoTowers,
    private readonly config: TwoTowersConfig,
    private readonly recipe: Recipe,
  ) {
    this.states = new Map(
      leaves(model).map(([path, param]) => [
        path,
        { param, m: zeros(param.shape), v: zeros(param.shape) },
      ]),
    );
  }

  get parameters(): TwoTowers {
    return this.model;
  }

  state(path: string): AdamState {
    const state = this.states.get(path);
    if (state === undefined)
      throw new RangeError(`Trainer: path must name a parameter, got ${path}`);
    return state;
  }

  /** images (B, 3, height, width), ids (B, T): one update. */
  update(images: NdArray, ids: NdArray): StepRecord {
    const { recipe } = this;
    const run = runTwoTowers(this.model, images, ids, this.config);
    const gradients = new Map(leaves(run.gradients));
    const gradientNorm = item(globalNorm([...gradients.values()]));
    const multiplier = cosineSchedule(this.step, recipe.totalSteps, recipe.warmupSteps);
    this.step++;
    const schedule = {
      multiplier,
      c1: 1 - recipe.beta1 ** this.step,
      c2: 1 - recipe.beta2 ** this.step,
    };
    let updateSquares = 0;
    let paramSquares = 0;
    for (const [path, gradient] of gradients) {
      const next = adamUpdate(this.state(path), gradient, gradientNorm, schedule, {
        ...recipe,
        weightDecay: recipe.decays(path) ? recipe.weightDecay : 0,
      });
      this.states.set(path, next);
      updateSquares += next.updateSquares;
      paramSquares += next.paramSquares;
    }
    this.model = mapTree(this.model, (_, path) => this.state(path).param);
    return {
      loss: item(run.loss),
      multiplier,
      gradientNorm,
      updateNorm: Math.sqrt(updateSquares),
      parameterNorm: Math.sqrt(paramSquares),
      gradientNorms: new Map([...gradients].map(([path, g]) => [path, item(globalNorm([g]))])),
    };
  }
}

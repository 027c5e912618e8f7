// One training step as one program: forward, loss, backward, clip and update. The step is a function
// of (batch, model, loss); it knows neither towers nor data.
import type { Device, DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type {
  CompileOptions,
  ComputeDType,
  MapTree,
  Program,
  ProgramMemory,
  RunInput,
  Spec,
  Tensor,
} from '../graph';
import { compile, flatten, float32, gradient, mapTree, scope } from '../graph';
import { rewritesFor } from '../nn';
import { accumulate, add, scaleBy } from '../ops';
import type { OptimizerConfig, OptimizerState, Schedules } from './optimizer';
import { stateSpecs, updateParameters } from './optimizer';

/** What a loss is made of, for one micro-batch. */
export interface Evaluation<S> {
  /** What is minimised, (1). */
  readonly loss: Tensor;
  /** Its terms by name, (1) each, before they are weighted; for the log. */
  readonly terms?: Readonly<Record<string, Tensor>>;
  /** What the averages are updated by; the mean over micro-batches reaches {@link StepConfig.average}. */
  readonly statistics?: S;
}

/**
 * What a step is made of. `P`, `A` and `B` are trees of specs: the parameters, what follows them without
 * a gradient, and one micro-batch.
 */
export interface StepConfig<P, A, B> {
  readonly name: string;
  readonly parameters: P;
  /** Moving averages that are kept up in place after the update: a teacher, its centres. */
  readonly averages: A;
  readonly batch: B;
  /** Micro-batches of one step, their losses and gradients averaged. Default 1. */
  readonly microBatches?: number;
  readonly optimizer: OptimizerConfig;
  /** Where the step runs and its parameters and state are. Default `'cpu'`. */
  readonly device?: Device | undefined;
  /**
   * In what activations are held and multiplied. Default `'float32'`. Parameters, their gradients,
   * the loss and the optimizer are float32 in either; `'bfloat16'` needs a CUDA device.
   */
  readonly precision?: ComputeDType | undefined;
  /**
   * Paths, or beginnings of paths, of parameters whose updates are counted apart because they entered
   * later than the others; see {@link StepInputs.entered}.
   */
  readonly entered?: readonly string[];
  /** Whether weight decay applies to the parameter of a path. */
  decays(path: string): boolean;
  /** The loss of a micro-batch. */
  evaluate(
    parameters: MapTree<P, Spec, Tensor>,
    batch: MapTree<B, Spec, Tensor>,
    averages: MapTree<A, Spec, Tensor>,
  ): Evaluation<unknown>;
  /** The averages after the update, in the memory of the old ones. Default: as they are. */
  average?(
    averages: MapTree<A, Spec, Tensor>,
    parameters: MapTree<P, Spec, Tensor>,
    statistics: unknown,
  ): MapTree<A, Spec, Tensor>;
}

/** Inputs of a step; parameters, state and averages are updated in place. */
export interface StepInputs<P, A, B> {
  readonly parameters: P;
  readonly state: OptimizerState<P>;
  readonly averages: A;
  /** (3), see scheduleInput. */
  readonly schedule: Spec;
  /** (3) for each of {@link StepConfig.entered}, counted from the step at which they entered. */
  readonly entered: Readonly<Record<string, Spec>>;
  readonly batches: readonly B[];
}

/** Scalars of a step, (1) each. */
export interface StepScalars<Leaf> {
  readonly loss: Leaf;
  readonly terms: Readonly<Record<string, Leaf>>;
  readonly gradientNorm: Leaf;
  readonly updateNorm: Leaf;
  readonly parameterNorm: Leaf;
}

export interface StepOutputs<P, A> extends StepScalars<Tensor> {
  readonly parameters: P;
  readonly state: OptimizerState<P>;
  readonly averages: A;
}

/** A compiled step, of one program or of several. */
export interface Step<P, A, B> {
  /** What a step needs, in bytes. */
  readonly memory: ProgramMemory;
  /** Runs one step; parameters, state and averages are updated in place, the scalars are new arrays. */
  run(
    inputs: MapTree<StepInputs<P, A, B>, Spec, RunInput>,
  ): Promise<
    MapTree<StepOutputs<MapTree<P, Spec, Tensor>, MapTree<A, Spec, Tensor>>, Tensor, DeviceArray>
  >;
  /** Gives back what it holds. Idempotent. */
  dispose(): void;
}

/** A step of one program. */
export type StepProgram<P, A, B> = Program<
  StepInputs<P, A, B>,
  StepOutputs<MapTree<P, Spec, Tensor>, MapTree<A, Spec, Tensor>>
>;

/** A step as compile() takes it. */
export interface StepFunction<P, A, B> {
  readonly step: (
    inputs: MapTree<StepInputs<P, A, B>, Spec, Tensor>,
  ) => StepOutputs<MapTree<P, Spec, Tensor>, MapTree<A, Spec, Tensor>>;
  readonly specs: StepInputs<P, A, B>;
  readonly options: CompileOptions<object>;
}

/**
 * Compiles a training step.
 *
 * With more than one micro-batch, the step's loss is the mean of the micro-batches' losses, each
 * over its own pairs (negatives are not shared between micro-batches); activations of only one
 * exist at a time.
 *
 * @throws ERR_ARGUMENT for a number of micro-batches below one; what tracing the loss throws.
 */
export function compileStep<P extends object, A extends object, B extends object>(
  config: StepConfig<P, A, B>,
): StepProgram<P, A, B> {
  const { step, specs, options } = stepFunction(config);
  return compile<
    StepInputs<P, A, B>,
    StepOutputs<MapTree<P, Spec, Tensor>, MapTree<A, Spec, Tensor>>
  >(config.name, step, specs, { ...options, rewrites: rewritesFor(options.device) });
}

/** What {@link compileStep} compiles. */
export function stepFunction<P extends object, A extends object, B extends object>(
  config: StepConfig<P, A, B>,
): StepFunction<P, A, B> {
  const count = config.microBatches ?? 1;
  if (!Number.isSafeInteger(count) || count < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `compileStep: microBatches must be a positive integer, got ${String(count)}`,
    );
  }
  const specs: StepInputs<P, A, B> = {
    parameters: config.parameters,
    state: stateSpecs(config.parameters) as OptimizerState<P>,
    averages: config.averages,
    schedule: float32(3),
    entered: enteredSpecs(config.entered),
    batches: Array.from({ length: count }, () => config.batch),
  };
  const step = (
    inputs: MapTree<StepInputs<P, A, B>, Spec, Tensor>,
  ): StepOutputs<MapTree<P, Spec, Tensor>, MapTree<A, Spec, Tensor>> => {
    const parameters = inputs.parameters;
    const averages = inputs.averages;
    const state = inputs.state as OptimizerState<MapTree<P, Spec, Tensor>>;
    const schedules = { all: inputs.schedule, entered: inputs.entered };
    const batches = inputs.batches as readonly MapTree<B, Spec, Tensor>[];
    const { gradients, loss, terms, statistics } = meanGradient(parameters, batches, (p, b) =>
      config.evaluate(p, b, averages),
    );
    const update = updateParameters(
      parameters,
      gradients,
      state,
      schedules as Schedules,
      config.optimizer,
      (path) => config.decays(path),
    );
    const { gradientNorm, updateNorm, parameterNorm } = update;
    const updated = update.parameters as MapTree<P, Spec, Tensor>;
    return {
      loss,
      terms,
      gradientNorm,
      updateNorm,
      parameterNorm,
      parameters: updated,
      state: update.state as OptimizerState<MapTree<P, Spec, Tensor>>,
      averages: config.average?.(averages, updated, statistics) ?? averages,
    };
  };
  return {
    step,
    specs,
    options: {
      donate: ['parameters', 'state', ...(flatten(config.averages).length > 0 ? ['averages'] : [])],
      device: config.device ?? 'cpu',
      precision: config.precision ?? 'float32',
    },
  };
}

/** See {@link StepInputs.entered}. */
export function enteredSpecs(prefixes: readonly string[] = []): Record<string, Spec> {
  return Object.fromEntries(prefixes.map((prefix) => [prefix, float32(3)]));
}

interface MeanGradient<P> {
  readonly gradients: MapTree<P, Tensor, Tensor>;
  readonly loss: Tensor;
  readonly terms: Readonly<Record<string, Tensor>>;
  readonly statistics: unknown;
}

function meanGradient<P, B>(
  parameters: P,
  batches: readonly B[],
  evaluate: (parameters: P, batch: B) => Evaluation<unknown>,
): MeanGradient<P> {
  let mean: MeanGradient<P> | undefined;
  for (const [i, batch] of batches.entries()) {
    const whole =
      batches.length === 1
        ? evaluate(parameters, batch)
        : scope(`batches.${String(i)}`, () => evaluate(parameters, batch));
    const share = <T>(tree: T): T =>
      batches.length === 1 ? tree : mapLeaves(tree, (x) => scaleBy(x, 1 / batches.length));
    const loss = share(whole.loss);
    const gradients = gradient(loss, parameters);
    const terms = share(whole.terms ?? {});
    const statistics = share(whole.statistics);
    mean =
      mean === undefined
        ? { gradients, loss, terms, statistics }
        : {
            gradients: sumTrees(mean.gradients, gradients, accumulate),
            loss: add(mean.loss, loss),
            terms: sumTrees(mean.terms, terms, add),
            statistics: sumTrees(mean.statistics, statistics, add),
          };
  }
  if (mean === undefined)
    throw new SiglipError('ERR_ARGUMENT', 'compileStep: batches must not be empty');
  return mean;
}

/**
 * Leaf by leaf. `accumulate` adds in the memory of the sum: the gradients of a micro-batch live only until
 * then.
 */
export function sumTrees<T>(sum: T, more: T, plus: (sum: Tensor, term: Tensor) => Tensor): T {
  const terms = flatten(more).map(({ leaf }) => leaf as Tensor);
  let next = 0;
  return mapLeaves(sum, (x) => {
    const term = terms[next++];
    return plus(x, term);
  });
}

function mapLeaves<T>(tree: T, replace: (x: Tensor) => Tensor): T {
  return mapTree<T, Tensor, Tensor>(tree, replace) as T;
}

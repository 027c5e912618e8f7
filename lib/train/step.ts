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
import { accumulate, add, scaleBy } from '../ops';
import type { OptimizerConfig, OptimizerState } from './optimizer';
import { stateSpecs, updateParameters } from './optimizer';

/** What a step is made of. `P` and `B` are trees of specs: the parameters and one micro-batch. */
export interface StepConfig<P, B> {
  readonly name: string;
  readonly parameters: P;
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
  /** Whether weight decay applies to the parameter of a path. */
  decays(path: string): boolean;
  /** The loss of a micro-batch, (1). */
  loss(parameters: MapTree<P, Spec, Tensor>, batch: MapTree<B, Spec, Tensor>): Tensor;
}

/** Inputs of a step; parameters and state are updated in place. */
export interface StepInputs<P, B> {
  readonly parameters: P;
  readonly state: OptimizerState<P>;
  readonly schedule: Spec;
  readonly batches: readonly B[];
}

/** Scalars of a step, (1) each. */
export interface StepScalars<Leaf> {
  readonly loss: Leaf;
  readonly gradientNorm: Leaf;
  readonly updateNorm: Leaf;
  readonly parameterNorm: Leaf;
}

export interface StepOutputs<P> extends StepScalars<Tensor> {
  readonly parameters: P;
  readonly state: OptimizerState<P>;
}

/** A compiled step, of one program or of several. */
export interface Step<P, B> {
  /** What a step needs, in bytes. */
  readonly memory: ProgramMemory;
  /** Runs one step; parameters and state are updated in place, the scalars are new arrays. */
  run(
    inputs: MapTree<StepInputs<P, B>, Spec, RunInput>,
  ): Promise<MapTree<StepOutputs<MapTree<P, Spec, Tensor>>, Tensor, DeviceArray>>;
  /** Gives back what it holds. Idempotent. */
  dispose(): void;
}

/** A step as compile() takes it. */
export interface StepFunction<P, B> {
  readonly step: (
    inputs: MapTree<StepInputs<P, B>, Spec, Tensor>,
  ) => StepOutputs<MapTree<P, Spec, Tensor>>;
  readonly specs: StepInputs<P, B>;
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
export function compileStep<P extends object, B extends object>(
  config: StepConfig<P, B>,
): Program<StepInputs<P, B>, StepOutputs<MapTree<P, Spec, Tensor>>> {
  const { step, specs, options } = stepFunction(config);
  return compile<StepInputs<P, B>, StepOutputs<MapTree<P, Spec, Tensor>>>(
    config.name,
    step,
    specs,
    options,
  );
}

/** What {@link compileStep} compiles. */
export function stepFunction<P extends object, B extends object>(
  config: StepConfig<P, B>,
): StepFunction<P, B> {
  const count = config.microBatches ?? 1;
  if (!Number.isSafeInteger(count) || count < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `compileStep: microBatches must be a positive integer, got ${String(count)}`,
    );
  }
  const specs: StepInputs<P, B> = {
    parameters: config.parameters,
    state: stateSpecs(config.parameters) as OptimizerState<P>,
    schedule: float32(3),
    batches: Array.from({ length: count }, () => config.batch),
  };
  const step = (
    inputs: MapTree<StepInputs<P, B>, Spec, Tensor>,
  ): StepOutputs<MapTree<P, Spec, Tensor>> => {
    const parameters = inputs.parameters;
    const state = inputs.state as OptimizerState<MapTree<P, Spec, Tensor>>;
    const schedule = inputs.schedule;
    const batches = inputs.batches as readonly MapTree<B, Spec, Tensor>[];
    const { loss, gradients } = meanGradient(parameters, batches, (p, b) => config.loss(p, b));
    const update = updateParameters(
      parameters,
      gradients,
      state,
      schedule,
      config.optimizer,
      (path) => config.decays(path),
    );
    const { gradientNorm, updateNorm, parameterNorm } = update;
    return {
      loss,
      gradientNorm,
      updateNorm,
      parameterNorm,
      parameters: update.parameters as MapTree<P, Spec, Tensor>,
      state: update.state as OptimizerState<MapTree<P, Spec, Tensor>>,
    };
  };
  return {
    step,
    specs,
    options: {
      donate: ['parameters', 'state'],
      device: config.device ?? 'cpu',
      precision: config.precision ?? 'float32',
    },
  };
}

function meanGradient<P, B>(
  parameters: P,
  batches: readonly B[],
  lossOf: (parameters: P, batch: B) => Tensor,
): { loss: Tensor; gradients: MapTree<P, Tensor, Tensor> } {
  let mean: { loss: Tensor; gradients: MapTree<P, Tensor, Tensor> } | undefined;
  for (const [i, batch] of batches.entries()) {
    const whole =
      batches.length === 1
        ? lossOf(parameters, batch)
        : scope(`batches.${String(i)}`, () => lossOf(parameters, batch));
    const loss = batches.length === 1 ? whole : scaleBy(whole, 1 / batches.length);
    const gradients = gradient(loss, parameters);
    mean =
      mean === undefined
        ? { loss, gradients }
        : { loss: add(mean.loss, loss), gradients: addTrees(mean.gradients, gradients) };
  }
  if (mean === undefined)
    throw new SiglipError('ERR_ARGUMENT', 'compileStep: batches must not be empty');
  return mean;
}

/** `sum` + `more` in the memory of `sum`: the gradients of a micro-batch live only until they are added. */
export function addTrees<T>(sum: T, more: T): T {
  const terms = flatten(more).map(({ leaf }) => leaf as Tensor);
  let next = 0;
  return mapLeaves(sum, (x) => {
    const term = terms[next++];
    return accumulate(x, term);
  });
}

function mapLeaves<T>(tree: T, replace: (x: Tensor) => Tensor): T {
  return mapTree<T, Tensor, Tensor>(tree, replace) as T;
}

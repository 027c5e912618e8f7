// A training step whose loss takes a larger batch than the towers can hold the activations of
// (gradient caching, GradCache, arXiv 2101.06983):
//
//   1. embed every micro-batch, keeping nothing but its embeddings;
//   2. the loss of the whole batch, all its pairs, and the gradient G of every embedding;
//   3. every micro-batch again, forward and backward from its rows of G and from the losses that it has by
//      itself, gradients summed;
//   4. one update.
//
// The sum over micro-batches of (∂ embeddings / ∂ parameters)ᵀ G is the gradient of the unsplit step.
// Four small programs are run from here, so that neither memory nor the time to compile grows with the
// number of micro-batches; embeddings and G, the only things that do, wait in memory of the host.
import { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { HostArray, MapTree, Program, ProgramMemory, RunInput, Spec, Tensor } from '../graph';
import { compile, disposeArrays, fill, flatten, float32, gradient, pullback } from '../graph';
import type {
  Averages,
  Embeddings,
  ObjectiveStep,
  StepBatch,
  TrainedParameters,
} from './objective';
import { contrastOf } from './objective';
import type { Schedules } from './optimizer';
import { stateSpecs, updateParameters } from './optimizer';
import type { Step, StepConfig, StepInputs, StepOutputs } from './step';
import { enteredSpecs, sumTrees } from './step';
import { rewritesFor } from '../nn';
import { accumulate } from '../ops';

type Parameters<Leaf> = TrainedParameters<Leaf>;
type Inputs = StepInputs<Parameters<Spec>, Averages<Spec>, StepBatch<Spec>>;
type Outputs = StepOutputs<Parameters<Tensor>, Averages<Tensor>>;

/** What a cached step is made of: the step of one micro-batch, and how many there are. */
export interface CachedStepConfig
  extends
    ObjectiveStep,
    Pick<
      StepConfig<Parameters<Spec>, Averages<Spec>, StepBatch<Spec>>,
      'optimizer' | 'device' | 'precision' | 'entered'
    > {
  /** Micro-batches of a step; the contrast takes all their pairs together. */
  readonly microBatches: number;
}

/** What a cached step needs, in bytes. */
export interface CachedStepMemory extends ProgramMemory {
  /** On the host: embeddings of the whole batch and their gradients. */
  readonly hostBytes: number;
  /** On the device at the peak of the towers and of the update, for any number of micro-batches. */
  readonly towerBytes: number;
  /** On the device at the peak of the loss, linear in the whole batch. */
  readonly lossBytes: number;
}

interface EmbedInputs {
  readonly parameters: Parameters<Spec>;
  readonly batch: StepBatch<Spec>;
}

interface LossInputs {
  readonly parameters: Parameters<Spec>;
  readonly embeddings: Embeddings<Spec>;
}

interface LossOutputs {
  /** What the contrast adds to the loss, and the contrast itself. */
  readonly weighted: Tensor;
  readonly loss: Tensor;
  readonly embeddings: Embeddings<Tensor>;
  /** The contrast's own gradient of the parameters: where the sum over micro-batches starts. */
  readonly gradients: Parameters<Tensor>;
}

interface BackwardInputs extends EmbedInputs {
  readonly embeddings: Embeddings<Spec>;
  readonly gradients: Parameters<Spec>;
}

interface BackwardOutputs {
  /** The losses that the micro-batch has by itself: their weighted sum, and each. */
  readonly own: readonly Tensor[];
  readonly terms: Readonly<Record<string, Tensor>>;
  readonly gradients: Parameters<Tensor>;
}

interface UpdateInputs extends Pick<Inputs, 'parameters' | 'state' | 'schedule' | 'entered'> {
  readonly gradients: Parameters<Spec>;
}

type UpdateOutputs = Pick<
  Outputs,
  'gradientNorm' | 'updateNorm' | 'parameterNorm' | 'parameters' | 'state'
>;

/** The four parts as compile() takes them. */
export interface CachedStepFunctions {
  readonly embed: (inputs: MapTree<EmbedInputs, Spec, Tensor>) => Embeddings<Tensor>;
  readonly loss: (inputs: MapTree<LossInputs, Spec, Tensor>) => LossOutputs;
  readonly backward: (inputs: MapTree<BackwardInputs, Spec, Tensor>) => BackwardOutputs;
  readonly update: (inputs: MapTree<UpdateInputs, Spec, Tensor>) => UpdateOutputs;
}

/**
 * Compiles a training step over `microBatches` micro-batches whose contrast takes all pairs of all of
 * them; losses that a micro-batch has by itself are averaged. Equal to the unsplit step to rounding, and
 * bit for bit to itself. The towers run forward twice. Until the update at its end a step changes nothing
 * that it was given.
 *
 * @throws ERR_ARGUMENT for a number of micro-batches below one; ERR_CONFIG for an objective without a
 * contrast or with averages; what tracing the parts throws.
 */
export function compileCachedStep(config: CachedStepConfig): CachedStep {
  return new CachedStep(config);
}

/** The parts that {@link compileCachedStep} compiles. */
export function cachedStepFunctions(config: CachedStepConfig): CachedStepFunctions {
  const { microBatches } = config;
  return {
    embed: ({ parameters, batch }) => config.towers(parameters, batch, {}).embeddings,
    loss: ({ parameters, embeddings }) => {
      const contrast = contrastOf(config, embeddings, parameters);
      if (contrast === undefined) {
        throw new SiglipError(
          'ERR_CONFIG',
          `${config.name}: weight of the sigmoid loss must be positive for micro-batches, got 0`,
        );
      }
      const gradients = gradient(contrast.weighted, { embeddings, parameters });
      return { ...contrast, embeddings: gradients.embeddings, gradients: gradients.parameters };
    },
    backward: ({ parameters, batch, embeddings, gradients }) => {
      const { embeddings: own, loss, terms } = config.towers(parameters, batch, {});
      const outputs = [own.images, own.texts];
      const upstream = [embeddings.images, embeddings.texts];
      if (loss !== undefined) {
        outputs.push(loss);
        upstream.push(fill(1 / microBatches, [1]));
      }
      const more = pullback(outputs, upstream, parameters);
      return {
        own: loss === undefined ? [] : [loss],
        terms: terms ?? {},
        gradients: sumTrees(gradients, more, accumulate),
      };
    },
    update: ({ parameters, gradients, state, schedule, entered }) => {
      const schedules: Schedules = { all: schedule, entered };
      const update = updateParameters(
        parameters,
        gradients,
        state,
        schedules,
        config.optimizer,
        (path) => config.decays(path),
      );
      const { gradientNorm, updateNorm, parameterNorm } = update;
      return {
        gradientNorm,
        updateNorm,
        parameterNorm,
        parameters: update.parameters,
        state: update.state,
      };
    },
  };
}

/** A compiled cached step; see {@link compileCachedStep}. */
export class CachedStep implements Step<Parameters<Spec>, Averages<Spec>, StepBatch<Spec>> {
  private readonly embed: Program<EmbedInputs, Embeddings<Tensor>>;
  private readonly loss: Program<LossInputs, LossOutputs>;
  private readonly backward: Program<BackwardInputs, BackwardOutputs>;
  private readonly update: Program<UpdateInputs, UpdateOutputs>;

  constructor(private readonly config: CachedStepConfig) {
    const { name, parameters, batch, embeddings, microBatches, device, precision } = config;
    if (!Number.isSafeInteger(microBatches) || microBatches < 1) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `compileCachedStep: microBatches must be a positive integer, got ${String(microBatches)}`,
      );
    }
    if (flatten(config.averages).length > 0) {
      throw new SiglipError(
        'ERR_CONFIG',
        `${name}: a batch in micro-batches must be without self-distillation, got one with a teacher`,
      );
    }
    const functions = cachedStepFunctions(config);
    const options = {
      device: device ?? 'cpu',
      precision: precision ?? 'float32',
      rewrites: rewritesFor(device),
    } as const;
    const made: { dispose(): void }[] = [];
    const keep = <T extends { dispose(): void }>(program: T): T => {
      made.push(program);
      return program;
    };
    try {
      this.embed = keep(compile(`${name}: embed`, functions.embed, { parameters, batch }, options));
      this.loss = keep(
        compile(
          `${name}: loss`,
          functions.loss,
          { parameters, embeddings: wholeBatch(embeddings, microBatches) },
          options,
        ),
      );
      this.backward = keep(
        compile(
          `${name}: backward`,
          functions.backward,
          { parameters, batch, embeddings, gradients: parameters },
          { ...options, donate: ['gradients'] },
        ),
      );
      this.update = keep(
        compile(
          `${name}: update`,
          functions.update,
          {
            parameters,
            state: stateSpecs(parameters),
            schedule: float32(3),
            entered: enteredSpecs(config.entered),
            gradients: parameters,
          },
          { ...options, donate: ['parameters', 'state'] },
        ),
      );
    } catch (error) {
      for (const program of made) program.dispose();
      throw error;
    }
  }

  /** What a step needs: that of the largest of its parts. */
  get memory(): CachedStepMemory {
    const { parameters, embeddings, microBatches } = this.config;
    // The moments, inputs of the update alone, stay on the device through all parts.
    const moments = 2 * totalBytes(parameters);
    const needs = ({ memory }: { memory: ProgramMemory }, resident: number): ProgramMemory => ({
      ...memory,
      inputBytes: memory.inputBytes + resident,
      peakBytes: memory.peakBytes + resident,
    });
    const larger = (a: ProgramMemory, b: ProgramMemory): ProgramMemory =>
      a.peakBytes >= b.peakBytes ? a : b;
    const loss = needs(this.loss, moments);
    const towers = [needs(this.backward, moments), needs(this.update, 0)].reduce(
      larger,
      needs(this.embed, moments),
    );
    return {
      ...larger(towers, loss),
      hostBytes: 2 * microBatches * totalBytes(embeddings),
      towerBytes: towers.peakBytes,
      lossBytes: loss.peakBytes,
    };
  }

  /**
   * One step; parameters and state are updated in place, the scalars are new arrays.
   *
   * @throws ERR_ARGUMENT for another number of batches; as Program.run().
   */
  async run(
    inputs: MapTree<Inputs, Spec, RunInput>,
  ): Promise<MapTree<Outputs, Tensor, DeviceArray>> {
    const { parameters, state, schedule, entered, batches } = inputs;
    if (batches.length !== this.config.microBatches) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `${this.config.name}: batches must be ${String(this.config.microBatches)}, got ${String(batches.length)}`,
      );
    }
    const embeddings = await this.embedAll(parameters, batches);
    const whole = await this.loss.run({ parameters, embeddings });
    const { gradients } = whole;
    try {
      const upstream = await taken(whole.embeddings);
      const own = await this.accumulate(parameters, batches, upstream, gradients);
      const [weighted, sigmoid] = await Promise.all([number(whole.weighted), number(whole.loss)]);
      const updated = await this.update.run({ parameters, state, schedule, entered, gradients });
      const scalar = (value: number): DeviceArray =>
        DeviceArray.from(Float32Array.of(value), [1], this.config.device ?? 'cpu');
      const terms = { sigmoid: scalar(sigmoid) } as Record<string, DeviceArray>;
      for (const [name, value] of own.terms) terms[name] = scalar(value);
      return { loss: scalar(weighted + own.loss), terms, ...updated, averages: {} };
    } finally {
      disposeArrays({ gradients, weighted: whole.weighted, loss: whole.loss });
    }
  }

  /** Frees the programs. Idempotent. */
  dispose(): void {
    for (const program of [this.embed, this.loss, this.backward, this.update]) program.dispose();
  }

  private async embedAll(
    parameters: Parameters<RunInput>,
    batches: readonly StepBatch<RunInput>[],
  ): Promise<Embeddings<Float32Array>> {
    const { images, texts } = wholeBatch(this.config.embeddings, batches.length);
    const whole = { images: hostArray(images), texts: hostArray(texts) };
    for (const [i, batch] of batches.entries()) {
      const part = await taken(await this.embed.run({ parameters, batch }));
      whole.images.set(part.images, i * part.images.length);
      whole.texts.set(part.texts, i * part.texts.length);
    }
    return whole;
  }

  // Gives the means of what the micro-batches lose by themselves.
  private async accumulate(
    parameters: Parameters<RunInput>,
    batches: readonly StepBatch<RunInput>[],
    upstream: Embeddings<Float32Array>,
    gradients: Parameters<DeviceArray>,
  ): Promise<{ loss: number; terms: Map<string, number> }> {
    const sum = { loss: 0, terms: new Map<string, number>() };
    for (const [i, batch] of batches.entries()) {
      const embeddings = {
        images: rowsOf(upstream.images, i, batches.length),
        texts: rowsOf(upstream.texts, i, batches.length),
      };
      const { own, terms } = await this.backward.run({ parameters, batch, embeddings, gradients });
      for (const array of own) sum.loss += (await number(array)) / batches.length;
      for (const [name, array] of Object.entries(terms)) {
        const share = (await number(array)) / batches.length;
        sum.terms.set(name, (sum.terms.get(name) ?? 0) + share);
      }
      disposeArrays({ own, terms });
    }
    return sum;
  }
}

function wholeBatch({ images, texts }: Embeddings<Spec>, microBatches: number): Embeddings<Spec> {
  const whole = ({ shape: [rows, ...rest] }: Spec): Spec => float32(rows * microBatches, ...rest);
  return { images: whole(images), texts: whole(texts) };
}

function hostArray({ shape }: Spec): Float32Array {
  return new Float32Array(shape.reduce((product, n) => product * n, 1));
}

function rowsOf(whole: Float32Array, part: number, parts: number): Float32Array {
  const length = whole.length / parts;
  return whole.subarray(part * length, (part + 1) * length);
}

async function number(array: DeviceArray): Promise<number> {
  const values: HostArray = await array.read();
  return values[0];
}

// On the host; the arrays of the device are given back.
async function taken(embeddings: Embeddings<DeviceArray>): Promise<Embeddings<Float32Array>> {
  try {
    const [images, texts] = await Promise.all([embeddings.images.read(), embeddings.texts.read()]);
    return { images: images as Float32Array, texts: texts as Float32Array };
  } finally {
    disposeArrays(embeddings);
  }
}

function totalBytes(tree: unknown): number {
  return flatten(tree).reduce(
    (sum, { leaf }) => sum + 4 * (leaf as Spec).shape.reduce((product, n) => product * n, 1),
    0,
  );
}

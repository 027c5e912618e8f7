// A training step whose loss takes a larger batch than the towers can hold the activations of
// (gradient caching, GradCache, arXiv 2101.06983):
//
//   1. embed every micro-batch, keeping nothing but its embeddings;
//   2. the loss of the whole batch, all its pairs, and the gradient G of every embedding;
//   3. every micro-batch again, forward and backward from its rows of G, gradients summed;
//   4. one update.
//
// The sum over micro-batches of (∂ embeddings / ∂ parameters)ᵀ G is the gradient of the unsplit step.
// Four small programs are run from here, so that neither memory nor the time to compile grows with the
// number of micro-batches; embeddings and G, the only things that do, wait in memory of the host.
import type { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { MapTree, Program, ProgramMemory, RunInput, Spec, Tensor } from '../graph';
import { compile, disposeArrays, flatten, float32, gradient, pullback } from '../graph';
import type { OptimizerState } from './optimizer';
import { stateSpecs, updateParameters } from './optimizer';
import type { Step, StepConfig, StepInputs, StepOutputs } from './step';
import { addTrees } from './step';

/** Embeddings of a batch of pairs, (B, E) float32 each. */
export interface Embeddings<Leaf> {
  readonly images: Leaf;
  readonly texts: Leaf;
}

/** What a cached step is made of. `P` and `B` are trees of specs: the parameters and one micro-batch. */
export interface CachedStepConfig<P, B> extends Omit<StepConfig<P, B>, 'loss' | 'microBatches'> {
  /** Micro-batches of a step; the loss takes all their pairs together. */
  readonly microBatches: number;
  /** Embeddings of one micro-batch, (R, E) each. */
  readonly embeddings: Embeddings<Spec>;
  /** Records the towers on a micro-batch. */
  embed(parameters: MapTree<P, Spec, Tensor>, batch: MapTree<B, Spec, Tensor>): Embeddings<Tensor>;
  /** The loss of the whole batch, (1). */
  loss(embeddings: Embeddings<Tensor>, parameters: MapTree<P, Spec, Tensor>): Tensor;
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

interface EmbedInputs<P, B> {
  readonly parameters: P;
  readonly batch: B;
}

interface LossInputs<P> {
  readonly parameters: P;
  readonly embeddings: Embeddings<Spec>;
}

interface LossOutputs<P> {
  readonly loss: Tensor;
  readonly embeddings: Embeddings<Tensor>;
  /** The loss's own gradient of the parameters: where the sum over micro-batches starts. */
  readonly gradients: MapTree<P, Spec, Tensor>;
}

interface BackwardInputs<P, B> extends EmbedInputs<P, B> {
  readonly embeddings: Embeddings<Spec>;
  readonly gradients: P;
}

interface UpdateInputs<P> {
  readonly parameters: P;
  readonly state: OptimizerState<P>;
  readonly schedule: Spec;
  readonly gradients: P;
}

/** The four parts as compile() takes them. */
export interface CachedStepFunctions<P, B> {
  readonly embed: (inputs: MapTree<EmbedInputs<P, B>, Spec, Tensor>) => Embeddings<Tensor>;
  readonly loss: (inputs: MapTree<LossInputs<P>, Spec, Tensor>) => LossOutputs<P>;
  readonly backward: (inputs: MapTree<BackwardInputs<P, B>, Spec, Tensor>) => {
    readonly gradients: MapTree<P, Spec, Tensor>;
  };
  readonly update: (
    inputs: MapTree<UpdateInputs<P>, Spec, Tensor>,
  ) => Omit<StepOutputs<MapTree<P, Spec, Tensor>>, 'loss'>;
}

/**
 * Compiles a training step over `microBatches` micro-batches whose loss takes all pairs of all of them.
 * Equal to the unsplit step to rounding, and bit for bit to itself. The towers run forward twice.
 * Until the update at its end a step changes nothing that it was given.
 *
 * @throws ERR_ARGUMENT for a number of micro-batches below one; what tracing the parts throws.
 */
export function compileCachedStep<P extends object, B extends object>(
  config: CachedStepConfig<P, B>,
): CachedStep<P, B> {
  return new CachedStep(config);
}

/** The parts that {@link compileCachedStep} compiles. */
export function cachedStepFunctions<P extends object, B extends object>(
  config: CachedStepConfig<P, B>,
): CachedStepFunctions<P, B> {
  type Parameters = MapTree<P, Spec, Tensor>;
  return {
    embed: ({ parameters, batch }) => config.embed(parameters, batch),
    loss: ({ parameters, embeddings }) => {
      const wrt = { embeddings: embeddings as Embeddings<Tensor>, parameters };
      const loss = config.loss(wrt.embeddings, parameters);
      const gradients = gradient(loss, wrt);
      return {
        loss,
        embeddings: gradients.embeddings,
        gradients: gradients.parameters as Parameters,
      };
    },
    backward: ({ parameters, batch, embeddings, gradients }) => {
      const own = config.embed(parameters, batch);
      const upstream = embeddings as Embeddings<Tensor>;
      const more = pullback([own.images, own.texts], [upstream.images, upstream.texts], parameters);
      return { gradients: addTrees(gradients, more as Parameters) };
    },
    update: ({ parameters, gradients, state, schedule }) => {
      const update = updateParameters(
        parameters,
        gradients as MapTree<Parameters, Tensor, Tensor>,
        state as OptimizerState<Parameters>,
        schedule,
        config.optimizer,
        (path) => config.decays(path),
      );
      const { gradientNorm, updateNorm, parameterNorm } = update;
      return {
        gradientNorm,
        updateNorm,
        parameterNorm,
        parameters: update.parameters as Parameters,
        state: update.state as OptimizerState<Parameters>,
      };
    },
  };
}

/** A compiled cached step; see {@link compileCachedStep}. */
export class CachedStep<P extends object, B extends object> implements Step<P, B> {
  private readonly embed: Program<EmbedInputs<P, B>, Embeddings<Tensor>>;
  private readonly loss: Program<LossInputs<P>, LossOutputs<P>>;
  private readonly backward: Program<
    BackwardInputs<P, B>,
    { readonly gradients: MapTree<P, Spec, Tensor> }
  >;
  private readonly update: Program<
    UpdateInputs<P>,
    Omit<StepOutputs<MapTree<P, Spec, Tensor>>, 'loss'>
  >;

  constructor(private readonly config: CachedStepConfig<P, B>) {
    const { name, parameters, batch, embeddings, microBatches, device, precision } = config;
    if (!Number.isSafeInteger(microBatches) || microBatches < 1) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `compileCachedStep: microBatches must be a positive integer, got ${String(microBatches)}`,
      );
    }
    const functions = cachedStepFunctions(config);
    const options = { device: device ?? 'cpu', precision: precision ?? 'float32' } as const;
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
            state: stateSpecs(parameters) as OptimizerState<P>,
            schedule: float32(3),
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
    inputs: MapTree<StepInputs<P, B>, Spec, RunInput>,
  ): Promise<MapTree<StepOutputs<MapTree<P, Spec, Tensor>>, Tensor, DeviceArray>> {
    const { parameters, state, schedule } = inputs;
    const batches = inputs.batches as readonly MapTree<B, Spec, RunInput>[];
    if (batches.length !== this.config.microBatches) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `${this.config.name}: batches must be ${String(this.config.microBatches)}, got ${String(batches.length)}`,
      );
    }
    const embeddings = await this.embedAll(parameters, batches);
    const whole = await this.loss.run({ parameters, embeddings });
    const { loss } = whole;
    // A tree like the parameters, which the type system cannot follow through two mappings.
    const gradients: unknown = whole.gradients;
    try {
      await this.accumulate(parameters, batches, await taken(whole.embeddings), gradients);
      const updated = await this.update.run({ parameters, state, schedule, gradients } as MapTree<
        UpdateInputs<P>,
        Spec,
        RunInput
      >);
      return { loss, ...updated };
    } catch (error) {
      loss.dispose();
      throw error;
    } finally {
      disposeArrays(gradients);
    }
  }

  /** Frees the programs. Idempotent. */
  dispose(): void {
    for (const program of [this.embed, this.loss, this.backward, this.update]) program.dispose();
  }

  private async embedAll(
    parameters: unknown,
    batches: readonly MapTree<B, Spec, RunInput>[],
  ): Promise<Embeddings<Float32Array>> {
    const { images, texts } = wholeBatch(this.config.embeddings, batches.length);
    const whole = { images: hostArray(images), texts: hostArray(texts) };
    for (const [i, batch] of batches.entries()) {
      const part = await taken(
        await this.embed.run({ parameters, batch } as MapTree<EmbedInputs<P, B>, Spec, RunInput>),
      );
      whole.images.set(part.images, i * part.images.length);
      whole.texts.set(part.texts, i * part.texts.length);
    }
    return whole;
  }

  private async accumulate(
    parameters: unknown,
    batches: readonly MapTree<B, Spec, RunInput>[],
    upstream: Embeddings<Float32Array>,
    gradients: unknown,
  ): Promise<void> {
    for (const [i, batch] of batches.entries()) {
      const embeddings = {
        images: rowsOf(upstream.images, i, batches.length),
        texts: rowsOf(upstream.texts, i, batches.length),
      };
      await this.backward.run({ parameters, batch, embeddings, gradients } as MapTree<
        BackwardInputs<P, B>,
        Spec,
        RunInput
      >);
    }
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

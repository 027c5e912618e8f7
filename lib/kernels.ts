// `siglip2/kernels`: four operations at the heart of the library, on arrays of the caller's.
//
// Operands of one call are all typed arrays or all DeviceArrays, and what comes back is of the same
// kind. Typed arrays are copied to the device and back; DeviceArrays stay where they are, and the caller
// disposes those that it gets. Nothing is kept between calls.
import type { Device } from './array';
import { DeviceArray } from './array';
import { SiglipError } from './errors';
import type { MapTree, RunInput, Spec, Tensor } from './graph';
import { compile, disposeArrays, float32, gradient, int32, pullback, uint8 } from './graph';
import { jointSelection as selectJointly } from './loss';
import type { ScoredModel } from './ops';
import * as ops from './ops';

export type { Device } from './array';
export { DeviceArray } from './array';
export type { SiglipErrorCode } from './errors';
export { SiglipError } from './errors';

/** Float32 numbers in memory of the host, or on a device. */
export type Floats = Float32Array | DeviceArray<'float32'>;

/** Where a call computes. */
export interface KernelOptions {
  /** For typed arrays: default `'cpu'`. DeviceArrays are computed where they are. */
  readonly device?: Device | undefined;
}

/** Operands of {@link attention}: B sequences of N tokens, heads side by side in D. */
export interface AttentionInput<F extends Floats> {
  /** (B, N, D). */
  readonly query: F;
  /** (B, N, D). */
  readonly key: F;
  /** (B, N, D). */
  readonly value: F;
  /** [B, N, D]. */
  readonly shape: readonly [number, number, number];
  /** A divisor of D. */
  readonly heads: number;
  /** (B, N, D): the gradient of a loss with respect to the output. With it gradients are given. */
  readonly upstream?: F | undefined;
}

/** Result of {@link attention}. */
export interface AttentionResult<F extends Floats> {
  /** (B, N, D). */
  readonly output: F;
  /** (B, N, D) each, where `upstream` was given. */
  readonly gradients: { readonly query: F; readonly key: F; readonly value: F } | undefined;
}

/**
 * softmax(query · keyᵀ / √(head width)) · value, head by head, all tokens of a sequence attending to all.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT, ERR_DEVICE.
 * @example
 * const { output } = await attention({ query, key, value, shape: [8, 256, 768], heads: 12 });
 */
export async function attention<F extends Floats>(
  { query, key, value, shape, heads, upstream }: AttentionInput<F>,
  options: KernelOptions = {},
): Promise<AttentionResult<F>> {
  const spec = float32(...shape);
  const device = deviceOf([query, key, value], options);
  if (upstream === undefined) {
    const result = await once(
      'attention',
      ({ q, k, v }: Record<'q' | 'k' | 'v', Tensor>) => ({
        output: ops.attention(q, k, v, { heads }),
      }),
      { q: spec, k: spec, v: spec },
      { q: query, k: key, v: value },
      device,
    );
    return { output: await like(query, result.output), gradients: undefined };
  }
  const result = await once(
    'attention',
    ({ dy, ...operands }: Record<'q' | 'k' | 'v' | 'dy', Tensor>) => {
      const output = ops.attention(operands.q, operands.k, operands.v, { heads });
      return { output, gradients: pullback([output], [dy], operands) };
    },
    { q: spec, k: spec, v: spec, dy: spec },
    { q: query, k: key, v: value, dy: upstream },
    device,
  );
  const { output, gradients } = result;
  return {
    output: await like(query, output),
    gradients: {
      query: await like(query, gradients.q),
      key: await like(query, gradients.k),
      value: await like(query, gradients.v),
    },
  };
}

/** A model's view of N pairs: row i of the images belongs to row i of the texts. */
export interface Pairs<F extends Floats> {
  /** (N, E), unit rows. */
  readonly images: F;
  /** (N, E), unit rows. */
  readonly texts: F;
  /** E. */
  readonly width: number;
  /** t: the logarithm of the logit scale. */
  readonly logitScale: number;
  /** b. */
  readonly logitBias: number;
}

/** Result of {@link sigmoidLoss}. */
export interface SigmoidLossResult<F extends Floats> {
  readonly loss: number;
  readonly gradients: {
    /** (N, E). */
    readonly images: F;
    /** (N, E). */
    readonly texts: F;
    /** With respect to t. */
    readonly logitScale: number;
    readonly logitBias: number;
  };
}

/**
 * (1/N) Σ_ij softplus(−z_ij (exp(t) · x_i · y_j + b)) with z_ij = 1 where j = i, −1 elsewhere (SigLIP,
 * arXiv 2303.15343 §3.2), and its gradients. Memory is linear in N: no (N, N) matrix is stored.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE.
 * @example
 * const pairs = { images, texts, width: 768, logitScale: Math.log(10), logitBias: -10 };
 * const { loss, gradients } = await sigmoidLoss(pairs);
 */
export async function sigmoidLoss<F extends Floats>(
  pairs: Pairs<F>,
  options: KernelOptions = {},
): Promise<SigmoidLossResult<F>> {
  const result = await once(
    'sigmoidLoss',
    (inputs: ScoredModel) => {
      const { images, texts, logitScale, logitBias } = inputs;
      const loss = ops.sigmoidLoss(images, texts, logitScale, logitBias);
      return { loss, gradients: gradient(loss, inputs) };
    },
    specsOf('sigmoidLoss', pairs),
    inputsOf(pairs),
    deviceOf([pairs.images, pairs.texts], options),
  );
  const { loss, gradients } = result;
  return {
    loss: await scalar(loss),
    gradients: {
      images: await like(pairs.images, gradients.images),
      texts: await like(pairs.images, gradients.texts),
      logitScale: await scalar(gradients.logitScale),
      logitBias: await scalar(gradients.logitBias),
    },
  };
}

/**
 * What a pair's score is made of: `learnability`, the learner's loss less the reference's;
 * `easyReference`, the reference's loss with its sign turned; `hardLearner`, the learner's loss.
 */
export type Score = keyof typeof ops.scoreWeights;

/**
 * The losses that scores are made of: those of the sigmoid loss, or InfoNCE's, image to text and text to
 * image, over the N pairs.
 */
export type ScoreLoss = ops.ScoreLoss;

/** How {@link learnability} scores. */
export interface LearnabilityOptions extends KernelOptions {
  /** Default `'sigmoid'`. */
  readonly scoreLoss?: ScoreLoss | undefined;
}

/** Result of {@link learnability}: (N) each. */
export interface LearnabilityResult<F extends Floats> {
  /** Of the example's own pair. */
  readonly diagonal: F;
  /** Of its image with all texts, summed. */
  readonly rows: F;
  /** Of its text with all images, summed. */
  readonly columns: F;
}

/**
 * What is left to learn from N pairs (JEST, arXiv 2406.17711): scores by the losses of a learner and a
 * reference on the same pairs. Their widths may differ. No (N, N) matrix is stored; there is no gradient.
 *
 * With softmax losses a pair i of its own counts ½ (r_i + c_i) − S_ii, where S are its logits and r and c
 * the logarithms of the sums of their exponentials over rows and columns; a pair of image i with text j by
 * how much less r_i and c_j would be without it, on average.
 *
 * @param score - default `'learnability'`.
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE.
 */
export async function learnability<F extends Floats>(
  learner: Pairs<F>,
  reference: Pairs<F>,
  score: Score = 'learnability',
  options: LearnabilityOptions = {},
): Promise<LearnabilityResult<F>> {
  const weights = ops.scoreWeights[score];
  const { diagonal, rows, columns } = await once(
    'learnability',
    (inputs: { readonly learner: ScoredModel; readonly reference: ScoredModel }) => {
      const models = [inputs.learner, inputs.reference] as const;
      const logSums = options.scoreLoss === 'softmax' ? ops.pairLogSums(...models, weights) : null;
      return ops.learnability(...models, weights, logSums);
    },
    {
      learner: specsOf('learnability', learner),
      reference: specsOf('learnability', reference),
    },
    { learner: inputsOf(learner), reference: inputsOf(reference) },
    deviceOf([learner.images, learner.texts, reference.images, reference.texts], options),
  );
  return {
    diagonal: await like(learner.images, diagonal),
    rows: await like(learner.images, rows),
    columns: await like(learner.images, columns),
  };
}

/** How {@link jointSelection} draws. */
export interface SelectionInput<F extends Floats> {
  readonly learner: Pairs<F>;
  readonly reference: Pairs<F>;
  /** Pairs to select, a multiple of `chunks`. */
  readonly batch: number;
  /** Default 16, as published; 1 draws every pair by its own score alone. */
  readonly chunks?: number | undefined;
  /** Chances are in proportion to exp(gain · score). Default 1. */
  readonly gain?: number | undefined;
  /** Default `'learnability'`. */
  readonly score?: Score | undefined;
  /** Default `'sigmoid'`. */
  readonly scoreLoss?: ScoreLoss | undefined;
  /** Of the random draws: integer from 0 to 2^53 − 1, default 0. */
  readonly seed?: number | undefined;
  /** Draws with one seed differ by it: integer from 0 to 2^53 − 1, default 0. */
  readonly step?: number | undefined;
}

/** Result of {@link jointSelection}. */
export interface SelectionResult {
  /** (batch): rows of the pairs, in the order drawn. */
  readonly indices: Int32Array;
  /** (N): the score of every pair by itself. */
  readonly scores: Float32Array;
}

/**
 * Draws a batch out of N pairs without replacement, chunk by chunk, each by what its pairs score with
 * those drawn before (JEST, arXiv 2406.17711). The same on every device and in every run.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE; ERR_ARGUMENT where chunks do not divide the batch.
 * @example
 * const { indices } = await jointSelection({ learner, reference, batch: 1024, seed: 1 });
 */
export async function jointSelection<F extends Floats>(
  input: SelectionInput<F>,
  options: KernelOptions = {},
): Promise<SelectionResult> {
  const { learner, reference, batch, chunks = 16, gain = 1, score = 'learnability' } = input;
  const specs = specsOf('jointSelection', learner);
  const [candidates] = specs.images.shape;
  const result = await once(
    'jointSelection',
    (inputs: Record<'learner' | 'reference', ScoredModel> & Record<'taken' | 'draw', Tensor>) => {
      const selection = selectJointly(inputs.learner, inputs.reference, inputs.taken, inputs.draw, {
        batch,
        chunks,
        gain,
        weights: ops.scoreWeights[score],
        scoreLoss: input.scoreLoss,
      });
      return { chunks: selection.chunks, scores: selection.scores[0] };
    },
    {
      learner: specs,
      reference: specsOf('jointSelection', reference),
      taken: uint8(candidates),
      draw: int32(4),
    },
    {
      learner: inputsOf(learner),
      reference: inputsOf(reference),
      taken: new Uint8Array(candidates),
      draw: ops.drawInput(input.seed ?? 0, input.step ?? 0),
    },
    deviceOf([learner.images, learner.texts, reference.images, reference.texts], options),
  );
  try {
    const drawn = await Promise.all(result.chunks.map((chunk) => chunk.read()));
    return {
      indices: Int32Array.from(drawn.flatMap((chunk) => [...chunk])),
      scores: (await result.scores.read()) as Float32Array,
    };
  } finally {
    disposeArrays(result);
  }
}

async function once<I extends object, O>(
  name: string,
  fn: (inputs: MapTree<I, Spec, Tensor>) => O,
  specs: I,
  inputs: MapTree<I, Spec, RunInput>,
  device: Device,
): Promise<MapTree<O, Tensor, DeviceArray>> {
  const program = compile(name, fn, specs, { device });
  try {
    return await program.run(inputs);
  } finally {
    program.dispose();
  }
}

function specsOf<F extends Floats>(
  who: string,
  { images, width }: Pairs<F>,
): Record<keyof ScoredModel, Spec> {
  const count = images instanceof DeviceArray ? images.shape[0] : images.length / width;
  if (!Number.isSafeInteger(width) || !Number.isSafeInteger(count) || width < 1 || count < 1) {
    throw new SiglipError(
      'ERR_SHAPE',
      `${who}: images must be (N, width) with N and width positive, got ${String(count * width)} elements for width ${String(width)}`,
    );
  }
  const rows = float32(count, width);
  return { images: rows, texts: rows, logitScale: float32(1), logitBias: float32(1) };
}

function inputsOf<F extends Floats>({
  images,
  texts,
  logitScale,
  logitBias,
}: Pairs<F>): Record<keyof ScoredModel, RunInput> {
  return {
    images,
    texts,
    logitScale: Float32Array.of(logitScale),
    logitBias: Float32Array.of(logitBias),
  };
}

function deviceOf(operands: readonly Floats[], { device }: KernelOptions): Device {
  const there = operands.find((operand) => operand instanceof DeviceArray);
  return there instanceof DeviceArray ? there.device : (device ?? 'cpu');
}

// The result in the form of an operand.
async function like<F extends Floats>(operand: F, result: DeviceArray): Promise<F> {
  // An operand's kind is its result's, which the type system cannot follow.
  if (operand instanceof DeviceArray) return result as Floats as F;
  try {
    return (await result.read()) as Floats as F;
  } finally {
    result.dispose();
  }
}

async function scalar(array: DeviceArray): Promise<number> {
  try {
    return (await array.read())[0];
  } finally {
    array.dispose();
  }
}

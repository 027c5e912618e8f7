// A linear classifier of pixels on the tokens of a frozen vision tower, as TIPS and DINOv2 measure dense
// features: standardise (their batch norm, on features that do not change), one linear layer, logits
// resized to the labels bilinearly, cross-entropy of pixels, AdamW.
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import type { AxisMap } from '../model/axis_map';
import { alongAxis, linearAxis, transposed } from '../model/axis_map';
import { IGNORED, SegmentationScore } from './segmentation_score';

/** Tokens of one image and the classes of its pixels. */
export interface DenseExample extends DenseTokens {
  /** (height · width), 255 for pixels that do not count. */
  readonly labels: Uint8Array;
  readonly height: number;
  readonly width: number;
}

/** Tokens of one image. */
export interface DenseTokens {
  /** (rows · columns, D), after the tower's final norm. */
  readonly tokens: Float32Array;
  /** Patches: [rows, columns]. */
  readonly grid: readonly [number, number];
}

export interface DenseProbeOptions {
  /** At most 255. */
  readonly classes: number;
  /** Default 1000. */
  readonly steps?: number;
  /** Images of a step. Default 16. */
  readonly batch?: number;
  /** Falls to zero along a half cosine. Default 1e-3. */
  readonly learningRate?: number;
  /** Of the weights, times the learning rate. Default 0.01. */
  readonly weightDecay?: number;
  /** Of the order of the images. Default 0. */
  readonly seed?: number;
}

const BETA1 = 0.9;
const BETA2 = 0.999;
const EPS = 1e-8;

/** A trained probe. */
export class DenseProbe {
  constructor(
    readonly classes: number,
    /** (D) */
    private readonly mean: Float64Array,
    /** (D) */
    private readonly deviation: Float64Array,
    /** (D + 1, C); the last row is the bias. */
    private readonly weights: Float64Array,
  ) {}

  /** The class of each pixel of an image resized to height × width. */
  predict(example: DenseTokens, height: number, width: number): Uint8Array {
    const { classes } = this;
    const logits = this.logits(this.standardize(example), example.grid, height, width);
    return Uint8Array.from({ length: height * width }, (_, pixel) => {
      let best = 0;
      for (let c = 1; c < classes; c++) {
        if (logits[pixel * classes + c] > logits[pixel * classes + best]) best = c;
      }
      return best;
    });
  }

  /** Tokens with mean 0 and deviation 1, and a constant: (N, D + 1). */
  standardize({ tokens }: DenseTokens): Float64Array {
    const width = this.mean.length;
    const count = tokens.length / width;
    const x = new Float64Array(count * (width + 1));
    for (let i = 0; i < count; i++) {
      const row = i * (width + 1);
      for (let k = 0; k < width; k++) {
        x[row + k] = (tokens[i * width + k] - this.mean[k]) / this.deviation[k];
      }
      x[row + width] = 1;
    }
    return x;
  }

  /** (height · width, C) */
  logits(
    x: Float64Array,
    [rows, columns]: readonly [number, number],
    height: number,
    width: number,
  ): Float64Array {
    const { classes, weights } = this;
    const d = this.mean.length + 1;
    const cells = new Float64Array(rows * columns * classes);
    for (let i = 0; i < rows * columns; i++) {
      for (let k = 0; k < d; k++) {
        const value = x[i * d + k];
        for (let c = 0; c < classes; c++)
          cells[i * classes + c] += value * weights[k * classes + c];
      }
    }
    const tall = alongAxis(linearAxis(rows, height, false), cells, 1, columns * classes);
    return alongAxis(linearAxis(columns, width, false), tall, height, classes);
  }
}

/**
 * Trains a probe. The problem is convex and the weights begin at zero, so that the seed decides over the
 * order of the images alone.
 *
 * @throws ERR_ARGUMENT without an example, ERR_SHAPE when tokens or labels do not fit
 */
export function trainDenseProbe(
  examples: readonly DenseExample[],
  options: DenseProbeOptions,
): DenseProbe {
  const { classes, steps = 1000, batch = 16, learningRate = 1e-3, weightDecay = 0.01 } = options;
  const width = expectExamples(examples, classes);
  const { mean, deviation } = statistics(examples, width);
  const weights = new Float64Array((width + 1) * classes);
  const probe = new DenseProbe(classes, mean, deviation, weights);
  const inputs = examples.map((example) => probe.standardize(example));
  const m = new Float64Array(weights.length);
  const v = new Float64Array(weights.length);
  const random = new Philox4x32(options.seed ?? 0, 'dense probe');
  for (let step = 0; step < steps; step++) {
    const gradient = new Float64Array(weights.length);
    for (let i = 0; i < batch; i++) {
      const index = random.integer(examples.length);
      addGradient(probe, examples[index], inputs[index], 1 / batch, gradient);
    }
    const rate = learningRate * 0.5 * (1 + Math.cos((Math.PI * step) / steps));
    const [first, second] = [1 - BETA1 ** (step + 1), 1 - BETA2 ** (step + 1)];
    for (let i = 0; i < weights.length; i++) {
      m[i] += (1 - BETA1) * (gradient[i] - m[i]);
      v[i] += (1 - BETA2) * (gradient[i] * gradient[i] - v[i]);
      const decay = i < width * classes ? weightDecay * weights[i] : 0;
      weights[i] -= rate * (m[i] / first / (Math.sqrt(v[i] / second) + EPS) + decay);
    }
  }
  return probe;
}

/** Intersection over union of a probe's predictions. */
export function evaluateDenseProbe(
  probe: DenseProbe,
  examples: Iterable<DenseExample>,
): SegmentationScore {
  const score = new SegmentationScore(probe.classes);
  for (const example of examples) {
    score.add(probe.predict(example, example.height, example.width), example.labels);
  }
  return score;
}

/**
 * Mean cross-entropy of the pixels that count of one image; its gradient with respect to the probe's
 * weights, times `scale`, is added to `gradient`.
 */
export function addGradient(
  probe: DenseProbe,
  { grid, labels, height, width }: DenseExample,
  x: Float64Array,
  scale: number,
  gradient: Float64Array,
): number {
  const { classes } = probe;
  const [rows, columns] = grid;
  const dlogits = probe.logits(x, grid, height, width);
  const counted = labels.reduce((sum, label) => sum + (label === IGNORED ? 0 : 1), 0);
  if (counted === 0) return 0;
  let loss = 0;
  for (const [pixel, label] of labels.entries()) {
    const at = pixel * classes;
    if (label === IGNORED) {
      dlogits.fill(0, at, at + classes);
      continue;
    }
    let largest = -Infinity;
    for (let c = 0; c < classes; c++) largest = Math.max(largest, dlogits[at + c]);
    let sum = 0;
    for (let c = 0; c < classes; c++) sum += Math.exp(dlogits[at + c] - largest);
    loss += (Math.log(sum) + largest - dlogits[at + label]) / counted;
    for (let c = 0; c < classes; c++) {
      const share = Math.exp(dlogits[at + c] - largest) / sum;
      dlogits[at + c] = (share - (c === label ? 1 : 0)) / counted;
    }
  }
  const back = (from: number, to: number): AxisMap => transposed(linearAxis(from, to, false));
  const tall = alongAxis(back(columns, width), dlogits, height, classes);
  const cells = alongAxis(back(rows, height), tall, 1, columns * classes);
  const d = x.length / (rows * columns);
  for (let i = 0; i < rows * columns; i++) {
    for (let k = 0; k < d; k++) {
      const value = scale * x[i * d + k];
      for (let c = 0; c < classes; c++) gradient[k * classes + c] += value * cells[i * classes + c];
    }
  }
  return loss;
}

function expectExamples(examples: readonly DenseExample[], classes: number): number {
  if (examples.length === 0 || !Number.isInteger(classes) || classes < 1 || classes > IGNORED) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `trainDenseProbe: examples and classes must be at least one, classes at most ${String(IGNORED)}, ` +
        `got ${String(examples.length)} and ${String(classes)}`,
    );
  }
  const [{ tokens: first, grid: own }] = examples;
  const d = first.length / (own[0] * own[1]);
  for (const [i, { tokens, grid, labels, height, width }] of examples.entries()) {
    const [rows, columns] = grid;
    const bad = labels.find((label) => label !== IGNORED && label >= classes);
    const fits = Number.isInteger(d) && tokens.length === rows * columns * d;
    if (fits && labels.length === height * width && bad === undefined) continue;
    throw new SiglipError(
      'ERR_SHAPE',
      `trainDenseProbe: example ${String(i)} must have ${String(rows)} · ${String(columns)} tokens of width ` +
        `${String(d)} and ${String(height)} · ${String(width)} labels below ${String(classes)}, got ` +
        `${String(tokens.length)} values, ${String(labels.length)} labels` +
        (bad === undefined ? '' : ` and the class ${String(bad)}`),
    );
  }
  return d;
}

function statistics(
  examples: readonly DenseExample[],
  width: number,
): { mean: Float64Array; deviation: Float64Array } {
  const mean = new Float64Array(width);
  const deviation = new Float64Array(width);
  const count = examples.reduce((sum, { tokens }) => sum + tokens.length, 0) / width;
  for (const { tokens } of examples) {
    for (const [i, value] of tokens.entries()) mean[i % width] += value / count;
  }
  for (const { tokens } of examples) {
    for (const [i, value] of tokens.entries()) {
      deviation[i % width] += (value - mean[i % width]) ** 2 / count;
    }
  }
  return { mean, deviation: deviation.map((square) => Math.sqrt(square + 1e-5)) };
}

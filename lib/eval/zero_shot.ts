// Zero-shot classification: the class whose text embedding is nearest to the image's.
//
// After big_vision's discriminative_classifier evaluator: a class is the mean of its prompts'
// embeddings, brought back to unit length; an image counts as right when its best class is any of
// its labels; images without a label are left out. Logit scale and bias change no order.
import { SiglipError } from '../errors';
import { wilson, type Proportion } from './proportion';
import { forEachScores, rankOf, rowCount, type Rows } from './scores';

/** Guards the division by a norm, as the reference does. */
const EPSILON = 1e-8;

/**
 * Embeddings of classes from those of their prompts: mean, then divided by (1e-8 + norm).
 *
 * @param prompts embeddings of unit length, (P, width)
 * @param promptClass class of each prompt, 0 to C − 1, (P)
 * @param classes C; every class needs a prompt
 * @returns (C, width)
 * @throws ERR_SHAPE, ERR_ARGUMENT when the parts do not fit or a class has no prompt
 */
export function classEmbeddings(prompts: Rows, promptClass: Int32Array, classes: number): Rows {
  const { data, width } = prompts;
  if (promptClass.length !== rowCount(prompts)) {
    throw new SiglipError(
      'ERR_SHAPE',
      `classEmbeddings: promptClass must be one per prompt, ${String(rowCount(prompts))}, ` +
        `got ${String(promptClass.length)}`,
    );
  }
  const sums = new Float64Array(classes * width);
  const counts = new Int32Array(classes);
  for (const [prompt, label] of promptClass.entries()) {
    if (label < 0 || label >= classes) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `classEmbeddings: promptClass must be from 0 to ${String(classes - 1)}, ` +
          `got ${String(label)}`,
      );
    }
    counts[label]++;
    for (let i = 0; i < width; i++) sums[label * width + i] += data[prompt * width + i];
  }
  const out = new Float32Array(classes * width);
  for (let label = 0; label < classes; label++) {
    if (counts[label] === 0) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `classEmbeddings: class ${String(label)} must have a prompt, got none`,
      );
    }
    const mean = sums.subarray(label * width, (label + 1) * width).map((x) => x / counts[label]);
    const norm = EPSILON + Math.sqrt(mean.reduce((sum, value) => sum + value * value, 0));
    for (let i = 0; i < width; i++) out[label * width + i] = mean[i] / norm;
  }
  return { data: out, width };
}

/** Labels that some images were mistaken for. */
export interface Confusion {
  readonly label: number;
  readonly predicted: number;
  readonly count: number;
}

/** Outcome of {@link zeroShot}. */
export interface ZeroShotResult {
  /** Share of the labelled images whose best class is one of their labels. */
  readonly top1: Proportion;
  /** Share with one of their labels among the five best classes. */
  readonly top5: Proportion;
  /** What guessing gives: labels per image over classes, averaged over labelled images. */
  readonly chance: number;
  /** Number of classes. */
  readonly classes: number;
  /** Best class of each image, (N). */
  readonly predictions: Int32Array;
  /** For each image 1 when the best class is right, 0 when not, −1 without label, (N). */
  readonly hits: Int8Array;
  /** The commonest mistakes, by falling count, at most ten; by an image's first label. */
  readonly confusions: readonly Confusion[];
}

/**
 * Classifies images by the nearest of the classes' embeddings.
 *
 * @param images (N, width), of unit length or not: the order does not change
 * @param classes (C, width), of unit length
 * @param labels (N, L): the labels of each image, −1 where there are fewer than L
 * @throws ERR_SHAPE when the parts do not fit, ERR_ARGUMENT when a label is out of range
 *
 * @example
 * const result = zeroShot(images, classEmbeddings(prompts, promptClass, 1000), labels);
 * result.top1.value; // 0.731
 */
export function zeroShot(images: Rows, classes: Rows, labels: Int32Array): ZeroShotResult {
  const [count, classCount] = [rowCount(images), rowCount(classes)];
  const perImage = count === 0 ? 1 : labels.length / count;
  if (!Number.isInteger(perImage) || perImage < 1) {
    throw new SiglipError(
      'ERR_SHAPE',
      `zeroShot: labels must be the same number for each of ${String(count)} images, ` +
        `got ${String(labels.length)}`,
    );
  }
  for (const label of labels) {
    if (label < -1 || label >= classCount) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `zeroShot: labels must be from -1 to ${String(classCount - 1)}, got ${String(label)}`,
      );
    }
  }
  const predictions = new Int32Array(count);
  const hits = new Int8Array(count).fill(-1);
  const mistakes = new Map<number, number>();
  let [labelled, first, five, guess] = [0, 0, 0, 0];
  forEachScores(images, classes, (image, scores) => {
    let best = 0;
    for (let i = 1; i < classCount; i++) if (scores[i] > scores[best]) best = i;
    predictions[image] = best;
    const own = new Set(labels.subarray(image * perImage, (image + 1) * perImage));
    own.delete(-1);
    if (own.size === 0) return;
    labelled++;
    guess += own.size / classCount;
    let rank = classCount;
    for (const label of own) rank = Math.min(rank, rankOf(scores, label));
    hits[image] = rank === 0 ? 1 : 0;
    if (rank === 0) first++;
    if (rank < 5) five++;
    if (rank > 0) {
      const [label] = own;
      const key = label * classCount + best;
      mistakes.set(key, (mistakes.get(key) ?? 0) + 1);
    }
  });
  const confusions = [...mistakes]
    .sort(([keyA, a], [keyB, b]) => b - a || keyA - keyB)
    .slice(0, 10)
    .map(([key, times]) => ({
      label: Math.floor(key / classCount),
      predicted: key % classCount,
      count: times,
    }));
  return {
    top1: wilson(first, labelled),
    top5: wilson(five, labelled),
    chance: labelled === 0 ? 0 : guess / labelled,
    classes: classCount,
    predictions,
    hits,
    confusions,
  };
}

// How well pixels are classified: intersection over union, class by class.
import { SiglipError } from '../errors';

/** Label of pixels that do not count. */
export const IGNORED = 255;

/** Pixels counted by label and prediction, over any number of images. */
export class SegmentationScore {
  /** (C, C): row label, column prediction. */
  private readonly confusion: Float64Array;

  constructor(readonly classes: number) {
    this.confusion = new Float64Array(classes * classes);
  }

  /** @param labels - classes, or 255 for pixels that do not count @throws ERR_SHAPE, ERR_ARGUMENT */
  add(predicted: Uint8Array, labels: Uint8Array): void {
    if (predicted.length !== labels.length) {
      throw new SiglipError(
        'ERR_SHAPE',
        `SegmentationScore: predictions must be one per label, ${String(labels.length)}, got ${String(predicted.length)}`,
      );
    }
    for (const [i, label] of labels.entries()) {
      if (label === IGNORED) continue;
      if (label >= this.classes || predicted[i] >= this.classes) {
        throw new SiglipError(
          'ERR_ARGUMENT',
          `SegmentationScore: classes must be below ${String(this.classes)}, got ${String(Math.max(label, predicted[i]))}`,
        );
      }
      this.confusion[label * this.classes + predicted[i]]++;
    }
  }

  /** Pixels of a class found, over those of it or taken for it; NaN for a class that is in neither. */
  get byClass(): number[] {
    const { classes, confusion } = this;
    return Array.from({ length: classes }, (_, c) => {
      let union = -confusion[c * classes + c];
      for (let k = 0; k < classes; k++) {
        union += confusion[c * classes + k] + confusion[k * classes + c];
      }
      return confusion[c * classes + c] / union;
    });
  }

  /** Mean of {@link byClass} over the classes that occur; NaN without any. */
  get meanIoU(): number {
    const present = this.byClass.filter((value) => !Number.isNaN(value));
    return present.reduce((sum, value) => sum + value, 0) / present.length;
  }

  /** Share of the pixels that are classified right. */
  get accuracy(): number {
    const { classes, confusion } = this;
    let right = 0;
    for (let c = 0; c < classes; c++) right += confusion[c * classes + c];
    return right / confusion.reduce((sum, count) => sum + count, 0);
  }
}

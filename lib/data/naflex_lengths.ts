// How long the sequences of a NaFlex run are, batch by batch (SigLIP 2, arXiv 2502.14786 §2.4.2): every
// batch draws one length; at the longest, batches are half as large and there are twice as many.
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import { packedRows } from '../model';

/** As published. */
export const naflexLengths: readonly number[] = [128, 256, 576, 784, 1024];

export interface NaflexLengthOptions {
  /** Pairs of a full batch. */
  readonly batch: number;
  /** Budgets of patches that are drawn from, all different. Default {@link naflexLengths}. */
  readonly lengths?: readonly number[];
  /** Those at which batches are half as large and drawn twice as often. Default 1024. */
  readonly halved?: readonly number[];
  /** Integer from 0 to 2^53 − 1, default 0. */
  readonly seed?: number;
}

/** The batches of one length. */
export interface NaflexLength {
  /** Most patches of an image. */
  readonly length: number;
  /** Pairs of a batch. */
  readonly batch: number;
  /** Rows of a packed batch: enough for any images, so that each length has one program. */
  readonly rows: number;
}

/**
 * The length of every batch, a function of the seed and the number of the batch alone. Every length
 * sees the same number of examples in the long run. It is the same on all devices: their losses meet.
 *
 * @example
 * new NaflexLengths({ batch: 32 }).at(7); // { length: 784, batch: 32, rows: 25088 }
 */
export class NaflexLengths {
  /** Pairs of a batch that is not halved. */
  readonly fullBatch: number;
  /** In the order of the option. */
  readonly forms: readonly NaflexLength[];
  private readonly drawn: readonly NaflexLength[];
  private readonly random: Philox4x32;

  /** @throws ERR_ARGUMENT when an option is out of its range */
  constructor({ batch, lengths = naflexLengths, halved = [1024], seed = 0 }: NaflexLengthOptions) {
    const counts = lengths.every((length) => Number.isSafeInteger(length) && length >= 1);
    if (!counts || lengths.length === 0 || new Set(lengths).size !== lengths.length) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `NaflexLengths: lengths must be different positive integers, got [${lengths.join(', ')}]`,
      );
    }
    const halves = lengths.filter((length) => halved.includes(length));
    const step = halves.length === 0 ? 1 : 2;
    if (!Number.isSafeInteger(batch) || batch < 1 || batch % step !== 0) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `NaflexLengths: batch must be a positive ${step === 2 ? 'even number' : 'integer'}, got ${String(batch)}`,
      );
    }
    this.fullBatch = batch;
    this.forms = lengths.map((length) => {
      const pairs = halves.includes(length) ? batch / 2 : batch;
      return { length, batch: pairs, rows: packedRows(pairs * length) };
    });
    this.drawn = this.forms.flatMap((form) => (form.batch < batch ? [form, form] : [form]));
    this.random = new Philox4x32(seed, 'NaFlex length');
  }

  /** The length of a batch. @param step - number of the batch, from 0 */
  at(step: number): NaflexLength {
    this.random.position = step;
    return this.drawn[Math.floor(this.random.uniform() * this.drawn.length)];
  }
}

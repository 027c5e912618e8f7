// What curation selects from: rows of a data set as a learner and a reference see them, super-batch by
// super-batch.
import type { Scored } from '../train';
import type { FailedRow } from './batches';

/** A row of a data set: which of its sources, and which row of that, both from 0. */
export interface RowPlace {
  readonly source: number;
  readonly row: number;
}

/** A row that may be selected. */
export interface Candidate extends RowPlace {
  /** A label, where there are some. */
  readonly id: string | undefined;
}

/** Consecutive sound rows, which are compared with each other, each model with its own logits. */
export interface SuperBatch {
  readonly rows: readonly Candidate[];
  readonly learner: Scored;
  readonly reference: Scored;
  /** Rows among them that were passed over. */
  readonly failures: readonly (FailedRow & { readonly source: number })[];
  /** Where the next super-batch begins. */
  readonly next: RowPlace;
  /** Share of the data set that was read to its end. */
  readonly through: number;
}

/** How far reading is. */
export interface ReadSoFar extends Pick<SuperBatch, 'through'> {
  /** Of the super-batch that is being read, failed ones included. */
  readonly rows: number;
}

/** A data set under the eyes of two models. */
export interface Candidates {
  /** Its sources by name. */
  readonly sources: readonly string[];
  /** All that its super-batches depend on, by name. */
  readonly settings: Readonly<Record<string, string>>;
  /** Rows, where their number is known. */
  readonly total: number | undefined;
  /**
   * Super-batches of `size` rows from a place on, the last one with what is left. They do not depend on
   * where reading began, so long as that was the beginning of one of them.
   */
  superBatches(
    size: number,
    from: RowPlace,
    onRead?: (read: ReadSoFar) => void,
  ): AsyncGenerator<SuperBatch, void, undefined>;
}

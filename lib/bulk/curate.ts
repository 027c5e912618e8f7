// Selection of a data set before anybody trains on it (JEST, arXiv 2406.17711; ACID, arXiv 2411.18674),
// super-batch by super-batch.
import type { Device } from '../array';
import { SiglipError } from '../errors';
import { drawInput } from '../ops';
import type { CurationConfig, SelectionOutcome } from '../train';
import { JointSelector } from '../train';
import type { Candidate, Candidates, ReadSoFar, RowPlace, SuperBatch } from './candidates';

/** How a data set is selected from. */
export interface CurateOptions extends Omit<CurationConfig, 'reference' | 'selection'> {
  /** Rows of a super-batch. */
  readonly superBatch: number;
  /** Of the random draws, default 0. */
  readonly seed?: number | undefined;
  readonly device?: Device | undefined;
  /** Hears how far a super-batch is. */
  readonly onRead?: ((read: ReadSoFar) => void) | undefined;
}

/** A row that was selected or dropped. */
export interface CuratedRow extends Candidate {
  readonly selected: boolean;
  /** What its own pair scored. NaN where there was nothing to select and so nothing was scored. */
  readonly score: number;
  /** Losses of its own pair. */
  readonly learnerLoss: number;
  readonly referenceLoss: number;
}

/** What became of a super-batch. */
export interface CuratedPart extends Pick<SuperBatch, 'failures' | 'next' | 'through'> {
  /** Its number, from 0. */
  readonly superBatch: number;
  /** All of its rows, in the order of the data set. */
  readonly rows: readonly CuratedRow[];
}

/** Where a selection goes on. */
export interface CurationPosition {
  /** Number of the super-batch. */
  readonly superBatch: number;
  /** Where it begins. */
  readonly place: RowPlace;
}

/** Before the first super-batch. */
export const BEGINNING: CurationPosition = { superBatch: 0, place: { source: 0, row: 0 } };

/**
 * Selects rows: of every super-batch of consecutive rows the share that is not dropped. What is selected
 * follows from the candidates, the options and the seed. What is compared with each other is what stands
 * together: shuffle a corpus that is sorted.
 *
 * Of the last super-batch, where it is smaller, as many whole chunks are selected as fit its share.
 *
 * @throws ERR_ARGUMENT; what reading the candidates throws
 */
export async function* curate(
  candidates: Candidates,
  options: CurateOptions,
  from: CurationPosition = BEGINNING,
): AsyncGenerator<CuratedPart, void, undefined> {
  const { superBatch: size, seed = 0 } = checked(options);
  let selector: { readonly rows: number; readonly of: JointSelector } | undefined;
  try {
    let { superBatch } = from;
    for await (const whole of candidates.superBatches(size, from.place, options.onRead)) {
      const { rows, failures, next, through } = whole;
      if (selector?.rows !== rows.length) {
        selector?.of.dispose();
        selector = undefined;
        const of = selectorFor(options, whole);
        if (of !== undefined) selector = { rows: rows.length, of };
      }
      const { learner, reference } = whole;
      const outcome = await selector?.of.run(learner, reference, drawInput(seed, superBatch));
      yield { superBatch, rows: judged(rows, outcome), failures, next, through };
      superBatch++;
    }
  } finally {
    selector?.of.dispose();
  }
}

function checked(options: CurateOptions): CurateOptions {
  const { superBatch, filterRatio, chunks = 16 } = options;
  for (const [name, value] of Object.entries({ superBatch, chunks })) {
    if (Number.isSafeInteger(value) && value >= 1) continue;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `curate: ${name} must be a positive integer, got ${String(value)}`,
    );
  }
  if (filterRatio >= 0 && filterRatio < 1) return options;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `curate: filterRatio must be in [0, 1), got ${String(filterRatio)}`,
  );
}

// Undefined where no row may stay.
function selectorFor(
  { chunks: most = 16, filterRatio, gain, score, scoreLoss, device }: CurateOptions,
  { rows, learner, reference }: SuperBatch,
): JointSelector | undefined {
  const candidates = rows.length;
  const share = Math.floor(candidates * (1 - filterRatio) + 1e-9);
  if (share === 0) return undefined;
  const chunks = Math.min(most, share);
  const batch = Math.floor(share / chunks) * chunks;
  const widths = [
    learner.images.length / candidates,
    reference.images.length / candidates,
  ] as const;
  return new JointSelector({
    candidates,
    batch,
    widths,
    chunks,
    gain,
    score,
    scoreLoss,
    device,
  });
}

function judged(
  rows: readonly Candidate[],
  outcome: SelectionOutcome | undefined,
): readonly CuratedRow[] {
  const selected = new Set(outcome?.indices);
  return rows.map((row, i) => ({
    ...row,
    selected: selected.has(i),
    score: outcome?.scores[i] ?? NaN,
    learnerLoss: outcome?.learnerLosses[i] ?? NaN,
    referenceLoss: outcome?.referenceLosses[i] ?? NaN,
  }));
}

// The learning-rate schedule of big_vision (utils.py, create_learning_rate_schedule): linear warm-up
// into a cosine that ends at zero. It multiplies the whole update, weight decay included.
import { SiglipError } from '../errors';

/** A schedule of a given length, both counts in optimizer steps. */
export interface ScheduleConfig {
  readonly totalSteps: number;
  readonly warmupSteps: number;
  /** What follows the warm-up: a cosine to zero (default), or the full rate throughout. */
  readonly shape?: 'cosine' | 'constant';
}

/**
 * ½ (1 + cos(π · progress)) · min(1, step / warmup), progress = clip((step − warmup) / (total −
 * warmup), 0, 1). Steps count from zero, so with a warm-up the very first update is exactly zero.
 *
 * @param step - zero-based index of the update.
 * @returns a multiplier in [0, 1].
 * @throws ERR_ARGUMENT when the counts are not integers with 0 ≤ warmup < total.
 */
export function cosineSchedule(step: number, { totalSteps, warmupSteps }: ScheduleConfig): number {
  const valid =
    Number.isSafeInteger(totalSteps) && Number.isSafeInteger(warmupSteps) && warmupSteps >= 0;
  if (!valid || warmupSteps >= totalSteps) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `cosineSchedule: warmupSteps must be in [0, totalSteps), got ${String(warmupSteps)} of ${String(totalSteps)}`,
    );
  }
  const progress = (step - warmupSteps) / (totalSteps - warmupSteps);
  const cosine = 0.5 * (1 + Math.cos(Math.PI * Math.min(Math.max(progress, 0), 1)));
  return cosine * warmup(step, { warmupSteps });
}

function warmup(step: number, { warmupSteps }: Pick<ScheduleConfig, 'warmupSteps'>): number {
  return warmupSteps === 0 ? 1 : Math.min(1, step / warmupSteps);
}

/** Which part of a schedule a run covers, in steps of the schedule. */
export interface ScheduleRange {
  /** Default 0. */
  readonly start?: number;
  /** Default the schedule's length. */
  readonly end?: number;
  /**
   * How many updates of the run make one step of the schedule: the learning rate falls so many times
   * slower. Default 1; NaFlex is trained with 3.75 (SigLIP 2, arXiv 2502.14786 §2.4.2).
   */
  readonly stretch?: number;
}

/** A run's place in its schedule. */
export class ScheduleProgress {
  private readonly start: number;
  private readonly end: number;
  private readonly stretch: number;

  /** @throws ERR_ARGUMENT when the range is not within the schedule */
  constructor(
    readonly schedule: ScheduleConfig,
    range: ScheduleRange = {},
  ) {
    cosineSchedule(0, schedule);
    const { start = 0, end = schedule.totalSteps, stretch = 1 } = range;
    if (!(start >= 0 && start < end && end <= schedule.totalSteps && stretch > 0)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `train: range must be 0 ≤ start < end ≤ ${String(schedule.totalSteps)} with a positive stretch, ` +
          `got ${String(start)}, ${String(end)} and ${String(stretch)}`,
      );
    }
    this.start = start;
    this.end = end;
    this.stretch = stretch;
  }

  /** Updates of full batches that the range takes. */
  get updates(): number {
    return Math.ceil((this.end - this.start) * this.stretch - 1e-9);
  }

  /** The multiplier after so many updates' worth of examples; a half batch counts as a half. */
  multiplier(updates: number): number {
    const step = this.start + updates / this.stretch;
    return this.schedule.shape === 'constant'
      ? warmup(step, this.schedule)
      : cosineSchedule(step, this.schedule);
  }

  /** Whether the range is over after so many updates' worth of examples. */
  isOver(updates: number): boolean {
    return this.start + updates / this.stretch >= this.end - 1e-9;
  }
}

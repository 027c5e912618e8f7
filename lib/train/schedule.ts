// The learning-rate schedule of big_vision (utils.py, create_learning_rate_schedule): linear warm-up
// into a cosine that ends at zero. It multiplies the whole update, weight decay included.
import { SiglipError } from '../errors';

/** A schedule of a given length, both counts in optimizer steps. */
export interface ScheduleConfig {
  readonly totalSteps: number;
  readonly warmupSteps: number;
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
  return cosine * (warmupSteps === 0 ? 1 : Math.min(1, step / warmupSteps));
}

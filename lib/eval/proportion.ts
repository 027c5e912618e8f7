// Shares with their uncertainty: a number from 259 images means little without it.
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';

/** A share of successes with a 95 % confidence interval. */
export interface Proportion {
  /** Successes / total; 0 when the total is 0. */
  readonly value: number;
  /** Lower end of the interval. */
  readonly low: number;
  /** Upper end of the interval. */
  readonly high: number;
  readonly count: number;
  readonly total: number;
}

/** 97.5 % quantile of the normal distribution. */
const Z = 1.959963984540054;

/**
 * A share with Wilson's score interval (1927), which stays inside [0, 1] and is right for shares
 * near 0 and small totals where the plain ± interval is not.
 *
 * @throws ERR_ARGUMENT unless 0 ≤ count ≤ total
 */
export function wilson(count: number, total: number): Proportion {
  if (!Number.isInteger(count) || !Number.isInteger(total) || count < 0 || count > total) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `wilson: count must be an integer from 0 to the total ${String(total)}, got ${String(count)}`,
    );
  }
  if (total === 0) return { value: 0, low: 0, high: 1, count, total };
  const value = count / total;
  const spread = (Z * Z) / total;
  const middle = (value + spread / 2) / (1 + spread);
  const half = (Z * Math.sqrt((value * (1 - value)) / total + spread / (4 * total))) / (1 + spread);
  // Rounding must not push the value out of its interval.
  return {
    value,
    low: Math.min(value, Math.max(0, middle - half)),
    high: Math.max(value, Math.min(1, middle + half)),
    count,
    total,
  };
}

/**
 * The mean of several shares that were measured on the same items, such as one set of images asked
 * about in several languages, with a 95 % percentile interval from drawing the items anew
 * (bootstrap): items, not answers, are what is independent.
 *
 * @param hits for each share, for each item 1 (success), 0 (failure) or −1 (not asked)
 * @param seed default 0
 * @param rounds number of resamplings, default 1,000
 * @throws ERR_SHAPE when the shares are not over the same items
 */
export function meanProportion(
  hits: readonly Int8Array[],
  seed = 0,
  rounds = 1000,
): Pick<Proportion, 'value' | 'low' | 'high'> {
  const items = hits[0]?.length ?? 0;
  for (const { length } of hits) {
    if (length !== items) {
      throw new SiglipError(
        'ERR_SHAPE',
        `meanProportion: every share must be over ${String(items)} items, got ${String(length)}`,
      );
    }
  }
  const value = meanOver(hits, (item) => item, items);
  if (items === 0) return { value, low: 0, high: 1 };
  const random = new Philox4x32(seed, 'bootstrap');
  const drawn = new Int32Array(items);
  const means = new Float64Array(rounds);
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < items; i++) drawn[i] = random.integer(items);
    means[round] = meanOver(hits, (i) => drawn[i], items);
  }
  means.sort();
  const at = (share: number): number => means[Math.round(share * (rounds - 1))];
  return { value, low: Math.min(value, at(0.025)), high: Math.max(value, at(0.975)) };
}

function meanOver(hits: readonly Int8Array[], pick: (i: number) => number, items: number): number {
  let sum = 0;
  let shares = 0;
  for (const share of hits) {
    let [successes, asked] = [0, 0];
    for (let i = 0; i < items; i++) {
      const hit = share[pick(i)];
      if (hit < 0) continue;
      successes += hit;
      asked++;
    }
    if (asked === 0) continue;
    sum += successes / asked;
    shares++;
  }
  return shares === 0 ? 0 : sum / shares;
}

// Times of contenders that run in turns. Every run stands between two readings of the machine's peak;
// a round in which a reading fell short is thrown out, since two virtual cores sometimes deliver the
// work of one and a ratio over such a round would say nothing.
import { setTimeout as sleep } from 'node:timers/promises';
import { loadAddon } from '../lib/native/load';

/** One side of a comparison. */
export interface Contender {
  readonly name: string;
  /** One run; may give the seconds it took, by its own clock, else it is timed here. */
  readonly run: () => Promise<number | undefined>;
}

export interface MeasureOptions {
  /** Sound rounds wanted. */
  readonly rounds: number;
  /** Rounds tried before giving up on more. */
  readonly mostRounds: number;
  /** Runs of each contender before the first round. */
  readonly warmups: number;
}

/** Times of several contenders in one series of rounds. */
export interface Measured {
  /** Median seconds of a run, by contender. */
  readonly seconds: ReadonlyMap<string, number>;
  /** Median over rounds of a contender's time divided by the first contender's. */
  readonly ratios: ReadonlyMap<string, number>;
  readonly rounds: number;
  /** Rounds thrown out. */
  readonly rejected: number;
  /** Median peak of fused multiply-adds, FLOP/s, over the rounds that count. */
  readonly peak: number;
}

const peakSeconds = 0.02;
/** A reading below this share of the best one seen in the process means a disturbed machine. */
const leastShareOfPeak = 0.8;
// Threads of other runtimes spin for some milliseconds after a run, waiting for the next.
const settleMilliseconds = 25;

let bestPeak = 0;

/** Reads the peak; what was seen so far counts for later judgements. */
export function readPeak(): number {
  const peak = loadAddon().peak(peakSeconds);
  bestPeak = Math.max(bestPeak, peak);
  return peak;
}

/** The middle of a list, the mean of the two middle ones where there are two. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

interface Round {
  readonly seconds: ReadonlyMap<string, number>;
  readonly peaks: readonly number[];
}

/**
 * Runs contenders in turns: A B A B …, every other round backwards.
 *
 * @param contenders - at least one; ratios are to the first.
 */
export async function measure(
  contenders: readonly Contender[],
  options: MeasureOptions,
): Promise<Measured> {
  for (const { run } of contenders) {
    for (let i = 0; i < options.warmups; i++) await run();
  }
  const rounds: Round[] = [];
  const sound = (): Round[] =>
    rounds.filter(({ peaks }) => Math.min(...peaks) >= leastShareOfPeak * bestPeak);
  await sleep(settleMilliseconds);
  while (sound().length < options.rounds && rounds.length < options.mostRounds) {
    const order = rounds.length % 2 === 0 ? contenders : [...contenders].reverse();
    rounds.push(await oneRound(order));
  }
  return summary(contenders, rounds, sound());
}

// A disturbance often lasts less than this, and no round that starts in one can count.
const patienceMilliseconds = 3000;

async function quietPeak(): Promise<number> {
  const end = performance.now() + patienceMilliseconds;
  for (;;) {
    const peak = readPeak();
    if (peak >= leastShareOfPeak * bestPeak || performance.now() > end) return peak;
    await sleep(settleMilliseconds);
  }
}

async function oneRound(contenders: readonly Contender[]): Promise<Round> {
  const peaks = [await quietPeak()];
  const seconds = new Map<string, number>();
  for (const { name, run } of contenders) {
    const start = performance.now();
    const own = await run();
    seconds.set(name, own ?? (performance.now() - start) / 1000);
    await sleep(settleMilliseconds);
    peaks.push(readPeak());
  }
  return { seconds, peaks };
}

// On a machine so busy that hardly a round was sound, all of them count and all say so.
function summary(
  contenders: readonly Contender[],
  all: readonly Round[],
  sound: readonly Round[],
): Measured {
  const counted = sound.length > 0 ? sound : all;
  const [first] = contenders;
  const of = (round: Round, name: string): number => round.seconds.get(name) ?? NaN;
  const over = (value: (round: Round) => number): number => median(counted.map(value));
  return {
    seconds: new Map(contenders.map(({ name }) => [name, over((round) => of(round, name))])),
    ratios: new Map(
      contenders.map(({ name }) => [
        name,
        over((round) => of(round, name) / of(round, first.name)),
      ]),
    ),
    rounds: sound.length,
    rejected: all.length - sound.length,
    peak: median(counted.flatMap(({ peaks }) => peaks)),
  };
}

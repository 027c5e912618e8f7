// One of several processes that share a corpus without talking to each other: which parts are whose
// follows from the numbers alone.
import { SiglipError } from '../errors';

/** One of `count` shards; `index` counts from 0, as the text `i/n` does not: that is from 1. */
export interface Shard {
  readonly index: number;
  readonly count: number;
}

/** The whole corpus. */
export const WHOLE: Shard = { index: 0, count: 1 };

// As many as the widest job arrays have.
const MAX_SHARDS = 1_000_000;

/**
 * The shard that owns a part. With as many sources as shards or more, a source is read by one shard
 * alone; else the parts of every source go round.
 */
export function owns(shard: Shard, sources: number, source: number, block: number): boolean {
  const turn = sources >= shard.count ? source : source + block;
  return turn % shard.count === shard.index;
}

/**
 * Reads `i/n`, i from 1 to n, or `auto`: what Slurm or Kubernetes says of this process.
 *
 * `auto` takes `JOB_COMPLETION_INDEX` of an indexed Kubernetes job, with the number of completions in
 * `shards` or `JOB_COMPLETIONS`; or Slurm's array task and, within it, `SLURM_PROCID` of
 * `SLURM_NTASKS`.
 *
 * @param shards - the number of shards where the surroundings do not say it
 * @throws SiglipError ERR_ARGUMENT
 */
export function parseShard(
  text: string,
  environment: Readonly<Record<string, string | undefined>>,
  shards?: number,
): Shard {
  if (text === 'auto') return fromEnvironment(environment, shards);
  const match = /^(\d+)\/(\d+)$/u.exec(text);
  const [index, count] = match === null ? [NaN, NaN] : [Number(match[1]) - 1, Number(match[2])];
  return checked({ index, count }, text);
}

function checked(shard: Shard, got: string): Shard {
  const { index, count } = shard;
  const sound = Number.isSafeInteger(index) && index >= 0 && index < count && count <= MAX_SHARDS;
  if (sound) return shard;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `embed: --shard must be i/n with i from 1 to n (at most ${String(MAX_SHARDS)}) or auto, got ${got}`,
  );
}

function fromEnvironment(
  environment: Readonly<Record<string, string | undefined>>,
  shards: number | undefined,
): Shard {
  const number = (name: string): number | undefined => {
    const text = environment[name];
    if (text === undefined || text === '') return undefined;
    if (/^\d+$/u.test(text)) return Number(text);
    throw new SiglipError('ERR_ARGUMENT', `embed: ${name} must be a whole number, got ${text}`);
  };
  const completion = number('JOB_COMPLETION_INDEX');
  if (completion !== undefined) {
    const count = shards ?? number('JOB_COMPLETIONS');
    if (count === undefined) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        'embed: JOB_COMPLETION_INDEX must come with a number of completions, got none\n' +
          'to do: give --shards <n> or set JOB_COMPLETIONS to what .spec.completions says.',
      );
    }
    return checked(
      { index: completion, count },
      `JOB_COMPLETION_INDEX ${String(completion)} of ${String(count)}`,
    );
  }
  const task = number('SLURM_ARRAY_TASK_ID');
  const process = number('SLURM_PROCID');
  if (task === undefined && process === undefined) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      'embed: --shard auto must find SLURM_PROCID, SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX, got none of them',
    );
  }
  const least = number('SLURM_ARRAY_TASK_MIN') ?? 0;
  const step = number('SLURM_ARRAY_TASK_STEP') ?? 1;
  const array =
    task === undefined
      ? WHOLE
      : { index: (task - least) / step, count: number('SLURM_ARRAY_TASK_COUNT') ?? shards ?? NaN };
  const within =
    process === undefined
      ? WHOLE
      : { index: process, count: number('SLURM_NTASKS') ?? number('SLURM_NPROCS') ?? 1 };
  const got = `array task ${String(task)} and process ${String(process)} of Slurm`;
  const { index, count } = checked(within, got);
  checked(array, got);
  return checked({ index: array.index * count + index, count: array.count * count }, got);
}

/** `2-of-3`, for names. */
export function shardName({ index, count }: Shard): string {
  return `${String(index + 1)}-of-${String(count)}`;
}

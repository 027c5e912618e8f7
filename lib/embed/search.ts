// Writing a sequence token by token: the likeliest token each time (greedy), the likeliest sequences kept
// alive (beam search), or a draw (temperature, and of the likeliest tokens alone: nucleus sampling,
// arXiv 1904.09751). Knows tokens and logits, and of the decoder nothing more.
import { Philox4x32 } from '../array/random';

/** How a sequence is chosen. */
export interface SearchOptions {
  /** Sequences kept alive. Default 1. More than one needs temperature 0. */
  readonly beams?: number;
  /** 0 (default) takes the likeliest; else tokens are drawn with logits divided by it. */
  readonly temperature?: number;
  /** Draws from the fewest likeliest tokens whose probabilities add up to this. Default 1, all. */
  readonly topP?: number;
  /** Of the draws, an integer from 0 to 2^53 − 1. Default 0. */
  readonly seed?: number;
}

/** A sequence that was found. */
export interface FoundSequence {
  /** Tokens, without the one that ends it. */
  readonly ids: readonly number[];
  /** Natural logarithm of its probability, the end included where it ended. */
  readonly logProbability: number;
}

/**
 * Logits of the next token of every live sequence, row by row.
 *
 * @param tokens - the newest token of each; none for the first call
 * @param parents - which sequence of the call before each of them continues
 */
export type NextLogits = (
  tokens: readonly number[],
  parents: readonly number[],
) => Promise<Float32Array>;

/** log softmax of a row. */
export function logSoftmax(logits: Float32Array): Float64Array {
  let max = -Infinity;
  for (const value of logits) max = Math.max(max, value);
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - max);
  const shift = max + Math.log(sum);
  return Float64Array.from(logits, (value) => value - shift);
}

interface Beam {
  readonly ids: readonly number[];
  readonly logProbability: number;
}

/** Indices of the `count` largest values, the largest first, equal ones in their order. */
function largest(values: Float64Array, count: number): number[] {
  const best: number[] = [];
  values.forEach((value, i) => {
    if (best.length === count && !(value > values[best[count - 1]])) return;
    let at = best.length;
    while (at > 0 && value > values[best[at - 1]]) at--;
    best.splice(at, 0, i);
    if (best.length > count) best.pop();
  });
  return best;
}

/** The likeliest sequence among those that `beams` at a time can reach; with one beam, the greedy one. */
async function beamSearch(
  next: NextLogits,
  end: number,
  limit: number,
  beams: number,
): Promise<FoundSequence> {
  let live: readonly Beam[] = [{ ids: [], logProbability: 0 }];
  let parents: readonly number[] = [0];
  let best: FoundSequence | undefined;
  for (let step = 0; step < limit && live.length > 0; step++) {
    const logits = await next(
      live.flatMap(({ ids }) => ids.slice(-1)),
      parents,
    );
    const vocabulary = logits.length / live.length;
    const candidates = live.flatMap((beam, parent) => {
      const scores = logSoftmax(logits.subarray(parent * vocabulary, (parent + 1) * vocabulary));
      return largest(scores, beams + 1).map((token) => ({
        token,
        parent,
        logProbability: beam.logProbability + scores[token],
      }));
    });
    candidates.sort((a, b) => b.logProbability - a.logProbability);
    // Ends count that are as likely as what is kept, so that one beam is the greedy sequence.
    const ended = candidates.slice(0, beams).find(({ token }) => token === end);
    if (
      ended !== undefined &&
      !(best !== undefined && best.logProbability >= ended.logProbability)
    ) {
      best = { ids: live[ended.parent].ids, logProbability: ended.logProbability };
    }
    // A sequence only gets less likely, so that those below the best that ended are out.
    const floor = best?.logProbability ?? -Infinity;
    const kept = candidates
      .filter(({ token, logProbability }) => token !== end && logProbability > floor)
      .slice(0, beams);
    parents = kept.map(({ parent }) => parent);
    live = kept.map(({ token, parent, logProbability }) => ({
      ids: [...live[parent].ids, token],
      logProbability,
    }));
  }
  const [first] = live;
  if (best === undefined) return first;
  return live.length > 0 && first.logProbability > best.logProbability ? first : best;
}

/** A token drawn from log probabilities; see {@link SearchOptions}. */
function drawToken(
  scores: Float64Array,
  { temperature, topP }: { temperature: number; topP: number },
  random: Philox4x32,
): number {
  const scaled = logSoftmax(Float32Array.from(scores, (score) => score / temperature));
  const order = Array.from(scaled.keys()).sort((a, b) => scaled[b] - scaled[a]);
  let total = 0;
  let count = 0;
  while (count < order.length && (count === 0 || total < topP)) {
    total += Math.exp(scaled[order[count]]);
    count++;
  }
  let left = random.uniform() * total;
  for (const token of order.slice(0, count)) {
    left -= Math.exp(scaled[token]);
    if (left < 0) return token;
  }
  return order[count - 1];
}

async function sample(
  next: NextLogits,
  end: number,
  limit: number,
  options: { temperature: number; topP: number; seed: number },
): Promise<FoundSequence> {
  const random = new Philox4x32(options.seed, 'search');
  const ids: number[] = [];
  let logProbability = 0;
  for (let step = 0; step < limit; step++) {
    const scores = logSoftmax(await next(ids.slice(-1), [0]));
    const token = drawToken(scores, options, random);
    logProbability += scores[token];
    if (token === end) break;
    ids.push(token);
  }
  return { ids, logProbability };
}

/**
 * Finds a sequence.
 *
 * @param end - the token that ends one
 * @param limit - most tokens
 */
export function search(
  next: NextLogits,
  end: number,
  limit: number,
  { beams = 1, temperature = 0, topP = 1, seed = 0 }: SearchOptions,
): Promise<FoundSequence> {
  return temperature > 0
    ? sample(next, end, limit, { temperature, topP, seed })
    : beamSearch(next, end, limit, beams);
}

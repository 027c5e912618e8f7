// Pairs of a mixture, one draw after another: which stream, which of its rows, which of the row's
// texts. A draw is a function of the seed, the rank and its number.
import { z } from 'zod';
import { Philox4x32 } from '../array/random';
import type { Row, RowFailure } from '../corpus';
import { digest } from '../corpus';
import { SiglipError } from '../errors';
import { checked } from '../weights/json_file';
import type { Mixture, RowCondition, WeightedStream } from './mixture';
import { checkMixture } from './mixture';
import type { PairRow } from './pair_row';
import { openPairCorpus } from './pair_corpus';
import { pairOf } from './pair_row';
import type { Rank, RowPosition } from './row_stream';
import { RowStream } from './row_stream';
import { textOf } from '../corpus/record';
import type { StreamState } from './stream';

export interface PairStreamOptions extends Partial<Rank> {
  /** Paths start from the working directory; those of `readMixture` are whole. */
  readonly mixture: Mixture;
  /** Integer from 0 to 2^53 − 1. Default 0. */
  readonly seed?: number | undefined;
  /** Rows of a stream that are read and permuted together, encoded images included. Default 1024. */
  readonly buffer?: number | undefined;
}

/** A pair as it was drawn. */
export interface DrawnPair {
  /** Name of the stream it is from. */
  readonly stream: string;
  readonly source: string;
  /** Row of the source, from 0. */
  readonly row: number;
  readonly id: string;
  /** The pair, or why there is none. */
  readonly pair: (PairRow & { readonly text: string; readonly pixelBoxes: boolean }) | undefined;
  readonly failure: RowFailure | undefined;
  /** Position after this draw. */
  readonly state: StreamState;
}

interface OpenStream {
  readonly definition: WeightedStream;
  readonly rows: RowStream;
}

const count = z.int('a count').nonnegative('a count');

const STATE = z.strictObject(
  {
    mixture: z.string('a fingerprint'),
    draws: count,
    streams: z.array(
      z.strictObject({ epoch: count, file: count, row: count, taken: count }, 'a position'),
      'a list of positions',
    ),
  },
  'the position of a mixture',
);

/** Words of random numbers that a draw has to itself. */
const WORDS_PER_DRAW = 4;

/** Endless pairs of a mixture; see {@link RowStream} for the order within each of its streams. */
export class PairStream {
  private readonly random: Philox4x32;
  private readonly total: number;
  private draws = 0;
  private positions: readonly RowPosition[];

  private constructor(
    private readonly mixture: Mixture,
    private readonly streams: readonly OpenStream[],
    private readonly fingerprint: string,
    random: Philox4x32,
  ) {
    this.random = random;
    this.total = streams.reduce((sum, { definition }) => sum + definition.weight, 0);
    this.positions = streams.map(({ rows }) => rows.position());
  }

  /**
   * Opens the corpora.
   *
   * @throws ERR_CONFIG for a mixture that is none or inputs that hold no pairs; ERR_ARGUMENT for an
   * option outside its domain; ERR_FILE, ERR_DATA for files that cannot be read
   */
  static async open(options: PairStreamOptions): Promise<PairStream> {
    const { seed = 0, rank = 0, ranks = 1, buffer = 1024 } = options;
    const mixture = checkMixture(options.mixture);
    expectInteger('ranks', ranks, 1);
    expectInteger('rank', rank, 0, ranks - 1);
    expectInteger('buffer', buffer, 1);
    const random = new Philox4x32(seed, `draws of rank ${String(rank)}`);
    const parts = [JSON.stringify([seed, rank, ranks, buffer])];
    const streams: OpenStream[] = [];
    for (const definition of mixture.streams) {
      const { name, where } = definition;
      const corpus = mixture.corpora[definition.corpus];
      const sources = await openPairCorpus(definition.corpus, corpus, where?.field);
      parts.push(JSON.stringify(definition), ...sources.map((source) => source.fingerprint));
      const rows = new RowStream({
        name,
        sources,
        accepts: (row) => where === undefined || meets(row, where),
        seed,
        rank,
        ranks,
        buffer,
      });
      streams.push({ definition, rows });
    }
    return new PairStream(mixture, streams, digest(parts).slice(0, 16), random);
  }

  async next(): Promise<DrawnPair> {
    this.random.position = this.draws * WORDS_PER_DRAW;
    const which = this.draw();
    const { definition, rows } = this.streams[which];
    const { source, row } = await rows.next();
    const choice = this.random.uniform();
    this.draws++;
    this.positions = this.positions.map((position, i) =>
      i === which ? rows.position() : position,
    );
    const corpus = this.mixture.corpora[definition.corpus];
    const found = pairOf(row, corpus);
    const drawn = {
      stream: definition.name,
      source,
      row: row.index,
      id: row.id,
      state: this.state(),
    };
    if ('reason' in found) return { ...drawn, pair: undefined, failure: found };
    const text = found.texts[Math.floor(choice * found.texts.length)];
    const pixelBoxes = corpus.boxes === 'pixels';
    return { ...drawn, pair: { ...found, text, pixelBoxes }, failure: undefined };
  }

  private draw(): number {
    let left = this.random.uniform(0, this.total);
    let which = 0;
    while (which < this.streams.length - 1 && left >= this.streams[which].definition.weight) {
      left -= this.streams[which++].definition.weight;
    }
    return which;
  }

  /** Position after the last pair that `next` gave. */
  state(): StreamState {
    const streams = this.positions.map((position) => ({ ...position }));
    return { mixture: this.fingerprint, draws: this.draws, streams };
  }

  /** @throws ERR_DATA when the state is of another mixture, seed, rank or number of ranks */
  async restore(state: unknown): Promise<void> {
    const { mixture, draws, streams } = checked(STATE, state, 'mixture: state', 'ERR_DATA');
    if (mixture !== this.fingerprint || streams.length !== this.streams.length) {
      throw new SiglipError(
        'ERR_DATA',
        `mixture: state must be of this mixture, its files, seed, ranks and buffer ` +
          `(${this.fingerprint}), got one of ${mixture}`,
      );
    }
    for (const [i, { rows }] of this.streams.entries()) await rows.restore(streams[i]);
    this.draws = draws;
    this.positions = streams;
  }

  /** Ends what is being read. */
  async close(): Promise<void> {
    for (const { rows } of this.streams) await rows.close();
  }
}

function meets({ fields = {} }: Row, where: RowCondition): boolean {
  const value = textOf(fields[where.field]);
  const listed = value !== undefined && (where.in ?? where.notIn ?? []).includes(value);
  return where.in === undefined ? !listed : listed;
}

function expectInteger(what: string, value: number, least: number, most = Infinity): void {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return;
  const range =
    most === Infinity ? `${String(least)} or more` : `${String(least)} to ${String(most)}`;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `mixture: ${what} must be an integer, ${range}, got ${String(value)}`,
  );
}

// The rows of a corpus, epoch after epoch, shuffled in two ways: the order of the files is a
// permutation of its own in every epoch, and rows are read in blocks that are permuted whole.
//
// A block is a function of where it begins, so a position is four numbers: the place where the block
// begins (epoch, file in the epoch's order, row) and how many of its rows were taken. Restoring reads
// that one block again. The next block is read while the rows of this one are taken.
import { Philox4x32 } from '../array/random';
import type { Row, Source } from '../corpus';
import { SiglipError } from '../errors';
import { shuffle } from './shuffle';

/** Where a {@link RowStream} stands; plain JSON. */
export interface RowPosition {
  /** Passes over the corpus before this one. */
  readonly epoch: number;
  /** Where the present block begins: a file, by its place in the order of the epoch … */
  readonly file: number;
  /** … and a row of it. */
  readonly row: number;
  /** Rows of the block that were taken. */
  readonly taken: number;
}

/** One of several processes that train together, each on rows of its own. */
export interface Rank {
  /** From 0. */
  readonly rank: number;
  readonly ranks: number;
}

export interface RowStreamOptions extends Rank {
  /** Part of the seed: streams of other names are shuffled otherwise. */
  readonly name: string;
  readonly sources: readonly Source[];
  /** Which rows there are; failed ones are there in any case. */
  readonly accepts: (row: Row) => boolean;
  readonly seed: number;
  /** Rows of a block. */
  readonly buffer: number;
}

/** A row and where it is from. */
export interface StreamedRow {
  readonly source: string;
  readonly row: Row;
}

type Place = Omit<RowPosition, 'taken'>;

interface Block {
  readonly start: Place;
  /** Permuted. */
  readonly rows: readonly StreamedRow[];
  /** Where the next block begins. */
  readonly next: Place;
}

const FIRST: Place = { epoch: 0, file: 0, row: 0 };

/**
 * Endless rows of a corpus. With as many files as ranks or more, a rank reads files of its own, others
 * in every epoch; with fewer, every rank reads all files and takes every `ranks`-th row, beginning at
 * another one in the next file. In an epoch the rows of all ranks are all rows, each once. Nobody waits
 * for the others at its end: every rank draws as many examples as every other.
 */
export class RowStream {
  private block: Block | undefined;
  private taken = 0;
  private start: Place = FIRST;
  /** The next block, being read. */
  private following: Promise<Block> | undefined;
  /** Rows from the end of the block read last. */
  private reader: AsyncGenerator<StreamedRow & { readonly file: number }> | undefined;

  constructor(private readonly options: RowStreamOptions) {}

  /** @throws ERR_DATA when an epoch has no row; ERR_FILE, ERR_DATA for a file that cannot be read */
  async next(): Promise<StreamedRow> {
    this.block ??= await this.read(this.start);
    while (this.taken >= this.block.rows.length) {
      this.block = await (this.following ?? this.read(this.block.next));
      this.following = undefined;
      this.start = this.block.start;
      this.taken = 0;
    }
    if (this.following === undefined) {
      this.following = this.read(this.block.next);
      // Whoever needs the block hears of it.
      this.following.catch(() => undefined);
    }
    return this.block.rows[this.taken++];
  }

  /** After the last row that `next` gave. */
  position(): RowPosition {
    return { ...this.start, taken: this.taken };
  }

  /** Continues from a position of a stream with the same options. */
  async restore({ taken, ...start }: RowPosition): Promise<void> {
    await this.close();
    this.start = start;
    this.taken = taken;
  }

  /** Ends what is being read. Calls may follow. */
  async close(): Promise<void> {
    await this.following?.catch(() => undefined);
    await this.reader?.return(undefined);
    this.reader = undefined;
    this.following = undefined;
    this.block = undefined;
  }

  private async read(start: Place): Promise<Block> {
    const { buffer, name, rank, seed } = this.options;
    this.reader ??= this.rows(start);
    const rows: StreamedRow[] = [];
    let next: Place = start;
    while (rows.length < buffer) {
      const item = await this.reader.next();
      if (item.done === true) {
        this.reader = undefined;
        if (rows.length === 0 && start.file === 0 && start.row === 0) throw this.empty();
        next = { epoch: start.epoch + 1, file: 0, row: 0 };
        break;
      }
      const { file, source, row } = item.value;
      rows.push({ source, row });
      next = { epoch: start.epoch, file, row: row.index + 1 };
    }
    const place = [start.epoch, start.file, start.row].join(' ');
    shuffle(rows, new Philox4x32(seed, `rows of ${name}, rank ${String(rank)}: ${place}`));
    return { start, rows, next };
  }

  /** What is left of an epoch. */
  private async *rows(start: Place): AsyncGenerator<StreamedRow & { readonly file: number }> {
    const { accepts, rank, ranks } = this.options;
    const files = this.filesOf(start.epoch);
    const wholeFiles = this.options.sources.length >= ranks;
    for (let file = start.file; file < files.length; file++) {
      const from = file === start.file ? start.row : 0;
      const wanted = (index: number): boolean =>
        index >= from && (wholeFiles || (index + file) % ranks === rank);
      for await (const row of files[file].rows(wanted)) {
        if (row.failure !== undefined || accepts(row)) {
          yield { file, source: files[file].name, row };
        }
      }
    }
  }

  /** The files of this rank in the order of an epoch. */
  private filesOf(epoch: number): readonly Source[] {
    const { name, rank, ranks, seed, sources } = this.options;
    const order = [...sources];
    shuffle(order, new Philox4x32(seed, `files of ${name}: ${String(epoch)}`));
    return order.length >= ranks ? order.filter((_, place) => place % ranks === rank) : order;
  }

  private empty(): SiglipError {
    const { name, rank, ranks } = this.options;
    const who = ranks === 1 ? name : `${name}, rank ${String(rank + 1)} of ${String(ranks)},`;
    return new SiglipError(
      'ERR_DATA',
      `mixture: stream ${who} must have rows, got none in a whole epoch`,
    );
  }
}

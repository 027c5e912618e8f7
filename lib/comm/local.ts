// Ranks within one process: for several devices that one program drives, and for all that has to be
// tried without a launcher. Each rank is an asynchronous flow of its own.
import type { HostArray } from '../array';
import { SiglipError } from '../errors';
import type { Communicator, Message } from './communicator';
import { startsOf } from './communicator';

/** The communicators of `size` ranks of this process, rank 0 first. @throws ERR_ARGUMENT */
export function localRanks(size: number): Communicator[] {
  if (!Number.isSafeInteger(size) || size < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `localRanks: size must be a positive integer, got ${String(size)}`,
    );
  }
  const place = new MeetingPlace(size);
  return Array.from({ length: size }, (_, rank) => new LocalCommunicator(place, rank));
}

interface Waiting {
  readonly resolve: () => void;
  readonly reject: (error: SiglipError) => void;
}

/** An operation for which some ranks have come and others have not. */
interface Meeting {
  readonly name: string;
  readonly arrays: (readonly HostArray[] | undefined)[];
  readonly waiting: Waiting[];
}

interface Delivery extends Waiting {
  readonly data: HostArray;
}

class MeetingPlace {
  private readonly meetings = new Map<number, Meeting>();
  private readonly sent = new Map<string, Delivery[]>();
  private readonly awaited = new Map<string, Delivery[]>();
  private readonly open: (Waiting | Delivery)[] = [];
  private failure: SiglipError | undefined;

  constructor(readonly size: number) {}

  /** The `turn`-th collective operation of a rank; `finish` sees the arrays of all when all are here. */
  meet(
    turn: number,
    rank: number,
    name: string,
    arrays: readonly HostArray[],
    finish: (all: readonly (readonly HostArray[])[]) => void,
  ): Promise<void> {
    return this.promise((waiting) => {
      const meeting: Meeting = this.meetings.get(turn) ?? {
        name,
        arrays: Array.from({ length: this.size }, () => undefined),
        waiting: [],
      };
      this.meetings.set(turn, meeting);
      if (meeting.name !== name) {
        this.fail(
          new SiglipError(
            'ERR_COMM',
            `comm: ${name} of rank ${String(rank)} must be what the other ranks call, which is ${meeting.name}`,
          ),
        );
        return;
      }
      meeting.arrays[rank] = arrays;
      meeting.waiting.push(waiting);
      if (meeting.waiting.length < this.size) return;
      this.meetings.delete(turn);
      try {
        finish(meeting.arrays.map((given) => given ?? []));
      } catch (error) {
        // What one rank gave does not fit what the others did: nobody can go on.
        this.fail(
          error instanceof SiglipError
            ? error
            : new SiglipError('ERR_COMM', `comm: ${String(error)}`),
        );
        return;
      }
      for (const each of meeting.waiting) each.resolve();
    });
  }

  send(from: number, { rank: to, data }: Message): Promise<void> {
    return this.deliver(`${String(from)} ${String(to)}`, data, this.sent, this.awaited);
  }

  receive(to: number, { rank: from, data }: Message): Promise<void> {
    return this.deliver(`${String(from)} ${String(to)}`, data, this.awaited, this.sent);
  }

  fail(error: SiglipError): void {
    this.failure ??= error;
    for (const waiting of this.open.splice(0)) waiting.reject(this.failure);
  }

  private deliver(
    lane: string,
    data: HostArray,
    own: Map<string, Delivery[]>,
    others: Map<string, Delivery[]>,
  ): Promise<void> {
    return this.promise((waiting) => {
      const other = others.get(lane)?.shift();
      if (other === undefined) {
        own.set(lane, [...(own.get(lane) ?? []), { ...waiting, data }]);
        return;
      }
      const [from, to] = own === this.sent ? [data, other.data] : [other.data, data];
      expectSame('a message', to.byteLength, from.byteLength);
      bytesOf(to).set(bytesOf(from));
      other.resolve();
      waiting.resolve();
    });
  }

  private promise(begin: (waiting: Waiting) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.failure !== undefined) {
        reject(this.failure);
        return;
      }
      const waiting: Waiting = { resolve, reject };
      this.open.push(waiting);
      begin({
        resolve: () => {
          this.open.splice(this.open.indexOf(waiting), 1);
          resolve();
        },
        reject,
      });
    });
  }
}

function bytesOf(data: HostArray): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function expectSame(what: string, expected: number, got: number): void {
  if (expected === got) return;
  throw new SiglipError(
    'ERR_SHAPE',
    `comm: ${what} must have ${String(expected)} bytes, got ${String(got)}`,
  );
}

function addInto(sum: Float32Array, x: Float32Array): void {
  for (let i = 0; i < sum.length; i++) sum[i] += x[i];
}

class LocalCommunicator implements Communicator {
  private turn = 0;
  private closed = false;

  constructor(
    private readonly place: MeetingPlace,
    readonly rank: number,
  ) {}

  get size(): number {
    return this.place.size;
  }

  async barrier(): Promise<void> {
    await this.meet('barrier', [], () => undefined);
  }

  async allGather<A extends HostArray>(part: A, counts: readonly number[], into: A): Promise<void> {
    const starts = startsOf(counts);
    expectSame('part', counts[this.rank] * part.BYTES_PER_ELEMENT, part.byteLength);
    expectSame('into', starts[this.size] * part.BYTES_PER_ELEMENT, into.byteLength);
    await this.meet('allGather', [part, into], (all) => {
      for (const [, gathered] of all) {
        for (const [r, [given]] of all.entries()) gathered.set(given, starts[r]);
      }
    });
  }

  async allReduce(data: Float32Array): Promise<void> {
    await this.meet('allReduce', [data], (all) => {
      const sum = sumOf(all.map(([given]) => given as Float32Array));
      for (const [given] of all) given.set(sum);
    });
  }

  async reduceScatter(
    data: Float32Array,
    counts: readonly number[],
    into: Float32Array,
  ): Promise<void> {
    const starts = startsOf(counts);
    expectSame('data', starts[this.size] * 4, data.byteLength);
    expectSame('into', counts[this.rank] * 4, into.byteLength);
    await this.meet('reduceScatter', [data, into], (all) => {
      const sum = sumOf(all.map(([given]) => given as Float32Array));
      for (const [r, [, own]] of all.entries()) own.set(sum.subarray(starts[r], starts[r + 1]));
    });
  }

  async broadcast(data: HostArray, root: number): Promise<void> {
    this.expectRank(root);
    await this.meet('broadcast', [data], (all) => {
      for (const [given] of all) given.set(all[root][0]);
    });
  }

  async exchange(sends: readonly Message[], receives: readonly Message[]): Promise<void> {
    this.expectOpen();
    for (const { rank } of [...sends, ...receives]) this.expectRank(rank);
    await Promise.all([
      ...sends.map((message) => this.place.send(this.rank, message)),
      ...receives.map((message) => this.place.receive(this.rank, message)),
    ]);
  }

  abort(reason: unknown): void {
    const text = reason instanceof Error ? reason.message : String(reason);
    this.place.fail(
      new SiglipError('ERR_COMM', `comm: rank ${String(this.rank)} ended the job: ${text}`, {
        cause: reason,
      }),
    );
  }

  async close(): Promise<void> {
    await this.meet('close', [], () => undefined);
    this.closed = true;
  }

  private async meet(
    name: string,
    arrays: readonly HostArray[],
    finish: (all: readonly (readonly HostArray[])[]) => void,
  ): Promise<void> {
    this.expectOpen();
    await this.place.meet(this.turn++, this.rank, name, arrays, finish);
  }

  private expectOpen(): void {
    if (this.closed) {
      throw new SiglipError('ERR_DISPOSED', 'comm: it must be open, got a closed one');
    }
  }

  private expectRank(rank: number): void {
    if (Number.isSafeInteger(rank) && rank >= 0 && rank < this.size) return;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `comm: rank must be below ${String(this.size)}, got ${String(rank)}`,
    );
  }
}

// ((x_0 + x_1) + x_2) + … in float32.
function sumOf(parts: readonly Float32Array[]): Float32Array {
  const sum = Float32Array.from(parts[0]);
  for (const part of parts.slice(1)) {
    expectSame('data', sum.byteLength, part.byteLength);
    addInto(sum, part);
  }
  return sum;
}

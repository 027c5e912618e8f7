// What NCCL's calls are defined to do, between ranks of one process on arrays of the CPU: for trying the
// calls that collectives come to where there is no GPU.
import type { NativeNccl, NativePlace, NativeTransfer } from '../../lib/native/addon';

interface Group {
  readonly transfers: readonly NativeTransfer[];
  readonly done: (error?: Error) => void;
}

async function read({ buffer, offset }: NativePlace, bytes: number): Promise<Uint8Array> {
  const data = new Uint8Array(bytes);
  await buffer.read(offset, data);
  return data;
}

function some(place: NativePlace | null): NativePlace {
  if (place === null) throw new Error('a place must be there');
  return place;
}

/** ((x_0 + x_1) + x_2) + … */
function sum(parts: readonly Uint8Array[]): Uint8Array {
  const [total, ...others] = parts.map((part) => new Float32Array(part.slice().buffer));
  for (const part of others) part.forEach((x, i) => (total[i] += x));
  return new Uint8Array(total.buffer);
}

/** Ranks that NCCL connects. */
export class EmulatedNccl {
  private readonly groups: Group[][] = [];
  /** Kinds of the calls of rank 0. */
  readonly calls: string[] = [];

  constructor(private readonly size: number) {}

  rank(rank: number): NativeNccl {
    let turn = 0;
    return {
      open: () => Promise.resolve(),
      close: () => Promise.resolve(),
      abort: () => undefined,
      run: (_, transfers) => {
        const mine = turn++;
        if (rank === 0) this.calls.push(...transfers.map(({ kind }) => kind));
        return new Promise((resolve, reject) => {
          const group = (this.groups[mine] ??= []);
          group[rank] = {
            transfers,
            done: (error) => {
              if (error === undefined) resolve();
              else reject(error);
            },
          };
          if (Object.keys(group).length < this.size) return;
          this.work(group).then(
            () => {
              for (const { done } of group) done();
            },
            (error: unknown) => {
              for (const { done } of group) done(error as Error);
            },
          );
        });
      },
    };
  }

  private async work(group: readonly Group[]): Promise<void> {
    const collectives = group.map(({ transfers }) =>
      transfers.filter(({ kind }) => kind !== 'send' && kind !== 'receive'),
    );
    for (const [i, call] of collectives[0].entries()) {
      const all = collectives.map((of) => of[i]);
      for (const other of all) {
        const same =
          other.kind === call.kind && other.count === call.count && other.peer === call.peer;
        if (!same) throw new Error(`${other.kind} must be the ${call.kind} of the other ranks`);
      }
      await this.collective(all);
    }
    await this.messages(group);
  }

  private async collective(all: readonly NativeTransfer[]): Promise<void> {
    const [{ kind, count, peer }] = all;
    const inputs = (bytes: number): Promise<Uint8Array[]> =>
      Promise.all(all.map(({ from }) => read(some(from), bytes)));
    const put = (rank: number, data: Uint8Array): void => {
      const { buffer, offset } = some(all[rank].into);
      buffer.write(offset, data);
    };
    const bytes = 4 * count;
    switch (kind) {
      case 'allReduce': {
        const total = sum(await inputs(bytes));
        all.forEach((_, rank) => {
          put(rank, total);
        });
        return;
      }
      case 'reduce':
        put(peer, sum(await inputs(bytes)));
        return;
      case 'reduceScatter': {
        const total = sum(await inputs(bytes * this.size));
        all.forEach((_, rank) => {
          put(rank, total.subarray(bytes * rank, bytes * (rank + 1)));
        });
        return;
      }
      case 'allGather': {
        const parts = Buffer.concat(await inputs(count));
        all.forEach((_, rank) => {
          put(rank, parts);
        });
        return;
      }
      case 'broadcast': {
        const data = await read(some(all[peer].from), count);
        all.forEach((_, rank) => {
          put(rank, data);
        });
        return;
      }
      case 'send':
      case 'receive':
        throw new Error(`${kind} is no collective`);
    }
  }

  private async messages(group: readonly Group[]): Promise<void> {
    for (const [to, { transfers }] of group.entries()) {
      for (const [from, sender] of group.entries()) {
        const sends = sender.transfers.filter(({ kind, peer }) => kind === 'send' && peer === to);
        const receives = transfers.filter(({ kind, peer }) => kind === 'receive' && peer === from);
        if (sends.length !== receives.length) throw new Error('a send must have its receive');
        for (const [i, send] of sends.entries()) {
          if (send.count !== receives[i].count) throw new Error('a message must have one length');
          const { buffer, offset } = some(receives[i].into);
          buffer.write(offset, await read(some(send.from), send.count));
        }
      }
    }
  }
}

// A run over ranks is the run of one rank, to rounding; and every rank has the same bits.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { localRanks } from '../../lib/comm';
import type { StreamState } from '../../lib/data';
import { loadAddon } from '../../lib/native/load';
import type { RanksConfig, TrainerConfig } from '../../lib/train';
import { readMetrics } from '../../lib/train';
import { describeMpi, mpirun } from '../comm/mpirun';
import { failure } from '../failure';
import type { NoiseRun } from './noise_run';
import { noiseRun, steps } from './noise_run';
import { expectGivenBack } from '../memory';

let folders: string[] = [];

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-over-ranks-'));
  folders.push(folder);
  return folder;
}

afterEach(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
  folders = [];
});

type Way = Omit<RanksConfig, 'comm'>;

async function onRanks(
  size: number,
  folder: string,
  way: Way = {},
  until = steps,
  changes: Partial<TrainerConfig> = {},
): Promise<NoiseRun> {
  const runs = await Promise.all(
    localRanks(size).map((comm) => noiseRun(folder, { comm, ...way }, until, changes)),
  );
  const [first] = runs;
  for (const { metrics, parameters } of runs) {
    const numbers = (all: NoiseRun['metrics']): object[] =>
      all.map((line) => ({ ...line, pairsPerSecond: 0, dataShare: 0 }));
    expect(numbers(metrics)).toEqual(numbers(first.metrics));
    if (parameters.size > 0) expect(parameters).toEqual(first.parameters);
  }
  return first;
}

const scalars = ['loss', 'gradientNorm', 'updateNorm', 'parameterNorm', 'logitBias'] as const;

function expectSameRun(actual: NoiseRun['metrics'], expected: NoiseRun['metrics']): void {
  expect(actual.map(({ step }) => step)).toEqual(expected.map(({ step }) => step));
  for (const [i, line] of actual.entries()) {
    for (const name of scalars) {
      const bar = 2e-5 * Math.max(1, Math.abs(expected[i][name]));
      expect(Math.abs(line[name] - expected[i][name])).toBeLessThan(bar);
    }
  }
}

const ways: readonly (readonly [string, Way])[] = [
  ['gather', {}],
  ['ring', { exchange: 'ring' }],
  ['both ways round, sharded moments', { exchange: 'twoWayRing', shard: 'optimizer' }],
  ['sharded parameters', { shard: 'parameters', partBytes: 1 }],
];

describe.each(ways)('%s', (_, way) => {
  test.each([1, 2, 3, 4])('%d ranks: the losses of one', async (size) => {
    const alone = await noiseRun(newFolder());
    expectSameRun((await onRanks(size, newFolder(), way)).metrics, alone.metrics);
  });

  test('from 2 ranks to 1 and back to 2: the same run', async () => {
    const alone = await noiseRun(newFolder());
    const folder = newFolder();
    const first = await onRanks(2, folder, way, 2);
    const second = await noiseRun(folder, undefined, 4);
    const third = await onRanks(2, folder, way);
    expectSameRun([...first.metrics, ...second.metrics, ...third.metrics], alone.metrics);
    expect(readMetrics(join(folder, 'metrics.jsonl'))).toHaveLength(steps);
  });

  test('the same run again gives the same bits', async () => {
    const once = await onRanks(3, newFolder(), way);
    expect((await onRanks(3, newFolder(), way)).parameters).toEqual(once.parameters);
  });

  // Of the 5 and 4, or 3, 3 and 3, or 3, 2, 2 and 2 pairs of a rank.
  test.each([
    [1, 3],
    [2, 3],
    [3, 1],
    [4, 1],
  ])('%d ranks in micro-batches of %d: the losses of one', async (size, microBatch) => {
    const alone = await noiseRun(newFolder());
    const before = loadAddon().memory();
    const split = await onRanks(size, newFolder(), way, steps, { microBatch });
    expectSameRun(split.metrics, alone.metrics);
    const again = await onRanks(size, newFolder(), way, steps, { microBatch });
    expect(again.parameters).toEqual(split.parameters);
    expectGivenBack(before);
  });
});

test('gives back all memory', async () => {
  const before = loadAddon().memory();
  await onRanks(2, newFolder(), { shard: 'optimizer' });
  await onRanks(2, newFolder());
  expectGivenBack(before);
});

test('checkpoints with sharded moments are those without', async () => {
  const [sharded, whole] = [newFolder(), newFolder()];
  await onRanks(3, sharded, { shard: 'optimizer' }, 3);
  await onRanks(3, whole, {}, 3);
  const continued = await noiseRun(sharded);
  expectSameRun(continued.metrics, (await noiseRun(whole)).metrics);
  expect(readdirSync(join(sharded, 'checkpoints'))).toEqual(
    readdirSync(join(whole, 'checkpoints')),
  );
});

test('batches whose losses are averaged are refused', async () => {
  const [comm] = localRanks(1);
  const run = noiseRun(newFolder(), { comm }, steps, { microBatches: 2 });
  expect((await failure(run)).message).toMatch(/microBatches must be 1 over ranks/);
});

test('streams that stand elsewhere on every rank go on where they were, on as many ranks', async () => {
  const folder = newFolder();
  const restored: unknown[] = [];
  const run = (size: number, until: number): Promise<NoiseRun[]> =>
    Promise.all(
      localRanks(size).map((comm) =>
        noiseRun(folder, { comm }, until, {}, undefined, (own) => ({
          next: () => own.next(),
          state: () => ({ of: comm.rank, own: own.state() }),
          restore: (state) => {
            const { of, own: inner } = state as { of: number; own: StreamState };
            restored[comm.rank] = of;
            return own.restore(inner);
          },
          close: () => own.close(),
        })),
      ),
    );
  await run(2, 2);
  await run(2, 4);
  expect(restored).toEqual([0, 1]);
  const refused = await failure(run(3, steps));
  expect(refused.code).toBe('ERR_CONFIG');
  expect(refused.message).toMatch(/ranks must be the 2 whose data .* got 3/u);
});

describeMpi('jobs', () => {
  const train = async (ranks: number, folder: string, ...options: string[]): Promise<void> => {
    const end = await mpirun(ranks, 'test/train/over_ranks_child.ts', [folder, ...options]);
    expect({ status: end.status, stderr: end.stderr }).toEqual({ status: 0, stderr: '' });
  };

  test('1, 2, 3 and 4 ranks: the losses of one process', async () => {
    const alone = await noiseRun(newFolder());
    for (const [ranks, ...options] of [
      ['1'],
      ['2', 'parameters'],
      ['3', 'optimizer'],
      ['4', 'none', 'ring'],
    ]) {
      const folder = newFolder();
      await train(Number(ranks), folder, String(steps), ...options);
      expectSameRun(readMetrics(join(folder, 'metrics.jsonl')), alone.metrics);
    }
  });

  test('from 2 ranks to 1 and back to 2: the same run', async () => {
    const alone = await noiseRun(newFolder());
    const folder = newFolder();
    await train(2, folder, '2', 'optimizer');
    await train(1, folder, '4');
    await train(2, folder, String(steps), 'parameters');
    expectSameRun(readMetrics(join(folder, 'metrics.jsonl')), alone.metrics);
  });

  test('a rank that is killed ends the job, and fewer continue it', async () => {
    const alone = await noiseRun(newFolder());
    const folder = newFolder();
    const end = await mpirun(3, 'test/train/over_ranks_child.ts', [
      ...[folder, String(steps), 'optimizer', 'gather', '3'],
    ]);
    expect(end.status).not.toBe(0);
    expect(end.stderr).toMatch(/signal 9/);
    expect(end.seconds).toBeLessThan(60);
    await train(2, folder, String(steps));
    expectSameRun(readMetrics(join(folder, 'metrics.jsonl')), alone.metrics);
  });
});

import { evenParts, launchedRank, localRanks, startsOf } from '../../lib/comm';
import { failure } from '../failure';
import { describeMpi, mpirun } from './mpirun';
import { tryOperations } from './ranks';

describe('ranks of one process', () => {
  test.each([1, 2, 3, 4, 5, 8])('%d ranks: every operation', async (size) => {
    await Promise.all(localRanks(size).map((comm) => tryOperations(comm, 2000)));
  });

  test('a rank that gives up ends the others with its reason', async () => {
    const [a, b] = localRanks(2);
    const waiting = failure(a.barrier());
    b.abort(new Error('out of patience'));
    const { code, message } = await waiting;
    expect(code).toBe('ERR_COMM');
    expect(message).toBe('comm: rank 1 ended the job: out of patience');
    expect((await failure(b.barrier())).code).toBe('ERR_COMM');
  });

  test('ranks that do different things are told so', async () => {
    const [a, b] = localRanks(2);
    const waiting = failure(a.allReduce(new Float32Array(1)));
    expect((await failure(b.barrier())).message).toMatch(
      /barrier of rank 1 must be what the other ranks call, which is allReduce/,
    );
    expect((await waiting).code).toBe('ERR_COMM');
  });

  test('lengths that differ end all', async () => {
    const ranks = localRanks(3);
    const all = ranks.map((comm) => failure(comm.allReduce(new Float32Array(1 + comm.rank))));
    for (const { code } of await Promise.all(all)) expect(code).toBe('ERR_SHAPE');
  });

  test('arguments that cannot be are refused', async () => {
    const [comm] = localRanks(1);
    const three = new Float32Array(3);
    expect((await failure(comm.broadcast(three, 1))).code).toBe('ERR_ARGUMENT');
    expect((await failure(comm.allGather(three, [2], three))).code).toBe('ERR_SHAPE');
    await comm.close();
    expect((await failure(comm.barrier())).code).toBe('ERR_DISPOSED');
    expect(() => localRanks(0)).toThrow(/size must be a positive integer/);
  });
});

test('counts and parts', () => {
  expect(startsOf([2, 0, 3])).toEqual([0, 2, 2, 5]);
  expect(evenParts(10, 4)).toEqual([0, 2, 5, 7, 10]);
  expect(evenParts(1, 3)).toEqual([0, 0, 0, 1]);
});

describe('the launcher', () => {
  test.each([
    [{}, undefined],
    [
      { OMPI_COMM_WORLD_RANK: '3', OMPI_COMM_WORLD_SIZE: '8' },
      { rank: 3, size: 8 },
    ],
    [
      { PMI_RANK: '0', PMI_SIZE: '2' },
      { rank: 0, size: 2 },
    ],
    [
      { SLURM_PROCID: '5', SLURM_STEP_NUM_TASKS: '6' },
      { rank: 5, size: 6 },
    ],
    // A batch script, which is no step.
    [{ SLURM_PROCID: '0', SLURM_NTASKS: '6' }, undefined],
  ])('%j', (environment, expected) => {
    expect(launchedRank(environment)).toEqual(expected);
  });

  test('says what makes no rank', () => {
    expect(() => launchedRank({ PMI_RANK: '2', PMI_SIZE: '2' })).toThrow(/PMI_RANK.*got 2, 2/);
  });
});

describeMpi('ranks of a job', () => {
  test.each([1, 2, 3, 4])('%d ranks: every operation', async (ranks) => {
    const { status, stdout, stderr } = await mpirun(ranks, 'test/comm/rank_child.ts', [
      'operations',
    ]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout.trim().split('\n').sort()).toEqual(
      Array.from({ length: ranks }, (_, r) => `rank ${String(r)} of ${String(ranks)} done`),
    );
  });

  test('a rank that fails ends the job with its reason', async () => {
    const { status, stderr, seconds } = await mpirun(3, 'test/comm/rank_child.ts', ['abort']);
    expect(status).not.toBe(0);
    expect(stderr).toMatch(
      /siglip2: rank 2 of 3: rank test: the record must be whole, got half of it \(ERR_DATA\)/,
    );
    expect(seconds).toBeLessThan(60);
  });

  // Killed; gone without a word; so busy that the others give up.
  test.each(['kill', 'leave', 'hang'])('a rank does not come: %s', async (task) => {
    const { status, stdout, stderr } = await mpirun(3, 'test/comm/rank_child.ts', [task]);
    expect(status).not.toBe(0);
    expect(stdout).toBe('');
    expect(stderr).toMatch(
      task === 'hang' ? /barrier of rank \d must end within 1 s/ : /rank|process/i,
    );
  });
});

import { DeviceArray } from '../../lib/array';
import type { DeviceCommunicator } from '../../lib/comm';
import { deviceCommunicator, localRanks, openDeviceCommunicator } from '../../lib/comm';
import { chooseTransport, Dispatcher, ncclPlace } from '../../lib/comm/device_communicator';
import { HostTransport, roundsOf } from '../../lib/comm/host_transport';
import { deviceOfRank } from '../../lib/comm/launch';
import { NcclTransport } from '../../lib/comm/nccl_transport';
import type { NativeCuda } from '../../lib/native/addon';
import { failure } from '../failure';
import { tryDeviceOperations } from './device_ranks';
import { EmulatedNccl } from './emulated_nccl';
import { describeMpi, mpirun } from './mpirun';

const gpu = (index: number): NativeCuda['devices'][number] => ({
  ...{ index, name: 'H100', architecture: 90, memoryBytes: 2 ** 36, freeBytes: 2 ** 36 },
  ...{ multiprocessors: 132, uuid: `GPU-${String(index)}` },
});

const machine = (gpus: number, nccl: NativeCuda['nccl'] = { version: '2.30.7' }): NativeCuda => ({
  built: true,
  devices: Array.from({ length: gpus }, (_, index) => gpu(index)),
  missing: [],
  nccl,
});

describe('by way of the host', () => {
  test.each([1, 2, 3, 4])('%d ranks: every operation', async (size) => {
    await Promise.all(
      localRanks(size).map((comm) => tryDeviceOperations(deviceCommunicator(comm), 'cpu')),
    );
  });

  test.each([1, 7, 64])('buckets of %d elements give the same bits', async (bucket) => {
    await Promise.all(
      localRanks(3).map((comm) =>
        tryDeviceOperations(new Dispatcher(comm, new HostTransport(comm, bucket), ''), 'cpu'),
      ),
    );
  });

  test('rounds take even steps through segments', () => {
    expect(roundsOf([5, 0, 2], 6)).toEqual([
      { from: 0, lengths: [2, 0, 2] },
      { from: 2, lengths: [2, 0, 0] },
      { from: 4, lengths: [1, 0, 0] },
    ]);
    expect(roundsOf([3], 100)).toEqual([{ from: 0, lengths: [3] }]);
    expect(roundsOf([0, 0], 8)).toEqual([]);
  });

  test('a rank that fails ends the others', async () => {
    const [a, b] = localRanks(2).map((comm) => deviceCommunicator(comm));
    const waiting = failure(a.allReduce(DeviceArray.from(new Float32Array(3))));
    b.abort(new Error('no data'));
    expect(await waiting).toMatchObject({
      code: 'ERR_COMM',
      message: 'comm: rank 1 ended the job: no data',
    });
  });
});

describe('the calls of NCCL', () => {
  const connected = (size: number): { nccl: EmulatedNccl; ranks: DeviceCommunicator[] } => {
    const nccl = new EmulatedNccl(size);
    const ranks = localRanks(size).map(
      (comm, rank) => new Dispatcher(comm, new NcclTransport(nccl.rank(rank), rank), ''),
    );
    return { nccl, ranks };
  };

  test.each([1, 2, 3, 4])('%d ranks: every operation', async (size) => {
    const { nccl, ranks } = connected(size);
    await Promise.all(ranks.map((comm) => tryDeviceOperations(comm, 'cpu')));
    // Even parts of a single array go in one call, others by root.
    const kinds = new Set(nccl.calls);
    for (const kind of ['allReduce', 'allGather', 'reduceScatter', 'broadcast', 'reduce', 'send']) {
      expect(kinds).toContain(kind);
    }
  });

  test('long lists go in several groups', async () => {
    const { nccl, ranks } = connected(2);
    await Promise.all(
      ranks.map(async (comm) => {
        const arrays = Array.from({ length: 1500 }, (_, i) =>
          DeviceArray.from(Float32Array.of(i + comm.rank)),
        );
        await comm.allReduce(arrays);
        expect([...(await arrays[1499].read())]).toEqual([2 * 1499 + 1]);
      }),
    );
    expect(nccl.calls).toHaveLength(1500);
  });

  test('a part in arrays that its segment does not have', async () => {
    const { ranks } = connected(1);
    const three = DeviceArray.from(new Float32Array(3));
    const split = [DeviceArray.from(new Float32Array(1)), DeviceArray.from(new Float32Array(2))];
    const { code, message } = await failure(ranks[0].allGather(split, [3], three));
    expect(code).toBe('ERR_SHAPE');
    expect(message).toMatch(/an array for each array that its segment meets, got 2/);
  });
});

describe('mistakes', () => {
  const [comm] = localRanks(1).map((rank) => deviceCommunicator(rank));
  const three = DeviceArray.from(new Float32Array(3));
  const bytes = DeviceArray.from(new Uint8Array(3));
  const ofHost = new Float32Array(3) as unknown as DeviceArray;

  test.each([
    ['dtypes', () => comm.allReduce([three, bytes]), 'ERR_DTYPE', /of one dtype/],
    ['a sum of bytes', () => comm.allReduce(bytes), 'ERR_DTYPE', /float32, got uint8/],
    ['another length', () => comm.allGather(three, [2], three), 'ERR_SHAPE', /part .*2 .*got 3/],
    [
      'another dtype',
      () => comm.allGather(bytes, [3], three),
      'ERR_DTYPE',
      /part must be float32 as into is, got uint8/,
    ],
    ['counts', () => comm.reduceScatter(three, [1, 2], three), 'ERR_ARGUMENT', /of 1 ranks/],
    ['a root', () => comm.broadcast(three, 1), 'ERR_ARGUMENT', /rank must be below 1, got 1/],
    [
      'two kinds of arrays',
      () => comm.exchange([{ rank: 0, data: three }], [{ rank: 0, data: ofHost }]),
      'ERR_ARGUMENT',
      /of the device as the other arrays are/,
    ],
  ] as const)('%s', async (_, work, code, message) => {
    const found = await failure(work());
    expect(found.code).toBe(code);
    expect(found.message).toMatch(message);
  });

  test('after its end', async () => {
    const [closed] = localRanks(1).map((rank) => deviceCommunicator(rank));
    const gone = DeviceArray.from(new Float32Array(1));
    gone.dispose();
    expect((await failure(closed.allReduce(gone))).code).toBe('ERR_DISPOSED');
    await closed.close();
    expect((await failure(closed.allReduce(three))).message).toMatch(/must be open/);
  });
});

describe('the choice of a transport', () => {
  const has = (uuid: string, version = '2.30.7') => ({ uuid, version });

  test.each([
    ['auto', [has('a'), has('b')], 'nccl', 'NCCL 2.30.7'],
    ['nccl', [has('a')], 'nccl', 'NCCL 2.30.7'],
    ['host', [has('a'), has('b')], 'host', 'asked for'],
    ['auto', [has('a'), { missing: 'none\nto do: get it' }], 'host', 'rank 1: none'],
    ['auto', [has('a'), has('b', '2.27.3')], 'host', 'rank 1: NCCL 2.27.3, but rank 0: 2.30.7'],
    ['auto', [has('a'), has('b'), has('a')], 'host', 'ranks 0 and 2 share the GPU a'],
  ] as const)('%s of %j: %s', (wanted, places, transport, reason) => {
    expect(chooseTransport(wanted, places)).toEqual({ transport, reason });
  });

  test('one that cannot be is refused with what is missing', () => {
    expect(() => chooseTransport('nccl', [{ missing: 'none\nto do: get it' }])).toThrow(
      /every rank must be able to use NCCL, got rank 0: none\nto do: get it\nto do: or let/,
    );
  });

  test('what a rank has', () => {
    expect(ncclPlace('cpu', machine(2))).toEqual({ missing: 'its arrays are on the CPU' });
    expect(ncclPlace('cuda:1', machine(2))).toEqual({ version: '2.30.7', uuid: 'GPU-1' });
    expect(ncclPlace('cuda:2', machine(2))).toEqual({ missing: 'cuda:2 is not there' });
    expect(ncclPlace('cuda:0', machine(1, { missing: 'gone' }))).toEqual({ missing: 'gone' });
  });

  test('all ranks come to it together', async () => {
    const opened = await Promise.all(
      localRanks(3).map((comm) => openDeviceCommunicator(comm, 'cpu')),
    );
    for (const { transport, reason } of opened) {
      expect({ transport, reason }).toEqual({
        transport: 'host',
        reason: 'rank 0: its arrays are on the CPU',
      });
    }
    const refused = await Promise.all(
      localRanks(2).map((comm) =>
        failure(openDeviceCommunicator(comm, 'cpu', { transport: 'nccl' })),
      ),
    );
    for (const { code } of refused) expect(code).toBe('ERR_COMM');
  });
});

describe('the device of a rank', () => {
  test.each([
    ['auto', 0, 2, 'cuda:0'],
    ['cuda', 1, 2, 'cuda:1'],
    ['auto', 3, 2, 'cuda:1'],
    ['cuda:1', 0, 2, 'cuda:1'],
    ['cpu', 0, 2, 'cpu'],
    ['auto', 5, 0, 'cpu'],
  ] as const)('%s, local rank %d of a machine with %d GPUs: %s', (choice, local, gpus, device) => {
    expect(deviceOfRank(choice, local, machine(gpus))).toBe(device);
  });
});

describeMpi('arrays of devices in a job', () => {
  test.each([1, 2, 3])('%d ranks: every operation', async (ranks) => {
    const { status, stderr } = await mpirun(ranks, 'test/comm/rank_child.ts', ['device']);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  });
});

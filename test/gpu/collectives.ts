// Collectives of arrays on GPUs: by NCCL with one rank, which it allows, and with two where there are two
// GPUs; by way of the host with several ranks that share one.
import type { Device } from '../../lib/array';
import { DeviceArray } from '../../lib/array';
import type { DeviceCommunicator } from '../../lib/comm';
import { deviceCommunicator, localRanks, openDeviceCommunicator } from '../../lib/comm';
import type { SiglipError } from '../../lib/errors';
import { compile, float32 } from '../../lib/graph';
import type { Tensor } from '../../lib/graph';
import { loadAddon } from '../../lib/native/load';
import { scaleBy } from '../../lib/ops';
import { tryDeviceOperations } from '../comm/device_ranks';
import { failure } from '../failure';
import type { Group, Runner } from './runner';
import { must, mustEqualBits } from './runner';

// Read by NCCL; see openDeviceCommunicator.
process.env['NCCL_P2P_DIRECT_DISABLE'] ??= '1';

const N = 1 << 22;

function ramp(step: number): Float32Array {
  return Float32Array.from({ length: N }, (_, i) => i * step);
}

function expectCode({ code, message }: SiglipError, wanted: string): void {
  must(code === wanted, () => `error must be ${wanted}, got ${code}: ${message}`);
}

/** One communicator of NCCL for each device. */
async function connected(devices: readonly Device[]): Promise<DeviceCommunicator[]> {
  const ranks = localRanks(devices.length);
  return Promise.all(
    ranks.map((comm, rank) => openDeviceCommunicator(comm, devices[rank], { transport: 'nccl' })),
  );
}

async function onAll(
  devices: readonly Device[],
  work: (comm: DeviceCommunicator, device: Device) => Promise<void>,
): Promise<void> {
  const ranks = await connected(devices);
  await Promise.all(
    ranks.map(async (comm, rank) => {
      await work(comm, devices[rank]);
      await comm.close();
    }),
  );
}

/** Why NCCL cannot be tried on so many GPUs here, if so. */
function missing(device: Device, gpus: number): string | undefined {
  const { devices, nccl } = loadAddon().describe().cuda;
  if (device === 'cpu') return 'NCCL is for GPUs alone';
  if (nccl.version === undefined) return `no NCCL: ${(nccl.missing ?? '').split('\n').join('; ')}`;
  if (devices.length < gpus) return `NCCL between ranks needs ${String(gpus)} GPUs`;
  return undefined;
}

/** @param device - where */
export function declareCollectives(runner: Runner, device: Device): void {
  const host = runner.group('collectives by way of the host');
  for (const size of [1, 3]) {
    host.test(`${String(size)} ranks on one device: every operation`, async () => {
      await Promise.all(
        localRanks(size).map((comm) => tryDeviceOperations(deviceCommunicator(comm), device)),
      );
    });
  }

  const one = runner.group('collectives by NCCL, one rank');
  const alone = tests(one, missing(device, 1));
  alone('every operation', () => onAll([device], tryDeviceOperations));

  alone('they follow what was queued before', () =>
    onAll([device], async (comm) => {
      using part = DeviceArray.from(ramp(1), [N], device);
      using into = DeviceArray.zeros(float32(N), device);
      for (let step = 2; step < 12; step++) {
        part.write(ramp(step));
        await comm.allGather(part, [N], into);
        mustEqualBits(`step ${String(step)}`, { into: await into.read() }, { into: ramp(step) });
      }
    }),
  );

  alone('programs run beside them', () =>
    onAll([device], async (comm) => {
      const program = compile(
        'doubled',
        ({ x }: { x: Tensor }) => ({ y: scaleBy(x, 2) }),
        {
          x: float32(N),
        },
        { device },
      );
      using part = DeviceArray.from(ramp(3), [N], device);
      const waiting = Array.from({ length: 8 }, async (_, i) => {
        const into = DeviceArray.zeros(float32(N), device);
        const gathered = comm.allGather(part, [N], into);
        const { y } = await program.run({ x: ramp(i) });
        await gathered;
        mustEqualBits('gathered', { into: await into.read() }, { into: ramp(3) });
        mustEqualBits('doubled', { y: await y.read() }, { y: ramp(2 * i) });
        into.dispose();
        y.dispose();
      });
      await Promise.all(waiting);
      program.dispose();
    }),
  );

  alone('memory is given back', async () => {
    const before = JSON.stringify(loadAddon().memory());
    await onAll([device], async (comm) => {
      using data = DeviceArray.from(ramp(1), [N], device);
      await comm.allReduce(data);
    });
    const after = JSON.stringify(loadAddon().memory());
    must(after === before, () => `memory must be ${before}, got ${after}`);
  });

  alone('a rank that ends takes its operations along, and nothing else', async () => {
    const [comm] = await connected([device]);
    using data = DeviceArray.from(ramp(1), [N], device);
    comm.abort(new Error('enough'));
    const error = await failure(comm.allReduce(data));
    expectCode(error, 'ERR_COMM');
    must(error.message.includes('enough'), () => `must give the reason, got ${error.message}`);
    mustEqualBits('data', { data: await data.read() }, { data: ramp(1) });
    await onAll([device], tryDeviceOperations);
  });

  alone('after its end it is refused', async () => {
    const [comm] = await connected([device]);
    using data = DeviceArray.from(ramp(1), [N], device);
    await comm.close();
    expectCode(await failure(comm.allReduce(data)), 'ERR_DISPOSED');
  });

  const two = runner.group('collectives by NCCL, two ranks');
  const pair = tests(two, missing(device, 2));
  const devices: readonly Device[] = ['cuda:0', 'cuda:1'];
  // The sum of two has one order.
  pair('every operation', () => onAll(devices, tryDeviceOperations));

  pair('a rank that does not come is noticed', async () => {
    const ranks = localRanks(2);
    const [first] = await Promise.all(
      ranks.map((comm, rank) =>
        openDeviceCommunicator(comm, devices[rank], { transport: 'nccl', limitSeconds: 2 }),
      ),
    );
    using data = DeviceArray.from(ramp(1), [N], devices[0]);
    const error = await failure(first.allReduce(data));
    expectCode(error, 'ERR_COMM');
    must(error.message.includes('within 2 s'), () => `must say why, got ${error.message}`);
  });
}

/** Declares tests, or skips them for that reason. */
function tests(group: Group, reason: string | undefined): Group['test'] {
  return (name, body) => {
    if (reason === undefined) group.test(name, body);
    else group.skip(name, reason);
  };
}

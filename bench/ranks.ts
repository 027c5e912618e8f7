// Scaling over ranks: the same training step on one process, on one rank and on two, one thread each, in
// turns, best of each. The batch is split, so perfect scaling halves the time.
//
//   npm run bench:ranks    needs mpirun and the addon of MPI
import { spawnSync } from 'node:child_process';
import { DeviceArray } from '../lib/array';
import { Philox4x32 } from '../lib/array/random';
import type { Communicator } from '../lib/comm';
import { launchedRank, localRanks, openMpi } from '../lib/comm';
import { disposeArrays, mapTree } from '../lib/graph';
import type { Spec } from '../lib/graph';
import type { VariantName } from '../lib/model';
import { initialValues, twoTowersParameters, variant } from '../lib/model';
import type { TrainingState, TwoTowersStep } from '../lib/train';
import {
  StepOverRanks,
  compileTwoTowersStep,
  defaultOptimizer,
  pairObjective,
  rowsOfRank,
  scheduleInput,
} from '../lib/train';
import type { StepBatch } from '../lib/train';

const rounds = 2;
const steps = 3;
const batch = 32;
const models: readonly VariantName[] = ['Ti/16'];

const pixelTable = Float32Array.from({ length: 768 }, (_, i) => (i % 256) / 127.5 - 1);

/** What a job runs. */
type Way = 'alone' | 'ranks' | 'one part' | 'optimizer' | 'parameters';

function configOf(name: VariantName): ReturnType<typeof variant> {
  return variant(name, { imageSize: 224, vocabulary: 8192, length: 64 });
}

function freshState(name: VariantName): TrainingState<DeviceArray> {
  const parameters = twoTowersParameters<DeviceArray>(configOf(name), (spec) =>
    DeviceArray.from(initialValues(spec, 0), spec.shape),
  );
  const zeros = (): typeof parameters =>
    mapTree<typeof parameters, DeviceArray, DeviceArray>(parameters, (array: Spec) =>
      DeviceArray.zeros(array),
    );
  return { parameters, moments: { m: zeros(), v: zeros() }, averages: {} };
}

function pairs(rows: number): StepBatch<Float32Array | Int32Array | Uint8Array> {
  const random = new Philox4x32(1, 'bench ranks');
  return {
    images: {
      pixels: Uint8Array.from({ length: rows * 224 * 224 * 3 }, () => random.integer(256)),
      table: pixelTable,
    },
    texts: Int32Array.from({ length: rows * 64 }, () => random.integer(8192)),
  };
}

async function bestStep(comm: Communicator, name: VariantName, way: Way): Promise<number> {
  const model = configOf(name);
  const optimizer = defaultOptimizer;
  const state = freshState(name);
  const [from, to] = rowsOfRank(batch, comm.rank, comm.size);
  const data = pairs(to - from);
  const schedule = scheduleInput(1, 0, optimizer);
  let alone: TwoTowersStep | undefined;
  let step: StepOverRanks | undefined;
  if (way === 'alone') {
    alone = compileTwoTowersStep({ model, batch, optimizer });
  } else {
    const shard = way === 'optimizer' || way === 'parameters' ? way : 'none';
    // In one part all gradients travel at the end.
    const partBytes = way === 'one part' ? { partBytes: Infinity } : {};
    const objective = pairObjective({ model, batch, pixelTable });
    step = await StepOverRanks.create({ comm, objective, optimizer, shard, ...partBytes }, state);
  }
  let best = Infinity;
  for (let i = 0; i <= steps; i++) {
    await comm.barrier();
    const began = performance.now();
    if (alone === undefined) {
      await step?.run('images', { all: schedule, entered: {} }, data);
    } else {
      const { parameters, moments } = state;
      const outputs = await alone.run({
        parameters,
        state: moments,
        averages: {},
        schedule,
        entered: {},
        batches: [data],
      });
      const { loss, terms, gradientNorm, updateNorm, parameterNorm } = outputs;
      disposeArrays({ loss, terms, gradientNorm, updateNorm, parameterNorm });
    }
    await comm.barrier();
    if (i > 0) best = Math.min(best, (performance.now() - began) / 1000);
  }
  alone?.dispose();
  step?.dispose();
  disposeArrays(state);
  return best;
}

async function asRank(name: VariantName, way: Way): Promise<void> {
  const { size } = launchedRank() ?? { size: 1 };
  const comm = size === 1 ? localRanks(1)[0] : await openMpi();
  const seconds = await bestStep(comm, name, way);
  if (comm.rank === 0) process.stdout.write(`${String(seconds)}\n`);
  await comm.close();
}

function job(ranks: number, name: VariantName, way: Way): number {
  const { status, stdout } = spawnSync(
    'mpirun',
    [
      ...['-n', String(ranks), '--oversubscribe', process.execPath],
      ...['-r', './test/typescript.js', __filename, name, way],
    ],
    {
      encoding: 'utf8',
      env: {
        ...process.env,
        SIGLIP2_THREADS: '1',
        OMPI_ALLOW_RUN_AS_ROOT: '1',
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1',
        OMPI_MCA_hwloc_base_binding_policy: 'none',
      },
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  if (status !== 0) throw new Error(`bench: mpirun must succeed, got status ${String(status)}`);
  return Number(stdout);
}

function main(): void {
  const contenders: readonly (readonly [string, number, Way])[] = [
    ['one process', 1, 'alone'],
    ['1 rank', 1, 'ranks'],
    ['2 ranks', 2, 'ranks'],
    ['2 ranks, gradients at the end', 2, 'one part'],
    ['2 ranks, sharded moments', 2, 'optimizer'],
    ['2 ranks, sharded parameters', 2, 'parameters'],
  ];
  for (const name of models) {
    const best = contenders.map(() => Infinity);
    for (let round = 0; round < rounds; round++) {
      contenders.forEach(([, ranks, way], i) => {
        best[i] = Math.min(best[i], job(ranks, name, way));
      });
    }
    process.stdout.write(`${name} at 224 pixels, batch ${String(batch)}, one thread a rank\n`);
    contenders.forEach(([label, ranks], i) => {
      const share = (of: number): string => `${((100 * of) / (ranks * best[i])).toFixed(0)} %`;
      process.stdout.write(
        `  ${label.padEnd(26)}${best[i].toFixed(3)} s a step  ${(batch / best[i]).toFixed(1).padStart(6)} pairs/s` +
          `  efficiency ${share(best[1])} of 1 rank, ${share(best[0])} of one process\n`,
      );
    });
  }
}

const [name, way] = process.argv.slice(2);
if (way === undefined) main();
else void asRank(name as VariantName, way as Way);

// Checkpoints of a run: one safetensors file with the weights, both moments and the position in the
// data. A file appears when it is complete, so that a crash at any moment leaves the last good one.
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Device } from '../array';
import { DeviceArray } from '../array';
import type { StreamState } from '../data';
import { SiglipError } from '../errors';
import type { HostArray, Spec } from '../graph';
import { flatten } from '../graph';
import type { StoredTensor } from '../weights';
import { openSafetensors, writeSafetensors } from '../weights';
import type { Averages, Objective, TrainedParameters } from './objective';
import type { OptimizerState } from './optimizer';

/** What training changes. */
export interface TrainingState<Leaf> {
  readonly parameters: TrainedParameters<Leaf>;
  readonly moments: OptimizerState<TrainedParameters<Leaf>>;
  readonly averages: Averages<Leaf>;
}

/** The parts of a state. */
export type StateKind = 'parameters' | 'm' | 'v' | 'averages';

/** Makes the array that holds a leaf of a state, or what this process keeps of it. */
export type Placement = (
  kind: StateKind,
  spec: Spec & { readonly path: string },
  values: Float32Array,
) => DeviceArray;

/** All of every leaf, on a device. */
export function placedOn(device: Device): Placement {
  return (_, { shape }, values) => DeviceArray.from(values, shape, device);
}

/** An array that is there when it is read. */
export interface LazyArray extends Spec {
  read(): Promise<HostArray>;
}

/** The steps at which the first and the second moment of a parameter began at zero. */
export interface MomentsEntry {
  readonly m: number;
  readonly v: number;
}

/** Where a run stands. */
export interface TrainingPosition {
  /** Updates so far, those of the runs it inherits from included: the index of the next step. */
  readonly step: number;
  /** Updates of this run, a batch of half the size counted as a half. */
  readonly updates: number;
  /** Pairs seen so far, those of the runs it inherits from included. */
  readonly pairs: number;
  /** From where the moments of a path, or of a beginning of paths, count where not from step 0. */
  readonly entered: Readonly<Record<string, MomentsEntry>>;
  /** State of the stream of batches. */
  readonly data: StreamState;
}

const format = 'siglip2-training-2';
const filePattern = /^step-(\d+)\.safetensors$/u;

function fileName(step: number): string {
  return `step-${String(step).padStart(9, '0')}.safetensors`;
}

/** The newest checkpoint of a folder, if there is one. */
export async function latestCheckpoint(folder: string): Promise<string | undefined> {
  const names = (await readdir(folder)).filter((name) => filePattern.test(name)).sort();
  const newest = names.at(-1);
  return newest === undefined ? undefined : join(folder, newest);
}

/**
 * Writes a checkpoint and then removes all but the newest `keep`.
 *
 * @throws ERR_FILE
 */
export async function saveTraining(
  folder: string,
  objective: Objective,
  state: TrainingState<DeviceArray | LazyArray>,
  position: TrainingPosition,
  keep: number,
): Promise<void> {
  const tensors = new Map<string, StoredTensor>(
    flatten(state).map(({ path, leaf }) => {
      const array = leaf as DeviceArray | LazyArray;
      const data = 'buffer' in array ? array : () => array.read();
      return [path, { dtype: 'F32', shape: array.shape, data }];
    }),
  );
  await writeSafetensors(join(folder, fileName(position.step)), tensors, {
    format,
    objective: JSON.stringify(objective.identity),
    position: JSON.stringify(position),
  });
  const names = (await readdir(folder)).filter((name) => filePattern.test(name)).sort();
  const old = names.slice(0, Math.max(0, names.length - Math.max(keep, 1)));
  await Promise.all(old.map((name) => rm(join(folder, name), { force: true })));
}

/** A checkpoint of any run, open: what another run inherits. */
export interface OpenedTraining {
  readonly path: string;
  /** {@link Objective.identity} of the run it is of. */
  readonly identity: unknown;
  readonly position: TrainingPosition;
  readonly tensors: ReturnType<typeof openSafetensors>;
  dispose(): void;
}

/**
 * Opens a checkpoint.
 *
 * @throws ERR_WEIGHTS when the file is damaged or none of a training run
 */
export function openTraining(path: string): OpenedTraining {
  const tensors = openSafetensors(path);
  const { metadata } = tensors;
  if (metadata.get('format') !== format) {
    tensors.dispose();
    throw new SiglipError(
      'ERR_WEIGHTS',
      `${path}: format must be ${format}, got ${metadata.get('format') ?? 'none'}: this is no checkpoint of a training run`,
    );
  }
  return {
    path,
    identity: JSON.parse(metadata.get('objective') ?? 'null'),
    position: JSON.parse(metadata.get('position') ?? 'null') as TrainingPosition,
    tensors,
    dispose: () => {
      tensors.dispose();
    },
  };
}

/**
 * Reads a checkpoint of a run of this objective.
 *
 * @throws ERR_WEIGHTS when the file is damaged, ERR_CONFIG when it is of another run.
 */
export async function loadTraining(
  path: string,
  objective: Objective,
  place: Placement = placedOn('cpu'),
): Promise<{ state: TrainingState<DeviceArray>; position: TrainingPosition }> {
  const file = openTraining(path);
  const loaded = new Map<string, DeviceArray>();
  const load = async (
    kind: StateKind,
    tree: string,
    spec: Spec & { readonly path: string },
  ): Promise<void> => {
    const name = `${tree}.${spec.path}`;
    const values = (await file.tensors.read(name, { shape: spec.shape })) as Float32Array;
    loaded.set(name, place(kind, spec, values));
  };
  try {
    if (JSON.stringify(file.identity) !== JSON.stringify(objective.identity)) {
      throw new SiglipError(
        'ERR_CONFIG',
        `${path}: objective must be the one that is trained, got ${JSON.stringify(file.identity)}\n` +
          'to do: use another run folder, or the options the run was started with',
      );
    }
    const trees = { parameters: 'parameters', m: 'moments.m', v: 'moments.v' } as const;
    for (const kind of ['parameters', 'm', 'v'] as const) {
      for (const spec of objective.parameters) await load(kind, trees[kind], spec);
    }
    for (const spec of objective.averages) await load('averages', 'averages', spec);
    const [parameters, m, v] = Object.values(trees).map((tree) =>
      objective.parametersTree((spec) => at(loaded, `${tree}.${spec.path}`)),
    );
    const averages = objective.averagesTree((spec) => at(loaded, `averages.${spec.path}`));
    return { state: { parameters, moments: { m, v }, averages }, position: file.position };
  } catch (error) {
    for (const array of loaded.values()) array.dispose();
    throw error;
  } finally {
    file.dispose();
  }
}

function at(loaded: ReadonlyMap<string, DeviceArray>, name: string): DeviceArray {
  const array = loaded.get(name);
  if (array !== undefined) return array;
  throw new SiglipError('ERR_WEIGHTS', `checkpoint: tensors must include ${name}, got none`);
}

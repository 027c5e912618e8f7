// Checkpoints of a run: one safetensors file with the weights, both moments and the position in the
// data. A file appears when it is complete, so that a crash at any moment leaves the last good one.
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Device, DeviceArray } from '../array';
import { moved } from '../array';
import type { StreamState } from '../data';
import { SiglipError } from '../errors';
import { flatten } from '../graph';
import type { ModelConfig, TwoTowersParameters } from '../model';
import { parameterTable, twoTowersParameters } from '../model';
import type { StoredTensor } from '../weights';
import { openSafetensors, writeSafetensors } from '../weights';
import type { OptimizerState } from './optimizer';

/** What training changes. */
export interface TrainingState<Leaf> {
  readonly parameters: TwoTowersParameters<Leaf>;
  readonly moments: OptimizerState<TwoTowersParameters<Leaf>>;
}

/** Where a run stands. */
export interface TrainingPosition {
  /** Zero-based index of the next step. */
  readonly step: number;
  /** State of the stream of batches. */
  readonly data: StreamState;
}

const format = 'siglip2-training-1';
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
  model: ModelConfig,
  state: TrainingState<DeviceArray>,
  position: TrainingPosition,
  keep: number,
): Promise<void> {
  const tensors = new Map<string, StoredTensor>(
    flatten(state).map(({ path, leaf }) => {
      const data = leaf as DeviceArray;
      return [path, { dtype: 'F32', shape: data.shape, data }];
    }),
  );
  await writeSafetensors(join(folder, fileName(position.step)), tensors, {
    format,
    model: JSON.stringify(model),
    position: JSON.stringify(position),
  });
  const names = (await readdir(folder)).filter((name) => filePattern.test(name)).sort();
  const old = names.slice(0, Math.max(0, names.length - Math.max(keep, 1)));
  await Promise.all(old.map((name) => rm(join(folder, name), { force: true })));
}

/**
 * Reads a checkpoint of a run of this model to a device.
 *
 * @throws ERR_WEIGHTS when the file is damaged, ERR_CONFIG when it is of another model.
 */
export async function loadTraining(
  path: string,
  model: ModelConfig,
  device: Device = 'cpu',
): Promise<{ state: TrainingState<DeviceArray>; position: TrainingPosition }> {
  const file = openSafetensors(path);
  const loaded = new Map<string, DeviceArray>();
  try {
    const { metadata } = file;
    if (metadata.get('format') !== format) {
      throw new SiglipError(
        'ERR_WEIGHTS',
        `${path}: format must be ${format}, got ${metadata.get('format') ?? 'none'}: this is no checkpoint of a training run`,
      );
    }
    if (metadata.get('model') !== JSON.stringify(model)) {
      throw new SiglipError(
        'ERR_CONFIG',
        `${path}: model must be the one that is trained, got ${metadata.get('model') ?? 'none'}\n` +
          'to do: use another run folder, or the options the run was started with',
      );
    }
    const trees = ['parameters', 'moments.m', 'moments.v'];
    for (const tree of trees) {
      for (const spec of parameterTable(model)) {
        const name = `${tree}.${spec.path}`;
        loaded.set(name, await moved(await file.load(name, { shape: spec.shape }), device));
      }
    }
    const [parameters, m, v] = trees.map((tree) =>
      twoTowersParameters<DeviceArray>(model, (spec) => at(loaded, `${tree}.${spec.path}`)),
    );
    return {
      state: { parameters, moments: { m, v } },
      position: JSON.parse(metadata.get('position') ?? 'null') as TrainingPosition,
    };
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

// References of active curation out of files: a model folder, or the last checkpoint of a training run.
import type { Device, DeviceArray } from '../array';
import { moved } from '../array';
import { SiglipError } from '../errors';
import type { ComputeDType } from '../graph';
import { disposeArrays, flatten, mapTree } from '../graph';
import { normalizationTable } from '../image';
import type { ModelConfig, TwoTowersParameters } from '../model';
import { twoTowersParameters } from '../model';
import { loadTokenizer } from '../text';
import { loadCheckpoint } from '../weights';
import { latestCheckpoint, openTraining } from './checkpoint';
import type { Reference } from './reference';
import { modelReference } from './reference';

/** How a reference runs. */
export interface OpenReferenceOptions {
  /** Pairs of one run of its towers. */
  readonly batch: number;
  readonly device: Device;
  readonly precision: ComputeDType;
}

/**
 * A model folder in Hugging Face layout with its tokenizer, of a fixed resolution.
 *
 * @throws ERR_CONFIG for another model; what `loadCheckpoint` throws
 */
export async function folderReference(
  folder: string,
  options: OpenReferenceOptions,
): Promise<Reference> {
  const tokenizer = await loadTokenizer(folder);
  const { config, parameters, preprocessor } = await loadCheckpoint(folder);
  if (tokenizer === undefined || preprocessor.layout !== 'fixed') {
    disposeArrays(parameters);
    throw new SiglipError(
      'ERR_CONFIG',
      `curation: reference must be a model of fixed resolution with its tokenizer, got ${folder}`,
    );
  }
  return modelReference({
    model: config,
    parameters: await allMoved(parameters, options.device),
    pixelTable: normalizationTable(preprocessor),
    tokenize: (texts) => tokenizer.encode(texts, config.text.length),
    ...options,
  });
}

/**
 * The two towers in the last checkpoint of a training run, over the run's own tokens.
 *
 * @param pixelTable - (3, 256): the value of each byte of each colour
 * @throws ERR_FILE when there is no checkpoint; ERR_WEIGHTS when it is damaged or of another model
 */
export async function checkpointReference(
  folder: string,
  model: ModelConfig,
  pixelTable: Float32Array,
  options: OpenReferenceOptions,
): Promise<Reference> {
  const path = await latestCheckpoint(folder);
  if (path === undefined) {
    throw new SiglipError('ERR_FILE', `curation: ${folder} must hold a checkpoint, got none`);
  }
  const opened = openTraining(path);
  const loaded = new Map<string, DeviceArray>();
  try {
    const specs = flatten(twoTowersParameters(model, ({ dtype, shape }) => ({ dtype, shape })));
    for (const { path: name, leaf } of specs) {
      const { shape } = leaf as { readonly shape: readonly number[] };
      const array = await opened.tensors.load(`parameters.${name}`, { shape });
      loaded.set(name, await moved(array, options.device));
    }
  } catch (error) {
    for (const array of loaded.values()) array.dispose();
    throw error;
  } finally {
    opened.dispose();
  }
  const parameters = twoTowersParameters<DeviceArray>(model, ({ path: name }) => {
    const array = loaded.get(name);
    if (array === undefined) throw new Error(`curation: ${name} must be a parameter of the model`);
    return array;
  });
  return modelReference({ model, parameters, pixelTable, ...options });
}

async function allMoved(
  parameters: TwoTowersParameters<DeviceArray>,
  device: Device,
): Promise<TwoTowersParameters<DeviceArray>> {
  const there = new Map<string, DeviceArray>();
  for (const { path, leaf } of flatten(parameters)) {
    there.set(path, await moved(leaf as DeviceArray, device));
  }
  return mapTree<typeof parameters, DeviceArray, DeviceArray>(
    parameters,
    (array, path) => there.get(path) ?? array,
  );
}

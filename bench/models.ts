// The models of the benchmark: real sizes, random weights, one folder each in Hugging Face layout.
//
// Weights are drawn as the training recipe initialises them (Xavier matrices, so that every layer's
// output keeps the scale of its input), and then made less tidy, the way trained ones are: biases of
// deviation 0.1, norm gains of 1 ± 0.2, and one channel in a hundred with a fourfold gain, since a few
// large channels are what quantisation has to live with.
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Philox4x32 } from '../lib/array/random';
import type { ModelConfig, ParameterSpec } from '../lib/model';
import { initialValues, variant } from '../lib/model';
import type { StoredTensor } from '../lib/weights';
import {
  concatenate,
  defaultPreprocessor,
  formatConfig,
  formatPreprocessor,
  huggingFaceTensors,
  writeSafetensors,
} from '../lib/weights';
import { writeJson } from './results';

export type ModelName = 'base-224' | 'so400m-384' | 'base-naflex' | 'small';

export interface BenchModel {
  readonly name: ModelName;
  /** As a reader knows it. */
  readonly title: string;
  readonly config: ModelConfig;
}

/** Where models are made. Not tracked; several gigabytes. */
export const modelsFolder = process.env.SIGLIP2_BENCH_MODELS ?? join(__dirname, '.cache');

// A table of 256,000 tokens adds 786 MB and no arithmetic.
const vocabulary = 8192;

// Where only the vision tower is measured, the text tower is as small as the format allows.
function visionOnly(config: ModelConfig): ModelConfig {
  const tiny = { width: 64, depth: 1, mlpWidth: 64, heads: 1, vocabulary: 64 };
  return { ...config, text: { ...config.text, ...tiny } };
}

export const models: readonly BenchModel[] = [
  {
    name: 'base-224',
    title: 'B/16-224',
    config: variant('B/16', { imageSize: 224, vocabulary }),
  },
  {
    name: 'so400m-384',
    title: 'So400m/14-384',
    config: visionOnly(variant('So400m/14', { imageSize: 384, vocabulary })),
  },
  {
    name: 'base-naflex',
    title: 'NaFlex B/16',
    config: visionOnly(variant('B/16', { layout: 'naflex', vocabulary })),
  },
  {
    name: 'small',
    title: 'Ti/16-64',
    config: variant('Ti/16', { imageSize: 64, vocabulary: 256 }),
  },
];

export function modelOf(name: ModelName): BenchModel {
  const model = models.find((candidate) => candidate.name === name);
  if (model === undefined) throw new Error(`models: no ${name}`);
  return model;
}

/** Folder of a model, written on the first call. */
export async function modelFolder({ name, config }: BenchModel): Promise<string> {
  const folder = join(modelsFolder, name);
  const stamp = join(folder, 'complete.json');
  if (existsSync(stamp)) return folder;
  rmSync(folder, { recursive: true, force: true });
  const tensors = new Map<string, StoredTensor>();
  for (const { name: tensor, shape, parts } of huggingFaceTensors(config)) {
    tensors.set(tensor, { dtype: 'F32', shape, data: () => concatenate(parts.map(values)) });
  }
  await writeSafetensors(join(folder, 'model.safetensors'), tensors, { format: 'pt' });
  writeJson(join(folder, 'config.json'), formatConfig(config));
  writeJson(
    join(folder, 'preprocessor_config.json'),
    formatPreprocessor(defaultPreprocessor(config)),
  );
  writeFileSync(stamp, `${JSON.stringify({ weights: 'random', seed })}\n`);
  return folder;
}

const seed = 7;

function values(spec: ParameterSpec): Float32Array {
  const isNorm = /\.norm\d?\.weight$/u.test(spec.path);
  const isBias = spec.path.endsWith('.bias');
  if (!isNorm && !isBias) return initialValues(spec, seed);
  const random = new Philox4x32(seed, `bench/${spec.path}`);
  const result = new Float32Array(spec.shape.reduce((a, b) => a * b, 1));
  for (let i = 0; i < result.length; i++) {
    const gain = random.uniform() < 0.01 ? 4 : 1;
    result[i] = isNorm ? gain * random.normal(1, 0.2) : random.normal(0, 0.1);
  }
  return result;
}

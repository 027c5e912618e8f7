// The engines under one face: ours in every precision, onnxruntime-node over ONNX files of the
// same weights.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { LoadOptions } from '../lib/embed';
import { Siglip2 } from '../lib/embed';
import { concatenate } from '../lib/weights';
import { pixelValues } from './inputs';
import type { BenchModel } from './models';
import { modelFolder, modelOf } from './models';
import type { WeightRange } from './onnx/graph';
import { writeOnnx } from './onnx/model_file';
import type { GraphForm, TowerExport } from './onnx/towers';
import { exportNaflex, exportText, exportVision } from './onnx/towers';
import type { Ort, OrtFeeds, OrtSession, OrtSessionOptions } from './peers';

export type Precision = 'float32' | 'bfloat16' | 'int8';

/** Loads a model in a precision. */
export function loadOurs(folder: string, precision: Precision): Promise<Siglip2> {
  const options: LoadOptions & { readonly precision: Precision } = { precision };
  return Siglip2.load(folder, options);
}

/**
 * Which precisions the library has: '' or why not. A library that did not know the option would give
 * float32 under another name, so embeddings that are those of float32 bit for bit do not count.
 */
export async function ourPrecisions(): Promise<ReadonlyMap<Precision, string>> {
  const small = modelOf('small');
  const folder = await modelFolder(small);
  const images = pixelValues(1, 64).map((values) => ({ pixelValues: values }));
  const embed = async (precision: Precision): Promise<Float32Array> => {
    const model = await loadOurs(folder, precision);
    try {
      return (await model.embedImages(images))[0];
    } finally {
      model.dispose();
    }
  };
  const expected = await embed('float32');
  const found = new Map<Precision, string>([['float32', '']]);
  for (const precision of ['bfloat16', 'int8'] as const) {
    try {
      const actual = await embed(precision);
      found.set(precision, actual.some((value, i) => value !== expected[i]) ? '' : 'not built');
    } catch (error) {
      found.set(precision, firstLine(error));
    }
  }
  return found;
}

export function firstLine(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return message.split('\n')[0];
}

/** Whether Linux lists a flag of the processor; elsewhere nothing is listed. */
export function hasFlag(flag: RegExp): boolean {
  return existsSync('/proc/cpuinfo') && flag.test(readFileSync('/proc/cpuinfo', 'utf8'));
}

/** Where it is not known whether int8 products are summed in 32 bits, the exact form is taken. */
export function weightRange(): WeightRange {
  const narrow = process.arch === 'x64' && process.platform === 'linux';
  return narrow && !hasFlag(/\b(?:avx512_vnni|avx_vnni)\b/u) ? 64 : 127;
}

/** Forms of a graph tried for onnxruntime; the fastest on the machine is the one compared with. */
export function candidateForms(int8: boolean): ReadonlyMap<string, GraphForm> {
  const plain = {
    attention: 'decomposed',
    gelu: 'decomposed',
    norm: 'standard',
    patches: 'convolution',
  } as const;
  const contributed = { attention: 'multi_head', gelu: 'fast', norm: 'skip' } as const;
  if (!int8) {
    const linear = { kind: 'float32' } as const;
    return new Map<string, GraphForm>([
      ['as-exported', { ...plain, linear }],
      ['multi-head', { ...contributed, patches: 'convolution', linear }],
      ['packed', { ...contributed, attention: 'packed', patches: 'convolution', linear }],
    ]);
  }
  const common = { granularity: 'tensor', range: weightRange() } as const;
  const integer = { kind: 'integer', ...common } as const;
  const channels = { ...integer, granularity: 'channel' } as const;
  return new Map<string, GraphForm>([
    ['as-exported', { ...plain, linear: integer }],
    ['as-exported-per-channel', { ...plain, linear: channels }],
    ['multi-head', { ...contributed, patches: 'linear', linear: integer }],
    [
      'multi-head-fused',
      { ...contributed, patches: 'linear', linear: { kind: 'fused', ...common } },
    ],
  ]);
}

export type Tower = 'vision' | 'text' | 'naflex' | 'naflex-masked';

// Files of an older exporter are not those of this one.
const exporter = ['graph', 'model_file', 'towers']
  .reduce(
    (hash, name) => hash.update(readFileSync(join(__dirname, 'onnx', `${name}.ts`))),
    createHash('sha256'),
  )
  .digest('hex')
  .slice(0, 8);

/** Folder of a form's ONNX files in a model's folder; transformers.js calls it `subfolder`. */
export function formFolder(name: string, { linear }: GraphForm): string {
  if (linear.kind === 'float32') return `forms_${exporter}/float32_${name}`;
  return `forms_${exporter}/int${linear.range === 64 ? '7' : '8'}_${name}`;
}

/** Path of the ONNX file of a tower in a form, written on the first call. */
export async function onnxFile(
  model: BenchModel,
  tower: Tower,
  formName: string,
  form: GraphForm,
): Promise<string> {
  const folder = await modelFolder(model);
  const isFloat = form.linear.kind === 'float32';
  const path = join(
    folder,
    formFolder(formName, form),
    `${tower}_model${isFloat ? '' : '_quantized'}.onnx`,
  );
  if (existsSync(path)) return path;
  for (const old of readdirSync(folder)) {
    const stale = old.startsWith('forms_') && old !== `forms_${exporter}`;
    if (stale) rmSync(join(folder, old), { recursive: true });
  }
  mkdirSync(dirname(path), { recursive: true });
  const exported = await exportTower(join(folder, 'model.safetensors'), model, tower, form);
  try {
    await writeOnnx(path, exported.model);
  } finally {
    exported.dispose();
  }
  return path;
}

function exportTower(
  weights: string,
  { config }: BenchModel,
  tower: Tower,
  form: GraphForm,
): Promise<TowerExport> {
  switch (tower) {
    case 'vision':
      return exportVision(weights, config, form);
    case 'text':
      return exportText(weights, config, form);
    case 'naflex':
      return exportNaflex(weights, config, form, false);
    case 'naflex-masked':
      return exportNaflex(weights, config, form, true);
  }
}

/** What onnxruntime is told, directly and through transformers.js. */
export function ortOptions(threads: number): OrtSessionOptions {
  return {
    executionProviders: ['cpu'],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    graphOptimizationLevel: 'all',
  };
}

/** A session and its one output. */
export class OrtTower {
  private constructor(private readonly session: OrtSession) {}

  static async open(ort: Ort, path: string, threads: number): Promise<OrtTower> {
    return new OrtTower(await ort.InferenceSession.create(path, ortOptions(threads)));
  }

  async run(feeds: OrtFeeds): Promise<Float32Array> {
    const { data } = (await this.session.run(feeds)).pooler_output;
    if (data instanceof Float32Array) return data;
    throw new Error('onnxruntime: output must be float32');
  }

  async close(): Promise<void> {
    await this.session.release();
  }
}

/** Feeds of a fixed-resolution vision tower. */
export function imageFeeds(ort: Ort, images: readonly Float32Array[], side: number): OrtFeeds {
  const dims = [images.length, 3, side, side];
  return { pixel_values: new ort.Tensor('float32', concatenate(images), dims) };
}

export function textFeeds(ort: Ort, texts: readonly Int32Array[]): OrtFeeds {
  const ids = BigInt64Array.from(
    texts.flatMap((text) => [...text]),
    BigInt,
  );
  return { input_ids: new ort.Tensor('int64', ids, [texts.length, texts[0].length]) };
}

/** |a − b| / |b|. */
export function relativeDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [difference, norm] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    norm += b[i] ** 2;
  }
  return a.length === b.length ? Math.sqrt(difference / norm) : Infinity;
}

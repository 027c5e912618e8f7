// The same weights through us and through the peers, in one run and in turns.
//
//   npm run bench                          everything; bench/results/cpu.json and docs/benchmarks.md
//   npm run bench -- --quick               few rounds; nothing is written but with --output
//   npm run bench -- --only vision         groups whose name contains the word; nothing is written but with
//                                          --merge, which replaces their rows in bench/results/cpu.json
//   npm run bench -- --check FILE --tolerance 0.1   fails when a ratio fell by more than a tenth
//   npm run bench -- --page                docs/benchmarks.md from bench/results/cpu.json
//   --no-pytorch, --output FILE
//
// SIGLIP2_BENCH_MODELS: where models are made (default bench/.cache, some gigabytes).
// SIGLIP2_BENCH_PYTHON: a Python with torch and transformers. SIGLIP2_THREADS: threads of all sides.
import { existsSync, mkdirSync } from 'node:fs';
import { cpus } from 'node:os';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { Siglip2 } from '../lib/embed';
import { towerOptions } from '../lib/embed/towers';
import type { Tensor } from '../lib/graph';
import { compile, Constants, disposeArrays } from '../lib/graph';
import { createProcessor, decodeImage } from '../lib/image';
import type { ModelConfig, VisionInput } from '../lib/model';
import { visionInputSpecs, visionTower } from '../lib/model';
import { loadAddon } from '../lib/native/load';
import type { Precision } from '../lib/ops';
import { precisions } from '../lib/ops';
import { concatenate, defaultPreprocessor, openCheckpoint } from '../lib/weights';
import type { ColdEngine, ColdStart } from './cold_start';
import { coldStarts } from './cold_start';
import {
  candidateForms,
  firstLine,
  hasFlag,
  formFolder,
  imageFeeds,
  onnxFile,
  ortOptions,
  OrtTower,
  relativeDifference,
  textFeeds,
} from './engines';
import { jpegFiles, patchRows, pixelValues, textIds } from './inputs';
import type { Contender, MeasureOptions } from './measure';
import { measure, readPeak } from './measure';
import type { BenchModel, ModelName } from './models';
import { modelFolder, modelOf, modelsFolder } from './models';
import type { GraphForm } from './onnx/towers';
import type { Ort, OrtFeeds, Transformers, TransformersModel } from './peers';
import { installPeers, loadOrt, loadTransformers, peerVersion } from './peers';
import { resizedPositions } from './naflex_positions';
import { PyTorch, pytorchMissing } from './pytorch';
import { readJson, writeJson, writeText } from './results';
import type { Accuracy, LinearShare, Results, Row, Skipped } from './rows';
import { PEAK, isSound, lineOf, merged, pageOf, regressions, rounded, speedRow } from './rows';

const resultsFile = join(__dirname, 'results', 'cpu.json');
const pageFile = join(__dirname, '..', 'docs', 'benchmarks.md');
/** Peers' float32 embeddings must be ours this closely before anything is timed. */
const sameWeights = 1e-4;

interface Form {
  readonly name: string;
  readonly form: GraphForm;
}

/** What all groups share. */
interface Context {
  readonly quick: boolean;
  readonly threads: number;
  readonly ort: Ort | undefined;
  readonly transformers: Transformers | undefined;
  readonly pytorch: boolean;
  readonly forms: { float32: Form; int8: Form } | undefined;
  readonly rows: Row[];
  readonly accuracy: Accuracy[];
  readonly linearShares: LinearShare[];
  readonly skipped: Skipped[];
  readonly facts: Record<string, string | number>;
}

function add(context: Context, ...rows: readonly Row[]): void {
  for (const row of rows) {
    context.rows.push(row);
    process.stdout.write(`${lineOf(row)}\n`);
  }
}

function skip({ skipped }: Context, name: string, reason: string): void {
  if (skipped.some((entry) => entry.name === name)) return;
  skipped.push({ name, reason });
  process.stdout.write(`${name}: skipped, ${reason}\n`);
}

function options({ quick }: Context, batch: number): MeasureOptions {
  const rounds = quick ? 3 : batch >= 32 ? 7 : batch >= 8 ? 11 : 21;
  return { rounds, mostRounds: (quick ? 2 : 3) * rounds, warmups: quick || batch >= 8 ? 1 : 3 };
}

function batches({ quick }: Context): readonly number[] {
  return quick ? [1, 8] : [1, 8, 32];
}

/** Ours in every precision, for one model. */
async function ourModels(model: BenchModel): Promise<ReadonlyMap<Precision, Siglip2>> {
  const folder = await modelFolder(model);
  const loaded = new Map<Precision, Siglip2>();
  for (const precision of precisions) {
    loaded.set(precision, await Siglip2.load(folder, { precision }));
  }
  return loaded;
}

function disposeAll(loaded: ReadonlyMap<Precision, Siglip2>): void {
  for (const model of loaded.values()) model.dispose();
}

function contender(name: string, run: () => Promise<unknown>): Contender {
  return {
    name,
    run: async () => {
      await run();
      return undefined;
    },
  };
}

const ortNames = { float32: 'onnxruntime-node float32', int8: 'onnxruntime-node int8' } as const;

// Rows of every precision of ours against both of onnxruntime's.
function ortRows(
  what: string,
  ours: Iterable<Precision>,
  measured: Awaited<ReturnType<typeof measure>>,
  items: number,
  unit: string,
): Row[] {
  const pairs: Record<Precision, readonly ('float32' | 'int8')[]> = {
    float32: ['float32'],
    bfloat16: ['float32', 'int8'],
    int8: ['int8', 'float32'],
  };
  return [...ours].flatMap((precision) =>
    pairs[precision].map((peer) => {
      const name = `${what} ${precision}`;
      return speedRow(name, [precision, ortNames[peer]], ortNames[peer], measured, items, unit);
    }),
  );
}

function expectSame(what: string, ours: Float32Array, peer: ArrayLike<number>): void {
  const difference = relativeDifference(peer, ours);
  if (difference < sameWeights) return;
  throw new Error(
    `${what}: embeddings must agree within ${String(sameWeights)}, got ${String(difference)}`,
  );
}

/**
 * Times every candidate form on B/16 at batch 1 and takes the fastest of each precision. A choice made
 * earlier on this kind of processor is good enough for a part of the benchmark.
 */
async function chooseForms(
  ort: Ort,
  threads: number,
  { quick, only }: { readonly quick: boolean; readonly only: string },
): Promise<{ float32: Form; int8: Form }> {
  const file = join(modelsFolder, 'forms.json');
  const processor = cpus()[0].model;
  if (only !== '' && existsSync(file)) {
    const known = readJson(file) as { processor: string; float32: string; int8: string };
    const [float32, int8] = [false, true].map((narrow) =>
      candidateForms(narrow).get(narrow ? known.int8 : known.float32),
    );
    if (known.processor === processor && float32 !== undefined && int8 !== undefined) {
      return {
        float32: { name: known.float32, form: float32 },
        int8: { name: known.int8, form: int8 },
      };
    }
  }
  const model = modelOf('base-224');
  const [, side] = visionSizes(model.config);
  const feeds = imageFeeds(ort, pixelValues(1, side), side);
  const fastest = async (int8: boolean): Promise<Form> => {
    const forms = candidateForms(int8);
    const towers: OrtTower[] = [];
    const contenders: Contender[] = [];
    for (const [name, form] of forms) {
      const path = await onnxFile(model, 'vision', name, form);
      const tower = await OrtTower.open(ort, path, threads);
      towers.push(tower);
      contenders.push(contender(name, () => tower.run(feeds)));
    }
    const rounds = quick ? 5 : 15;
    const { seconds } = await measure(contenders, { rounds, mostRounds: 2 * rounds, warmups: 2 });
    for (const tower of towers) await tower.close();
    const [[name]] = [...seconds].sort(([, a], [, b]) => a - b);
    const list = [...seconds].map(([key, value]) => `${key} ${(1 / value).toFixed(2)}`).join(', ');
    process.stdout.write(
      `onnxruntime ${int8 ? 'int8' : 'float32'} forms, images/s: ${list}; taken: ${name}\n`,
    );
    const form = forms.get(name);
    if (form === undefined) throw new Error(`no form ${name}`);
    return { name, form };
  };
  const chosen = { float32: await fastest(false), int8: await fastest(true) };
  writeJson(file, { processor, float32: chosen.float32.name, int8: chosen.int8.name });
  return chosen;
}

function visionSizes({ vision }: ModelConfig): readonly [number, number] {
  return [vision.patch, vision.layout === 'fixed' ? vision.imageSize : 0];
}

async function openOrt(
  context: Context,
  model: BenchModel,
  tower: Parameters<typeof onnxFile>[1],
  int8: boolean,
): Promise<OrtTower | undefined> {
  const { ort, forms, threads } = context;
  if (ort === undefined || forms === undefined) return undefined;
  const { name, form } = int8 ? forms.int8 : forms.float32;
  return OrtTower.open(ort, await onnxFile(model, tower, name, form), threads);
}

/** A fixed-resolution vision tower from prepared pixels, PyTorch beside it for B/16. */
async function vision(
  context: Context,
  name: ModelName,
  sizes: readonly number[],
  withPyTorch: boolean,
): Promise<void> {
  const model = modelOf(name);
  const [, side] = visionSizes(model.config);
  const all = pixelValues(Math.max(...sizes), side);
  const ours = await ourModels(model);
  const towers = {
    float32: await openOrt(context, model, 'vision', false),
    int8: await openOrt(context, model, 'vision', true),
  };
  const pytorch = withPyTorch ? await openPyTorch(context, model) : undefined;
  for (const batch of sizes) {
    const values = all.slice(0, batch);
    const images = values.map((pixels) => ({ pixelValues: pixels }));
    const embed = { normalize: false, batchSize: batch };
    const contenders = [...ours].map(([precision, own]) =>
      contender(precision, () => own.embedImages(images, embed)),
    );
    const [expected] = (await ours.get('float32')?.embedImages(images, embed)) ?? [];
    const what = `vision ${model.title} batch ${String(batch)}`;
    const { ort } = context;
    if (ort !== undefined && towers.float32 !== undefined && towers.int8 !== undefined) {
      const feeds = imageFeeds(ort, values, side);
      const first = (await towers.float32.run(feeds)).subarray(0, expected.length);
      expectSame(`${what}: onnxruntime`, expected, first);
      const { float32, int8 } = towers;
      contenders.push(contender(ortNames.float32, () => float32.run(feeds)));
      contenders.push(contender(ortNames.int8, () => int8.run(feeds)));
    }
    const torch =
      pytorch === undefined
        ? []
        : await pytorchContenders(context, pytorch, values, side, expected);
    const measured = await measure([...contenders, ...torch], options(context, batch));
    if (towers.float32 !== undefined) {
      add(context, ...ortRows(what, ours.keys(), measured, batch, 'images/s'));
    }
    for (const peer of torch) {
      const same: Precision = peer.name.includes('bfloat16') ? 'bfloat16' : 'float32';
      const precision = ours.has(same) ? same : 'float32';
      const row = `${what} ${precision}`;
      add(context, speedRow(row, [precision, peer.name], peer.name, measured, batch, 'images/s'));
    }
  }
  pytorch?.close();
  await towers.float32?.close();
  await towers.int8?.close();
  disposeAll(ours);
}

async function openPyTorch(context: Context, model: BenchModel): Promise<PyTorch | undefined> {
  if (!context.pytorch) return undefined;
  return new PyTorch(await modelFolder(model), context.threads);
}

async function pytorchContenders(
  context: Context,
  pytorch: PyTorch,
  images: readonly Float32Array[],
  side: number,
  expected: Float32Array,
): Promise<Contender[]> {
  await pytorch.load(images, side);
  Object.assign(context.facts, pytorch.versions);
  const { first } = await pytorch.run('float32', false);
  expectSame('PyTorch', expected, first);
  const all: readonly (readonly [string, 'float32' | 'bfloat16', boolean])[] = [
    ['PyTorch float32 eager', 'float32', false],
    ['PyTorch float32 compiled', 'float32', true],
    ['PyTorch bfloat16 eager', 'bfloat16', false],
    ['PyTorch bfloat16 compiled', 'bfloat16', true],
  ];
  const usable: Contender[] = [];
  for (const [name, precision, compiled] of all) {
    if (precision === 'bfloat16' && !hasFlag(/\b(?:avx512_bf16|amx_bf16)\b/u)) {
      skip(context, name, 'the processor has neither AVX512_BF16 nor AMX');
      continue;
    }
    if (compiled && context.quick) {
      skip(context, name, 'not with --quick');
      continue;
    }
    try {
      await pytorch.run(precision, compiled);
      usable.push({ name, run: async () => (await pytorch.run(precision, compiled)).seconds });
    } catch (error) {
      skip(context, name, firstLine(error));
    }
  }
  return usable;
}

async function text(context: Context): Promise<void> {
  const model = modelOf('base-224');
  const { config } = model;
  const ours = await ourModels(model);
  const towers = {
    float32: await openOrt(context, model, 'text', false),
    int8: await openOrt(context, model, 'text', true),
  };
  for (const batch of batches(context)) {
    const ids = textIds(batch, config.text.length, config.text.vocabulary);
    const texts = ids.map((inputIds) => ({ inputIds }));
    const embed = { normalize: false, batchSize: batch };
    const contenders = [...ours].map(([precision, own]) =>
      contender(precision, () => own.embedTexts(texts, embed)),
    );
    const { ort } = context;
    const { float32, int8 } = towers;
    if (ort === undefined || float32 === undefined || int8 === undefined) return;
    const feeds = textFeeds(ort, ids);
    const [expected] = (await ours.get('float32')?.embedTexts(texts, embed)) ?? [];
    const what = `text B batch ${String(batch)}`;
    expectSame(what, expected, (await float32.run(feeds)).subarray(0, expected.length));
    contenders.push(contender(ortNames.float32, () => float32.run(feeds)));
    contenders.push(contender(ortNames.int8, () => int8.run(feeds)));
    const measured = await measure(contenders, options(context, batch));
    add(context, ...ortRows(what, ours.keys(), measured, batch, 'texts/s'));
  }
  await towers.float32?.close();
  await towers.int8?.close();
  disposeAll(ours);
}

/** Grids of at most 1,024 patches: square, wide, tall, a banner and two small images. */
const grids: readonly (readonly [number, number])[] = [
  [32, 32],
  [25, 40],
  [45, 22],
  [14, 73],
  [16, 16],
  [12, 20],
];

async function naflex(context: Context): Promise<void> {
  const model = modelOf('base-naflex');
  const folder = await modelFolder(model);
  const { patch, width } = model.config.vision;
  const rows = grids.map((grid) => patchRows(grid, patch));
  const images = grids.map((spatialShape, i) => ({ pixelValues: rows[i], spatialShape }));
  const ours = await ourModels(model);
  const embed = { normalize: false, batchSize: grids.length };
  const contenders = [...ours].map(([precision, own]) =>
    contender(precision, () => own.embedImages(images, embed)),
  );
  const expected = (await ours.get('float32')?.embedImages(images, embed)) ?? [];

  const { ort } = context;
  const single = await openOrt(context, model, 'naflex', false);
  const masked = await openOrt(context, model, 'naflex-masked', false);
  const small = await openOrt(context, model, 'naflex', true);
  if (ort === undefined || single === undefined || masked === undefined || small === undefined) {
    return;
  }
  const positions = await resizedPositions(join(folder, 'model.safetensors'), grids);
  const rowWidth = 3 * patch * patch;
  const tensor = (values: Float32Array, dims: readonly number[]): OrtFeeds[string] =>
    new ort.Tensor('float32', values, dims);
  const feeds = grids.map(([h, w], i) => ({
    pixel_values: tensor(rows[i], [1, h * w, rowWidth]),
    positions: tensor(positions[i], [1, h * w, width]),
  }));
  const longest = Math.max(...grids.map(([h, w]) => h * w));
  const padded = (parts: readonly Float32Array[], each: number): Float32Array => {
    const all = new Float32Array(parts.length * longest * each);
    parts.forEach((part, i) => {
      all.set(part, i * longest * each);
    });
    return all;
  };
  const bias = new Float32Array(grids.length * longest).fill(-1e9);
  grids.forEach(([h, w], i) => bias.fill(0, i * longest, i * longest + h * w));
  const together = {
    pixel_values: tensor(padded(rows, rowWidth), [grids.length, longest, rowWidth]),
    positions: tensor(padded(positions, width), [grids.length, longest, width]),
    attention_bias: tensor(bias, [grids.length, 1, 1, longest]),
  };
  const outputs = await masked.run(together);
  for (const [i, vector] of expected.entries()) {
    expectSame(`naflex image ${String(i)}`, vector, await single.run(feeds[i]));
    const part = outputs.subarray(i * width, (i + 1) * width);
    expectSame(`naflex image ${String(i)} with mask`, vector, part);
  }
  const oneByOne = async (tower: OrtTower): Promise<void> => {
    for (const feed of feeds) await tower.run(feed);
  };
  const paddedName = 'onnxruntime-node float32, padded';
  const peers = [
    contender(ortNames.float32, () => oneByOne(single)),
    contender(ortNames.int8, () => oneByOne(small)),
    contender(paddedName, () => masked.run(together)),
  ];
  const measured = await measure([...contenders, ...peers], options(context, 32));
  const what = `NaFlex B/16, 6 images to 1,024 patches`;
  add(context, ...ortRows(what, ours.keys(), measured, grids.length, 'images/s'));
  const pair = ['float32', paddedName] as const;
  add(context, speedRow(`${what} float32`, pair, paddedName, measured, grids.length, 'images/s'));
  for (const tower of [single, masked, small]) await tower.close();
  disposeAll(ours);
}

async function openTransformers(
  context: Context,
  model: BenchModel,
  int8: boolean,
): Promise<TransformersModel | undefined> {
  const { transformers, forms } = context;
  if (transformers === undefined || forms === undefined) return undefined;
  const { name, form } = int8 ? forms.int8 : forms.float32;
  await onnxFile(model, 'vision', name, form);
  return transformers.SiglipVisionModel.from_pretrained(basename(await modelFolder(model)), {
    dtype: int8 ? 'q8' : 'fp32',
    local_files_only: true,
    subfolder: formFolder(name, form),
    use_external_data_format: true,
    session_options: ortOptions(context.threads),
  });
}

/** JPEG files to embeddings. */
async function jpeg(context: Context): Promise<void> {
  const model = modelOf('base-224');
  const ours = await ourModels(model);
  const { transformers } = context;
  const peers = {
    fp32: await openTransformers(context, model, false),
    q8: await openTransformers(context, model, true),
  };
  const { fp32, q8 } = peers;
  if (transformers === undefined || fp32 === undefined || q8 === undefined) return;
  // From JPEG files the two differ by their resizing, so the weights are compared on pixels.
  const [, side] = visionSizes(model.config);
  const [pixels] = pixelValues(1, side);
  const [expected] =
    (await ours.get('float32')?.embedImages([{ pixelValues: pixels }], { normalize: false })) ?? [];
  const tensor = new transformers.Tensor('float32', pixels, [1, 3, side, side]);
  const { pooler_output: pooled } = await fp32({ pixel_values: tensor });
  expectSame('transformers.js', expected, pooled.data);
  const processor = await transformers.AutoProcessor.from_pretrained(
    basename(await modelFolder(model)),
    { local_files_only: true },
  );
  const sizes = context.quick ? [1, 8] : [1, 8, 32];
  const { files, real } = await jpegFiles(join(modelsFolder, 'jpeg'), Math.max(...sizes));
  context.facts.images = real ? 'COCO photographs' : 'drawn';
  for (const batch of sizes) {
    const paths = files.slice(0, batch);
    const contenders = [...ours].map(([precision, own]) =>
      contender(precision, () => own.embedImages(paths, { batchSize: batch })),
    );
    const embed = async (peer: TransformersModel): Promise<Float32Array> => {
      const images = await Promise.all(paths.map((path) => transformers.RawImage.read(path)));
      return (await peer(await processor(images))).pooler_output.data;
    };
    const names = { fp32: 'transformers.js fp32', q8: 'transformers.js q8' } as const;
    contenders.push(contender(names.fp32, () => embed(fp32)));
    contenders.push(contender(names.q8, () => embed(q8)));
    const measured = await measure(contenders, options(context, batch));
    const what = `JPEG to embedding B/16-224 batch ${String(batch)}`;
    for (const precision of ours.keys()) {
      for (const name of precision === 'float32' ? [names.fp32] : [names.q8, names.fp32]) {
        const row = `${what} ${precision}`;
        add(context, speedRow(row, [precision, name], name, measured, paths.length, 'images/s'));
      }
    }
  }
  await fp32.dispose();
  await q8.dispose();
  disposeAll(ours);
}

/** Cosine to float32 and agreement of the best text, on photographs where there are any. */
async function accuracy(context: Context): Promise<void> {
  const model = modelOf('base-224');
  const { config } = model;
  const [, side] = visionSizes(config);
  const ours = await ourModels(model);
  const reference = ours.get('float32');
  if (reference === undefined) return;
  const count = context.quick ? 16 : 128;
  const { files, real } = await jpegFiles(join(modelsFolder, 'jpeg'), count);
  const processor = createProcessor(defaultPreprocessor(config));
  if (processor.layout !== 'fixed') throw new Error('accuracy: layout must be fixed');
  const values: Float32Array[] = [];
  for (const file of files) {
    values.push((await processor.batch([await decodeImage(file, {})])).images);
  }
  const images = values.map((pixels) => ({ pixelValues: pixels }));
  const ids = textIds(64, config.text.length, config.text.vocabulary);
  const texts = await reference.embedTexts(ids.map((inputIds) => ({ inputIds })));
  const expected = await reference.embedImages(images);
  const rows: [string, Float32Array[]][] = [];
  for (const [precision, own] of ours) {
    if (precision !== 'float32') {
      rows.push([`ours ${precision}`, await own.embedImages(images)]);
    }
  }
  const { ort, forms } = context;
  if (ort !== undefined && forms !== undefined) {
    const kinds = [...candidateForms(true)].filter(([name]) => name.startsWith('as-exported'));
    const wanted = new Map([...kinds, [forms.int8.name, forms.int8.form] as const]);
    for (const [name, form] of wanted) {
      const path = await onnxFile(model, 'vision', name, form);
      const tower = await OrtTower.open(ort, path, context.threads);
      const vectors: Float32Array[] = [];
      for (const pixels of values) {
        vectors.push(await tower.run(imageFeeds(ort, [pixels], side)));
      }
      await tower.close();
      rows.push([`onnxruntime-node int8, ${name}`, vectors]);
    }
  }
  for (const [name, vectors] of rows) {
    const cosines = vectors.map((vector, i) => cosine(vector, expected[i]));
    const best = [expected, vectors].map((list) => bestTexts(list.map(unit), texts));
    const row: Accuracy = {
      name,
      meanCosine: cosines.reduce((a, b) => a + b, 0) / cosines.length,
      leastCosine: Math.min(...cosines),
      agreement: best[0].filter((text, i) => text === best[1][i]).length / vectors.length,
    };
    context.accuracy.push(row);
    process.stdout.write(
      `accuracy ${name.padEnd(44)} cosine ${row.meanCosine.toFixed(6)} (least ${row.leastCosine.toFixed(6)}), ` +
        `same best text ${(100 * row.agreement).toFixed(1)} % of ${String(files.length)} ${real ? 'photographs' : 'drawings'}\n`,
    );
  }
  disposeAll(ours);
}

function cosine(a: Float32Array, b: Float32Array): number {
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return ab / Math.sqrt(aa * bb);
}

function unit(vector: Float32Array): Float32Array {
  const norm = Math.hypot(...vector);
  return vector.map((value) => value / norm);
}

// Random towers put all images, and all texts, into one narrow cone; without its axis they differ.
function bestTexts(images: readonly Float32Array[], texts: readonly Float32Array[]): number[] {
  const centred = (list: readonly Float32Array[]): Float32Array[] => {
    const mean = list[0].map((_, d) => list.reduce((sum, v) => sum + v[d], 0) / list.length);
    return list.map((vector) => vector.map((value, d) => value - mean[d]));
  };
  const rows = centred(texts);
  return centred(images).map((image) => {
    const scores = rows.map((row) => cosine(row, image));
    return scores.indexOf(Math.max(...scores));
  });
}

/** Linear layers in the blocks of the vision tower against the peak of their own multiply-adds. */
async function linearLayers(context: Context): Promise<void> {
  const model = await openCheckpoint(await modelFolder(modelOf('base-224')), { towers: 'vision' });
  const { config } = model;
  const [, side] = visionSizes(config);
  const { width, mlpWidth, depth, positions } = config.vision;
  const perToken = depth * (4 * width * width + 2 * width * mlpWidth);
  const { vision } = model.parameters;
  if (vision === undefined) throw new Error('linear layers: the model must have a vision tower');
  for (const precision of precisions) {
    const constants = new Constants(vision);
    for (const batch of batches(context)) {
      const program = compile(
        'linear layers',
        (input: VisionInput<Tensor>, weights) => {
          const { pooled } = visionTower(weights, config, input);
          if (pooled === undefined) throw new Error('linear layers: the tower must be pooled');
          return { pooled };
        },
        visionInputSpecs(config, batch),
        { constants, ...towerOptions(precision, 'cpu') },
      );
      const images = concatenate(pixelValues(batch, side));
      const peakOf = (): number => loadAddon().peak(0.05, precision);
      let [least, whole, peak] = [Infinity, 0, peakOf()];
      for (let round = 0; round < (context.quick ? 4 : 12); round++) {
        const { outputs, times } = await program.profile({ images });
        disposeArrays(outputs);
        const sum = (list: typeof times): number =>
          list.reduce((total, { nanoseconds }) => total + nanoseconds, 0) / 1e9;
        const linear = sum(
          times.filter(
            ({ kernel, label }) => kernel.startsWith('linear') && label.includes('blocks'),
          ),
        );
        if (linear < least) [least, whole] = [linear, sum(times)];
        peak = Math.max(peak, peakOf());
      }
      program.dispose();
      const flops = (2 * batch * positions * perToken) / least;
      const row: LinearShare = {
        name: precision,
        batch,
        shareOfTime: rounded(least / whole),
        gigaflops: rounded(flops / 1e9),
        shareOfPeak: rounded(flops / peak),
      };
      context.linearShares.push(row);
      process.stdout.write(
        `linear layers ${precision} batch ${String(batch)}: ${row.gigaflops.toFixed(1)} GFLOP/s, ` +
          `${(100 * row.shareOfPeak).toFixed(0)} % of its peak, ${(100 * row.shareOfTime).toFixed(0)} % of the time\n`,
      );
    }
    constants.dispose();
  }
  model.dispose();
}

/** Process start to first embedding. */
async function cold(context: Context): Promise<void> {
  const { ort, forms, threads } = context;
  if (ort === undefined || forms === undefined) return;
  const model = modelOf('base-224');
  const folder = await modelFolder(model);
  const [, side] = visionSizes(model.config);
  const { files } = await jpegFiles(join(modelsFolder, 'jpeg'), 1);
  const file32 = await onnxFile(model, 'vision', forms.float32.name, forms.float32.form);
  const file8 = await onnxFile(model, 'vision', forms.int8.name, forms.int8.form);
  const engine = (name: string, ...args: readonly string[]): ColdEngine => {
    const [kind, file, option] = args;
    return { name, args: [kind, folder, file, String(side), String(threads), option] };
  };
  const sub = (form: Form): string => formFolder(form.name, form.form);
  const starts = await coldStarts(
    [
      ...precisions.flatMap((precision) => [
        engine(`${precision} from pixels`, 'ours', '-', precision),
        engine(`${precision} from JPEG`, 'ours-jpeg', files[0], precision),
      ]),
      engine('onnxruntime-node float32', 'onnxruntime', file32, '-'),
      engine('onnxruntime-node int8', 'onnxruntime', file8, '-'),
      engine('transformers.js fp32', 'transformers', files[0], sub(forms.float32)),
      engine('transformers.js q8', 'transformers', files[0], sub(forms.int8)),
    ],
    context.quick ? 2 : 9,
  );
  const pairs = [
    ['float32 from pixels', 'onnxruntime-node float32'],
    ['int8 from pixels', 'onnxruntime-node int8'],
    ['float32 from JPEG', 'transformers.js fp32'],
    ['int8 from JPEG', 'transformers.js q8'],
    ['bfloat16 from pixels', 'onnxruntime-node float32'],
  ] as const;
  for (const [ours, peer] of pairs) {
    const [a, b] = [starts.get(ours), starts.get(peer)];
    if (a === undefined || b === undefined) continue;
    add(context, ...coldRows(ours, peer, a, b));
  }
}

function coldRows(ours: string, peerName: string, a: ColdStart, b: ColdStart): Row[] {
  const row = (name: string, unit: string, mine: number, theirs: number): Row => ({
    name: `${name}, ${ours}`,
    peerName,
    ours: rounded(mine),
    peer: rounded(theirs),
    ratio: rounded(theirs / mine),
    unit,
  });
  return [
    row('cold start to first embedding', 'ms', a.milliseconds, b.milliseconds),
    row('peak resident memory', 'MiB', a.mebibytes, b.mebibytes),
  ];
}

const groups: readonly (readonly [string, (context: Context) => Promise<void>])[] = [
  ['vision', (context) => vision(context, 'base-224', batches(context), true)],
  ['text', text],
  ['jpeg', jpeg],
  ['naflex', naflex],
  ['accuracy', accuracy],
  ['linear-layers', linearLayers],
  ['cold-start', cold],
  ['so400m', (context) => vision(context, 'so400m-384', context.quick ? [1] : [1, 8], false)],
];

function readArguments(): {
  quick: boolean;
  page: boolean;
  pytorch: boolean;
  only: string;
  check?: string;
  tolerance: number;
  output?: string;
  merge: boolean;
} {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      page: { type: 'boolean', default: false },
      'no-pytorch': { type: 'boolean', default: false },
      only: { type: 'string', default: '' },
      check: { type: 'string' },
      tolerance: { type: 'string', default: '0.1' },
      output: { type: 'string' },
      merge: { type: 'boolean', default: false },
    },
  });
  const tolerance = Number(values.tolerance);
  if (!(tolerance >= 0 && tolerance < 1)) {
    throw new Error(`bench: --tolerance must be in [0, 1), got ${values.tolerance}`);
  }
  return { ...values, pytorch: !values['no-pytorch'], tolerance };
}

function machineFacts(threads: number): Record<string, string | number> {
  return {
    processor: cpus()[0].model,
    cores: cpus().length,
    'instruction set': loadAddon().describe().isa,
    threads,
    node: process.version,
  };
}

async function main(): Promise<void> {
  const asked = readArguments();
  if (asked.page) {
    writeText(pageFile, pageOf(readJson(resultsFile) as Results));
    return;
  }
  const before = asked.check === undefined ? undefined : (readJson(asked.check) as Results);
  const { threads } = loadAddon().describe();
  mkdirSync(modelsFolder, { recursive: true });
  const missing = installPeers();
  const ort = missing === undefined ? loadOrt() : undefined;
  const python = asked.pytorch ? pytorchMissing() : 'switched off';
  const context: Context = {
    quick: asked.quick,
    threads,
    ort,
    transformers: missing === undefined ? loadTransformers(modelsFolder) : undefined,
    pytorch: python === undefined,
    forms: ort === undefined ? undefined : await chooseForms(ort, threads, asked),
    rows: [],
    accuracy: [],
    linearShares: [],
    skipped: [],
    facts: machineFacts(threads),
  };
  if (missing !== undefined) skip(context, 'onnxruntime-node, transformers.js', missing);
  else {
    for (const name of ['onnxruntime-node', '@huggingface/transformers']) {
      context.facts[name] = peerVersion(name);
    }
  }
  if (python !== undefined) skip(context, 'PyTorch', python);
  process.stdout.write(
    `${Object.entries(context.facts)
      .map(([key, value]) => `${key} ${String(value)}`)
      .join(', ')}\n`,
  );
  for (const [name, run] of groups) {
    if (name.includes(asked.only)) await run(context);
  }
  context.facts[PEAK] = rounded(readPeak() / 1e9);
  const { facts: machine, forms, rows, accuracy: accuracies, linearShares, skipped } = context;
  const results: Results = {
    machine,
    forms: forms === undefined ? {} : { float32: forms.float32.name, int8: forms.int8.name },
    rows,
    accuracy: accuracies,
    linearShares,
    skipped,
  };
  const rejected = rows.reduce((sum, row) => sum + (row.rejected ?? 0), 0);
  process.stdout.write(`${String(rejected)} disturbed rounds thrown out over all rows\n`);
  if (asked.output !== undefined) writeJson(asked.output, results);
  if (before !== undefined) {
    const fallen = regressions(before.rows, rows, asked.tolerance);
    const judged = rows.filter(isSound).length;
    process.stdout.write(fallen.map((line) => `fell: ${line}\n`).join(''));
    process.stdout.write(`${String(judged)} of ${String(rows.length)} rows could be judged\n`);
    process.exitCode = fallen.length === 0 && judged > 0 ? 0 : 1;
    return;
  }
  if (asked.quick || asked.output !== undefined || (asked.only !== '' && !asked.merge)) return;
  const kept = asked.merge && existsSync(resultsFile) ? readJson(resultsFile) : undefined;
  const written = kept === undefined ? results : merged(kept as Results, results);
  writeJson(resultsFile, written);
  writeText(pageFile, pageOf(written));
}

void main();

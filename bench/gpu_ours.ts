// Our side of the GPU benchmark: one function per kind of row, seconds of one run. Kernels are timed by
// the device's own clock, towers and steps by how fast runs follow one another, and one image by the
// clock of the caller.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Device } from '../lib/array';
import { DeviceArray } from '../lib/array';
import { Philox4x32 } from '../lib/array/random';
import { Siglip2 } from '../lib/embed';
import type { Pixels } from '../lib/image';
import { FixedProcessor } from '../lib/image';
import type { ComputeDType, ConstantSource, MapTree, Program, Spec, Tensor } from '../lib/graph';
import {
  add,
  bfloat16,
  compile,
  Constants,
  disposeArrays,
  elements,
  float32,
  flatten,
  gradient,
  int32,
  uint8,
} from '../lib/graph';
import type { ModelConfig, ParameterSpec, VariantName, VisionParameters } from '../lib/model';
import {
  initialValues,
  twoTowersParameters,
  variant,
  visionInputSpecs,
  visionParameters,
  visionTower,
} from '../lib/model';
import { jointSelection } from '../lib/loss';
import { rewritesFor } from '../lib/nn';
import * as ops from '../lib/ops';
import { compileTwoTowersStep } from '../lib/train/two_towers';
import { defaultOptimizer, scheduleInput } from '../lib/train/optimizer';
import type { StoredTensor } from '../lib/weights';
import { encode } from '../lib/weights/number_formats';
import {
  concatenate,
  defaultPreprocessor,
  formatConfig,
  formatPreprocessor,
  huggingFaceTensors,
  writeSafetensors,
} from '../lib/weights';
import type { Request } from './gpu_rows';
import { median } from './measure';
import { writeJson } from './results';

/** What one row took. */
export interface Taken {
  readonly seconds: number;
  /** Memory of a run beyond its inputs. */
  readonly bytes?: number;
}

/** Where the runs are. */
export interface Target {
  readonly device: Device;
  readonly precision: ComputeDType;
}

const samples = 9;
const secondsPerRow = 1.5;
// So many calls of a kernel in one program that the device has the next one at hand.
const calls = 4;

// ---- Data ----

const DRAWN = 65521;

/** Normal numbers that repeat after some tens of thousands. */
function normals(count: number, deviation = 1): Float32Array {
  const drawn = new Float32Array(Math.min(count, DRAWN));
  new Philox4x32(1, 'gpu bench').fillNormal(drawn, deviation);
  return tiled(drawn, count);
}

function tiled(drawn: Float32Array, count: number): Float32Array {
  const values = new Float32Array(count);
  values.set(drawn.subarray(0, count));
  for (let filled = drawn.length; filled < count; filled *= 2) {
    values.copyWithin(filled, 0, Math.min(filled, count - filled));
  }
  return values;
}

function array({ device }: Target, shape: readonly number[], deviation = 1): DeviceArray {
  return DeviceArray.from(normals(elements(float32(...shape)), deviation), shape, device);
}

/** Initial values of a parameter, the first few drawn and then repeating. */
function parameter(spec: ParameterSpec): Float32Array {
  const count = elements(spec);
  return tiled(initialValues({ ...spec, shape: [Math.min(count, DRAWN)] }, 1), count);
}

/** The nearest bfloat16 of every value, as their bits. */
function rounded(values: Float32Array): Uint16Array {
  return new Uint16Array(encode('embeddings', values, 'BF16').buffer);
}

function unitRows(rows: number, width: number): Float32Array {
  const values = normals(rows * width);
  for (let i = 0; i < rows; i++) {
    const row = values.subarray(i * width, (i + 1) * width);
    let sum = 0;
    for (let d = 0; d < width; d++) sum += row[d] * row[d];
    const scale = 1 / Math.sqrt(sum);
    for (let d = 0; d < width; d++) row[d] *= scale;
  }
  return values;
}

// ---- Clocks ----

type Arrays = Record<string, DeviceArray>;
type Kernels = Program<Record<string, Spec>, Record<string, Tensor>>;

interface Timing {
  /** Which kernels count; all without it. */
  readonly kernel?: string;
  /** How many times the program holds what is timed. */
  readonly times?: number;
}

/** Median seconds of the kernels of a program. */
async function kernelSeconds(
  program: Kernels,
  inputs: Arrays,
  { kernel = '', times = 1 }: Timing,
): Promise<number> {
  const runs: number[] = [];
  const start = performance.now();
  for (let i = 0; i < samples + 2; i++) {
    const { outputs, times: steps } = await program.profile(inputs);
    for (const array of Object.values(outputs)) {
      if (!Object.values(inputs).includes(array)) array.dispose();
    }
    const counted = steps.filter((step) => step.kernel.startsWith(kernel));
    if (counted.length === 0) throw new Error(`the program must have kernels ${kernel}`);
    if (times > 1 && kernel !== '' && counted.length === times) {
      // Alike, so each is a sample; the first may have waited for its call.
      runs.push(median(counted.slice(1).map(({ nanoseconds }) => nanoseconds)) / 1e9);
    } else {
      runs.push(counted.reduce((sum, { nanoseconds }) => sum + nanoseconds, 0) / 1e9 / times);
    }
    if (i >= 4 && performance.now() - start > 1000 * secondsPerRow) break;
  }
  return median(runs.slice(2));
}

async function timeKernels(
  target: Target,
  specs: Record<string, Spec>,
  inputs: Arrays,
  fn: (tensors: Record<string, Tensor>) => Record<string, Tensor>,
  timing: Timing & { readonly donate?: readonly string[] },
): Promise<Taken> {
  const { donate = [] } = timing;
  const program: Kernels = compile('row', fn, specs, { ...target, donate });
  try {
    const seconds = await kernelSeconds(program, inputs, timing);
    const { arenaBytes, outputBytes } = program.memory;
    return { seconds, bytes: arenaBytes + outputBytes };
  } finally {
    program.dispose();
    disposeArrays(inputs);
  }
}

/** The same inputs through some calls of an operation; results are kept alive by their squares. */
function repeated(call: (i: number) => Tensor): Record<string, Tensor> {
  const squares = Array.from({ length: calls }, (_, i) => {
    const y = call(i);
    return ops.dot(y, y);
  });
  return { sum: squares.reduce((sum, square) => add(sum, square)) };
}

/** Seconds a run takes where the next ones are queued already. */
async function throughput(run: () => Promise<object>): Promise<number> {
  const one = async (): Promise<void> => {
    disposeArrays(await run());
  };
  for (let i = 0; i < 3; i++) await one();
  const start = performance.now();
  await one();
  const estimate = (performance.now() - start) / 1000;
  const count = Math.max(4, Math.min(200, Math.ceil(secondsPerRow / estimate / 3)));
  const rounds: number[] = [];
  for (let round = 0; round < 3; round++) {
    const begin = performance.now();
    const queued: Promise<void>[] = [];
    for (let i = 0; i < count; i++) {
      queued.push(one());
      if (i >= 2) await queued[i - 2];
    }
    await Promise.all(queued);
    rounds.push((performance.now() - begin) / 1000 / count);
  }
  return median(rounds);
}

// ---- Kinds ----

type Sizes = Readonly<Record<string, number>>;
type Kind = (request: Request, target: Target) => Promise<Taken>;

function sizes(request: Request): Sizes {
  return request as unknown as Sizes;
}

const copy: Kind = ({ batch }, target) => {
  const specs = { x: float32(batch / 4) };
  const inputs = { x: array(target, [batch / 4]) };
  return timeKernels(target, specs, inputs, ({ x }) => ({ y: x }), { kernel: 'copy_forward' });
};

const matmul: Kind = (request, target) => {
  const { batch, inner, outer } = sizes(request);
  const specs = { a: float32(batch, inner), b: float32(outer, inner) };
  const inputs = { a: array(target, [batch, inner]), b: array(target, [outer, inner]) };
  const fn = ({ a, b }: Record<string, Tensor>): Record<string, Tensor> =>
    repeated(() => ops.matmul(a, b, { transposeB: true }));
  return timeKernels(target, specs, inputs, fn, { kernel: 'matmul_forward', times: calls });
};

const linear: Kind = (request, target) => {
  const { batch, inner, outer } = sizes(request);
  const specs = { x: float32(batch, inner), w: float32(outer, inner), b: float32(outer) };
  const inputs = {
    x: array(target, [batch, inner]),
    w: array(target, [outer, inner], 0.02),
    b: array(target, [outer]),
  };
  const fn = ({ x, w, b }: Record<string, Tensor>): Record<string, Tensor> =>
    repeated(() => {
      const y = ops.linear(x, w, b);
      return request['gelu'] === true ? ops.gelu(y) : y;
    });
  return timeKernels(target, specs, inputs, fn, { kernel: 'linear_forward', times: calls });
};

const attention: Kind = (request, target) => {
  const { batch, tokens, heads, headWidth } = sizes(request);
  const shape = [batch, tokens, heads * headWidth];
  const names = ['q', 'k', 'v', 'dout'];
  const specs = Object.fromEntries(names.map((name) => [name, float32(...shape)]));
  const inputs = Object.fromEntries(names.map((name) => [name, array(target, shape)]));
  if (request['pass'] === 'forward') {
    const fn = ({ q, k, v }: Record<string, Tensor>): Record<string, Tensor> =>
      repeated(() => ops.attention(q, k, v, { heads }));
    return timeKernels(target, specs, inputs, fn, { kernel: 'attention_forward', times: calls });
  }
  const fn = ({ q, k, v, dout }: Record<string, Tensor>): Record<string, Tensor> => {
    const value = ops.dot(ops.attention(q, k, v, { heads }), dout);
    return squares(gradient(value, { q, k, v }));
  };
  return timeKernels(target, specs, inputs, fn, { kernel: 'attention_backward' });
};

/** One number of each, so that results take no memory. */
function squares(tensors: Record<string, Tensor>): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, tensor]) => [name, ops.dot(tensor, tensor)]),
  );
}

const layerNorm: Kind = (request, target) => {
  const { batch, width } = sizes(request);
  const rows = float32(batch, width);
  const specs = {
    x: rows,
    dy: rows,
    weight: float32(width),
    bias: float32(width),
    ids: int32(batch),
  };
  const inputs = {
    x: array(target, [batch, width]),
    dy: array(target, [batch, width]),
    weight: array(target, [width]),
    bias: array(target, [width]),
    ids: DeviceArray.from(
      Int32Array.from({ length: batch }, (_, i) => i),
      [batch],
      target.device,
    ),
  };
  // In a tower its operands come in the precision of the program, as looked-up rows do.
  const narrow = (x: Tensor, ids: Tensor): Tensor => ops.embedding(x, ids);
  if (request['pass'] === 'forward') {
    const fn = ({ x, weight, bias, ids }: Record<string, Tensor>): Record<string, Tensor> => {
      const rowsOf = narrow(x, ids);
      return repeated(() => ops.layerNorm(rowsOf, weight, bias, { eps: 1e-6 }));
    };
    return timeKernels(target, specs, inputs, fn, { kernel: 'layer_norm_forward', times: calls });
  }
  const fn = ({ x, dy, weight, bias, ids }: Record<string, Tensor>): Record<string, Tensor> => {
    const normed = ops.layerNorm(narrow(x, ids), weight, bias, { eps: 1e-6 });
    const value = ops.dot(normed, narrow(dy, ids));
    return squares(gradient(value, { x, weight, bias }));
  };
  return timeKernels(target, specs, inputs, fn, { kernel: 'layer_norm_backward' });
};

const adam: Kind = ({ batch }, target) => {
  const flat = float32(batch);
  const specs = {
    param: flat,
    m: flat,
    v: flat,
    grad: flat,
    gradNorm: float32(1),
    schedule: float32(3),
  };
  const { device } = target;
  const inputs = {
    param: array(target, [batch]),
    m: DeviceArray.zeros(flat, device),
    v: DeviceArray.zeros(flat, device),
    grad: array(target, [batch], 1e-3),
    gradNorm: DeviceArray.from(Float32Array.of(1), [1], device),
    schedule: DeviceArray.from(Float32Array.of(1e-3, 0.1, 0.05), [3], device),
  };
  const fn = (t: Record<string, Tensor>): Record<string, Tensor> => {
    const { param, m, v, grad, gradNorm, schedule } = t;
    const updated = ops.adam({ param, m, v, grad, gradNorm, schedule }, defaultOptimizer);
    return { ...updated };
  };
  const donate = ['param', 'm', 'v'];
  return timeKernels(target, specs, inputs, fn, { kernel: 'adam', donate });
};

const sigmoidLoss: Kind = (request, target) => {
  const { batch, width } = sizes(request);
  const { device } = target;
  // As the peer has them.
  const specs = {
    images: bfloat16(batch, width),
    texts: bfloat16(batch, width),
    logitScale: float32(1),
    logitBias: float32(1),
  };
  const inputs = {
    images: DeviceArray.from(rounded(unitRows(batch, width)), [batch, width], device),
    texts: DeviceArray.from(rounded(unitRows(batch, width).reverse()), [batch, width], device),
    logitScale: DeviceArray.from(Float32Array.of(Math.log(10)), [1], device),
    logitBias: DeviceArray.from(Float32Array.of(-10), [1], device),
  };
  const fn = (t: Record<string, Tensor>): Record<string, Tensor> => {
    const { logitScale, logitBias } = t;
    const images = ops.cast(t['images'], 'float32');
    const texts = ops.cast(t['texts'], 'float32');
    const loss = ops.sigmoidLoss(images, texts, logitScale, logitBias);
    return { loss, ...gradient(loss, { images, texts, logitScale, logitBias }) };
  };
  return timeKernels(target, specs, inputs, fn, {});
};

const selection: Kind = (request, target) => {
  const { batch, width, picked, chunks } = sizes(request);
  const { device } = target;
  const embeddings = ['learnerImages', 'learnerTexts', 'referenceImages', 'referenceTexts'];
  const specs = {
    ...Object.fromEntries(embeddings.map((name) => [name, float32(batch, width)])),
    scale: float32(1),
    bias: float32(1),
    taken: uint8(batch),
    draw: int32(4),
  };
  const rows = unitRows(batch, width);
  const inputs: Arrays = {
    ...Object.fromEntries(
      embeddings.map((name, i) => [
        name,
        // Rows of one another's neighbours: alike, and never the same.
        DeviceArray.from(rotated(rows, i * width), [batch, width], device),
      ]),
    ),
    scale: DeviceArray.from(Float32Array.of(Math.log(100)), [1], device),
    bias: DeviceArray.from(Float32Array.of(-10), [1], device),
    taken: DeviceArray.zeros(uint8(batch), device),
    draw: DeviceArray.from(Int32Array.of(1, 0, 2, 0), [4], device),
  };
  const fn = (t: Record<string, Tensor>): Record<string, Tensor> => {
    const { scale: logitScale, bias: logitBias } = t;
    const learner = { images: t['learnerImages'], texts: t['learnerTexts'], logitScale, logitBias };
    const reference = {
      images: t['referenceImages'],
      texts: t['referenceTexts'],
      logitScale,
      logitBias,
    };
    const options = { batch: picked, chunks };
    return { taken: jointSelection(learner, reference, t['taken'], t['draw'], options).taken };
  };
  return timeKernels(target, specs, inputs, fn, {});
};

function rotated(values: Float32Array, by: number): Float32Array {
  const turned = new Float32Array(values.length);
  turned.set(values.subarray(by));
  turned.set(values.subarray(0, by), values.length - by);
  return turned;
}

function modelOf(request: Request): ModelConfig {
  const { imageSize } = sizes(request);
  return variant(request['model'] as VariantName, { imageSize });
}

const embed: Kind = async (request, target) => {
  const { batch } = request;
  const config = modelOf(request);
  const tree = visionParameters<ConstantSource>(config, (spec) => ({
    dtype: spec.dtype,
    shape: spec.shape,
    open: () => Promise.resolve(DeviceArray.from(parameter(spec), spec.shape, target.device)),
  }));
  const constants = new Constants(tree);
  const specs = { images: visionInputSpecs(config, batch) };
  const program = compile(
    'embed',
    (
      inputs: MapTree<typeof specs, Spec, Tensor>,
      weights: MapTree<VisionParameters<ConstantSource>, ConstantSource, Tensor>,
    ) => {
      const parameters = weights as VisionParameters<Tensor>;
      const { embedding } = visionTower(parameters, config, inputs.images);
      if (embedding === undefined) throw new Error('embed: the tower must be pooled');
      return { embedding };
    },
    specs,
    { ...target, constants, rewrites: rewritesFor(target.device) },
  );
  const side = sizes(request)['imageSize'];
  const images = array(target, [batch, 3, side, side]);
  try {
    const seconds = await throughput(() => program.run({ images: { images } }));
    return { seconds, bytes: program.memory.peakBytes };
  } finally {
    program.dispose();
    constants.dispose();
    images.dispose();
  }
};

/** Writes a checkpoint whose text tower is as small as the format allows. */
export async function writeModel(folder: string, whole: ModelConfig): Promise<void> {
  const tiny = { width: 64, depth: 1, mlpWidth: 64, heads: 1, vocabulary: 64 };
  const config: ModelConfig = { ...whole, text: { ...whole.text, ...tiny } };
  const tensors = new Map<string, StoredTensor>();
  for (const { name, shape, parts } of huggingFaceTensors(config)) {
    tensors.set(name, { dtype: 'F32', shape, data: () => concatenate(parts.map(parameter)) });
  }
  await writeSafetensors(join(folder, 'model.safetensors'), tensors, { format: 'pt' });
  writeJson(join(folder, 'config.json'), formatConfig(config));
  const preprocessor = formatPreprocessor(defaultPreprocessor(config));
  writeJson(join(folder, 'preprocessor_config.json'), preprocessor);
}

const latency: Kind = async (request, { device, precision }) => {
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-bench-'));
  try {
    await writeModel(folder, modelOf(request));
    const model = await Siglip2.load(folder, { device, precision, towers: 'vision' });
    try {
      const side = sizes(request)['imageSize'];
      const pixelValues = normals(3 * side * side);
      const times: number[] = [];
      const start = performance.now();
      while (performance.now() - start < 2000 * secondsPerRow) {
        const begin = performance.now();
        await model.embedImages([{ pixelValues }]);
        times.push((performance.now() - begin) / 1000);
      }
      // The first half is for the compiler of JavaScript.
      return { seconds: median(times.slice(Math.floor(times.length / 2))) };
    } finally {
      model.dispose();
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
};

// From pixels as a decoder leaves them to bytes on the device.
const resize: Kind = async (request, { device }) => {
  const { batch, width, height, size } = sizes(request);
  const processor = new FixedProcessor({
    layout: 'fixed',
    resample: 'bicubic',
    backend: 'pillow',
    height: size,
    width: size,
    rescaleFactor: 1 / 255,
    mean: [0.5, 0.5, 0.5],
    std: [0.5, 0.5, 0.5],
  });
  const drawn = Uint8Array.from(
    { length: 3 * width * height },
    (_, i) => Math.imul(i, 0x9e3779b1) >>> 24,
  );
  const photos = Array.from({ length: batch }, (): Pixels => {
    return {
      data: drawn.slice(),
      width,
      height,
      format: 'rgb',
      background: undefined,
      owned: true,
    };
  });
  const seconds = await throughput(async () => ({
    pixels: await processor.resized(photos, device),
  }));
  return { seconds };
};

const trainStep: Kind = async (request, target) => {
  const { batch } = request;
  const { device, precision } = target;
  const model = modelOf(request);
  const optimizer = { ...defaultOptimizer, learningRate: 1e-6 };
  const program = compileTwoTowersStep({
    model,
    batch,
    optimizer,
    images: 'values',
    device,
    precision,
  });
  const own: DeviceArray[] = [];
  const keep = (made: DeviceArray): DeviceArray => {
    own.push(made);
    return made;
  };
  try {
    const zeros = (): ReturnType<typeof twoTowersParameters<DeviceArray>> =>
      twoTowersParameters(model, ({ dtype, shape }) =>
        keep(DeviceArray.zeros({ dtype, shape }, device)),
      );
    const parameters = twoTowersParameters(model, (spec) =>
      keep(DeviceArray.from(parameter(spec), spec.shape, device)),
    );
    const state = { m: zeros(), v: zeros() };
    const side = sizes(request)['imageSize'];
    const { vocabulary, length } = model.text;
    const ids = int32(batch, length);
    const texts = keep(
      DeviceArray.from(
        Int32Array.from({ length: elements(ids) }, (_, i) => (i * 7919) % vocabulary),
        ids.shape,
        device,
      ),
    );
    const images = { images: keep(array(target, [batch, 3, side, side])) };
    const inputs = {
      parameters,
      state,
      schedule: scheduleInput(1, 1, optimizer),
      averages: {},
      entered: {},
      batches: [{ images, texts }],
    };
    const seconds = await throughput(async () => {
      const outputs = await program.run(inputs);
      const fresh = flatten(outputs)
        .map(({ leaf }) => leaf as DeviceArray)
        .filter((leaf) => !own.includes(leaf));
      return Object.fromEntries(fresh.map((leaf, i) => [String(i), leaf]));
    });
    return { seconds, bytes: program.memory.peakBytes };
  } finally {
    program.dispose();
    for (const made of own) made.dispose();
  }
};

const kinds: Readonly<Record<string, Kind>> = {
  copy,
  matmul,
  linear,
  attention,
  layer_norm: layerNorm,
  adam,
  sigmoid_loss: sigmoidLoss,
  joint_selection: selection,
  embed,
  latency,
  resize,
  train_step: trainStep,
};

/** One row of ours. @throws for a kind that we do not have */
export async function measureOurs(request: Request, target: Target): Promise<Taken> {
  const kind = kinds[request.kind];
  if (kind === undefined) throw new Error(`${request.kind} is not here yet`);
  return kind(request, target);
}

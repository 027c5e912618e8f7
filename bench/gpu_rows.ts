// The rows of the GPU benchmark: what both sides are asked, and what a run of it is worth.
import type { VariantName } from '../lib/model';
import { variant } from '../lib/model';

/** A request as bench/peers/pytorch_gpu.py takes it: a kind and its sizes. */
export type Request = Readonly<Record<string, string | number | boolean | readonly string[]>> & {
  readonly kind: string;
  readonly batch: number;
};

export type Unit = 'TFLOP/s' | 'TB/s' | 'GB/s' | 'ms' | 'images/s' | 'pairs/s';

/** One row. */
export interface GpuRow {
  readonly name: string;
  readonly unit: Unit;
  /** Floating-point operations, bytes or items of one run; for `ms` unused. */
  readonly work: number;
  /** Seconds each side may take, compilation included. */
  readonly seconds: number;
  /** Whether peak bytes are a row of their own. */
  readonly memory?: boolean;
  readonly request: Request;
}

/** What a time is in a row's unit. */
export function figureOf({ unit, work }: GpuRow, seconds: number): number {
  switch (unit) {
    case 'ms':
      return 1e3 * seconds;
    case 'TFLOP/s':
    case 'TB/s':
      return work / seconds / 1e12;
    case 'GB/s':
      return work / seconds / 1e9;
    case 'images/s':
    case 'pairs/s':
      return work / seconds;
  }
}

/** How rows are made. */
export interface RowOptions {
  /** Sizes for a look at whether everything works. */
  readonly quick: boolean;
  /** PyTorch compiles whole towers and steps; else the block, which compiles a dozen times faster. */
  readonly whole: boolean;
}

function attention(
  pass: 'forward' | 'backward',
  tokens: number,
  headWidth: number,
  { quick }: RowOptions,
): GpuRow {
  const heads = headWidth === 64 ? 12 : 16;
  const batch = Math.round((quick ? 1 << 12 : 1 << 16) / tokens);
  const products = pass === 'forward' ? 2 : 5;
  return {
    name: `attention ${pass}, ${String(tokens)} tokens, heads of ${String(headWidth)}`,
    unit: 'TFLOP/s',
    work: products * 2 * batch * heads * tokens * tokens * headWidth,
    seconds: 20,
    request: { kind: 'attention', pass, batch, tokens, heads, headWidth },
  };
}

function linear(inner: number, outer: number, gelu: boolean, { quick }: RowOptions): GpuRow {
  const batch = quick ? 1 << 12 : 1 << 16;
  return {
    name: `linear ${String(inner)} to ${String(outer)}${gelu ? ' with GELU' : ''}, ${String(batch)} rows`,
    unit: 'TFLOP/s',
    work: 2 * batch * inner * outer,
    seconds: 30,
    request: { kind: 'linear', batch, inner, outer, gelu },
  };
}

function layerNorm(pass: 'forward' | 'backward', width: number, { quick }: RowOptions): GpuRow {
  const batch = quick ? 1 << 12 : 1 << 17;
  // bfloat16: x and y, or dy, x and dx.
  const tensors = pass === 'forward' ? 2 : 3;
  return {
    name: `layer norm ${pass}, ${String(batch)} x ${String(width)}`,
    unit: 'TB/s',
    work: tensors * 2 * batch * width,
    seconds: 30,
    request: { kind: 'layer_norm', pass, batch, width },
  };
}

function sigmoidLoss(rows: number, width: number, { quick }: RowOptions): GpuRow {
  const batch = quick ? rows >> 4 : rows;
  return {
    name: `sigmoid loss with gradients, batch ${String(batch)}, width ${String(width)}`,
    unit: 'ms',
    work: 0,
    seconds: 60,
    memory: true,
    request: { kind: 'sigmoid_loss', batch, width },
  };
}

function jointSelection({ quick }: RowOptions): GpuRow {
  const batch = quick ? 1 << 12 : 1 << 16;
  const picked = batch / 2;
  return {
    name: `joint selection of ${String(picked)} out of ${String(batch)}, width 768`,
    unit: 'ms',
    work: 0,
    seconds: 60,
    request: { kind: 'joint_selection', batch, width: 768, picked, chunks: 16 },
  };
}

function resize({ quick }: RowOptions): GpuRow {
  const [batch, width, height, size] = [quick ? 8 : 64, 1600, 1200, 224];
  return {
    name: `${String(batch)} photos of ${String(width)} x ${String(height)} in host memory to ${String(size)} x ${String(size)}, bicubic`,
    unit: 'GB/s',
    work: batch * 3 * width * height,
    seconds: 30,
    request: { kind: 'resize', batch, width, height, size },
  };
}

type Model = Readonly<Record<string, number>>;

function sizesOf(name: VariantName, imageSize: number): Model {
  const { vision, text } = variant(name, { imageSize });
  const { width, mlpWidth, depth, heads, patch } = vision;
  const { vocabulary, length } = text;
  return { width, mlpWidth, depth, heads, patch, imageSize, vocabulary, length };
}

function embed(name: VariantName, batches: number, { quick, whole }: RowOptions): GpuRow {
  const batch = quick ? batches >> 4 : batches;
  return {
    name: `image embeddings ${name}-256, batch ${String(batch)}`,
    unit: 'images/s',
    work: batch,
    seconds: 90,
    request: {
      kind: 'embed',
      batch,
      model: name,
      ...sizesOf(name, 256),
      compile: [whole || name === 'B/16' ? 'whole' : 'blocks'],
    },
  };
}

function trainStep(name: VariantName, pairs: number, { quick, whole }: RowOptions): GpuRow {
  const batch = quick ? pairs >> 4 : pairs;
  return {
    name: `training step ${name}-256, ${String(batch)} pairs`,
    unit: 'pairs/s',
    work: batch,
    seconds: 120,
    request: {
      kind: 'train_step',
      batch,
      model: name,
      ...sizesOf(name, 256),
      compile: [whole ? 'whole' : 'blocks'],
    },
  };
}

/** All rows, what matters most first. */
export function gpuRows(options: RowOptions): readonly GpuRow[] {
  const { quick } = options;
  const bytes = quick ? 1 << 26 : 1 << 30;
  const side = quick ? 1024 : 8192;
  const count = quick ? 1 << 22 : 1 << 27;
  return [
    {
      name: 'device copy',
      unit: 'TB/s',
      work: 2 * bytes,
      seconds: 10,
      request: { kind: 'copy', batch: bytes },
    },
    {
      name: `matrix product ${String(side)}³`,
      unit: 'TFLOP/s',
      work: 2 * side ** 3,
      seconds: 10,
      request: { kind: 'matmul', batch: side, inner: side, outer: side },
    },
    attention('forward', 256, 64, options),
    attention('forward', 256, 72, options),
    attention('forward', 256, 96, options),
    attention('forward', 576, 64, options),
    attention('forward', 1024, 64, options),
    attention('backward', 256, 64, options),
    attention('backward', 256, 72, options),
    attention('backward', 256, 96, options),
    attention('backward', 1024, 64, options),
    sigmoidLoss(32768, 768, options),
    sigmoidLoss(65536, 1152, options),
    jointSelection(options),
    embed('B/16', 512, options),
    embed('So400m/16', 256, options),
    trainStep('B/16', 256, options),
    trainStep('So400m/16', 128, options),
    {
      name: 'one image B/16-224 through the JavaScript interface',
      unit: 'ms',
      work: 0,
      seconds: 60,
      request: {
        kind: 'latency',
        batch: 1,
        model: 'B/16',
        ...sizesOf('B/16', 224),
        compile: ['whole'],
      },
    },
    resize(options),
    layerNorm('forward', 768, options),
    layerNorm('backward', 768, options),
    layerNorm('forward', 1152, options),
    layerNorm('backward', 1152, options),
    linear(768, 2304, false, options),
    linear(768, 3072, true, options),
    linear(3072, 768, false, options),
    {
      name: `Adam, ${String(count)} parameters`,
      unit: 'TB/s',
      // float32: parameter, gradient and moments read; all but the gradient written.
      work: 7 * 4 * count,
      seconds: 20,
      request: { kind: 'adam', batch: count },
    },
  ];
}

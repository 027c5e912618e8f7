// A training step on many GPUs, worked out from what it computes, keeps and sends. Times are estimates:
// what was measured on one GPU, data sheets, and assumptions that devices.ts names.
import { SiglipError } from '../errors';
import type { ModelConfig } from '../model';
import type { DecoderConfig } from './cost';
import { activationBytes, forwardOperations, lossOperations, parametersOf } from './cost';
import type { GpuFigures } from './devices';
import { ADAM_BYTES, GPUS_PER_SERVER, LATENCY, LINK_SHARE, RESERVED } from './devices';

/**
 * Where parameters, gradients and moments are: all on every GPU; moments in shares (ZeRO-1); all in
 * shares, gathered block by block (FSDP).
 */
export const shardings = ['data', 'zero1', 'fsdp'] as const;
/** `data`, `zero1` or `fsdp`. */
export type Sharding = (typeof shardings)[number];

/** How embeddings of other ranks are reached: all at once, or block by block around a ring. */
export const exchanges = ['gather', 'ring'] as const;
/** `gather` or `ring`. */
export type Exchange = (typeof exchanges)[number];

export interface PlanConfig {
  readonly model: ModelConfig;
  readonly gpu: GpuFigures;
  readonly gpus: number;
  /** Pairs of the global batch, a multiple of `gpus`. */
  readonly batch: number;
  readonly decoder?: DecoderConfig | undefined;
  /** Default: the fastest that fits. */
  readonly sharding?: Sharding | undefined;
  /** Default: the fastest that fits. */
  readonly checkpoint?: boolean | undefined;
  /** Pairs of one run of the towers on a GPU. Default: the largest that fits. */
  readonly microBatch?: number | undefined;
  /** Default `'gather'`. */
  readonly exchange?: Exchange | undefined;
}

/** Bytes on one GPU. */
export interface PlanMemory {
  /** Float32 parameters and their bfloat16 copies. */
  readonly weights: number;
  readonly gradients: number;
  readonly moments: number;
  readonly activations: number;
  /** Embeddings, their gradients, and those of other ranks. */
  readonly embeddings: number;
  readonly total: number;
}

/** Seconds of a step. */
export interface PlanTime {
  readonly towers: number;
  readonly loss: number;
  readonly optimizer: number;
  /** Of sending gradients and parameters, what no computation hides. */
  readonly reduction: number;
  /** Of exchanging embeddings. */
  readonly embeddings: number;
  readonly total: number;
}

/** Bytes that a GPU sends in a step. */
export interface PlanTraffic {
  readonly gradients: number;
  readonly parameters: number;
  readonly embeddings: number;
}

/** A step of one setting. */
export interface StepPlan {
  readonly sharding: Sharding;
  readonly checkpoint: boolean;
  readonly microBatch: number;
  readonly exchange: Exchange;
  readonly parameters: number;
  /** Forward operations of a pair. */
  readonly operations: { readonly vision: number; readonly text: number; readonly decoder: number };
  readonly memory: PlanMemory;
  readonly fits: boolean;
  readonly traffic: PlanTraffic;
  readonly time: PlanTime;
  readonly pairsPerSecond: number;
  /** Operations of the model, none counted twice, over what the GPUs could do in the time. */
  readonly utilization: number;
  /** The largest part of the time, or memory where it does not fit. */
  readonly binds: keyof Omit<PlanTime, 'total'> | 'memory';
}

/**
 * The fastest step that fits among those a config leaves open; where none fits, that of least memory.
 *
 * @throws ERR_ARGUMENT for numbers that do not divide each other.
 */
export function planStep(config: PlanConfig): StepPlan {
  const { gpus, batch, microBatch } = config;
  for (const [name, value] of Object.entries({ gpus, batch, microBatch: microBatch ?? 1 })) {
    if (Number.isSafeInteger(value) && value >= 1) continue;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `plan: ${name} must be a positive integer, got ${String(value)}`,
    );
  }
  const rows = batch / gpus;
  if (!Number.isInteger(rows) || (microBatch !== undefined && rows % microBatch !== 0)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `plan: batch must be a multiple of gpus${microBatch === undefined ? '' : ' times microBatch'}, got ${String(batch)}, ${String(gpus)}${microBatch === undefined ? '' : ` and ${String(microBatch)}`}`,
    );
  }
  const settings = (config.sharding === undefined ? shardings : [config.sharding]).flatMap(
    (sharding) =>
      (config.checkpoint === undefined ? [false, true] : [config.checkpoint]).flatMap(
        (checkpoint) =>
          (microBatch === undefined ? divisors(rows) : [microBatch]).map((each) => ({
            sharding,
            checkpoint,
            microBatch: each,
          })),
      ),
  );
  const plans = settings.map((setting) => planOf(config, setting));
  const fitting = plans.filter(({ fits }) => fits);
  // Of equals the first: the larger micro-batch, the fewer passes, the less that is sharded.
  const better = (a: StepPlan, b: StepPlan): StepPlan =>
    b.time.total < (1 - 1e-9) * a.time.total ? b : a;
  const smaller = (a: StepPlan, b: StepPlan): StepPlan => (b.memory.total < a.memory.total ? b : a);
  return fitting.length > 0 ? fitting.reduce(better) : plans.reduce(smaller);
}

// From the largest.
function divisors(rows: number): number[] {
  return Array.from({ length: rows }, (_, i) => rows - i).filter((each) => rows % each === 0);
}

interface Setting {
  readonly sharding: Sharding;
  readonly checkpoint: boolean;
  readonly microBatch: number;
}

function planOf(config: PlanConfig, setting: Setting): StepPlan {
  const { model, gpu, gpus, batch, decoder, exchange = 'gather' } = config;
  const rows = batch / gpus;
  const parameters = parametersOf(model, decoder);
  const operations = forwardOperations(model, decoder);
  const memory = memoryOf(config, setting, parameters);
  const fits = memory.total + RESERVED <= gpu.memory;
  const traffic = trafficOf(config, setting, parameters);

  // Forward and backward; the forward once more for checkpoints, and once for a batch in parts.
  const forward = operations.vision + operations.text + operations.decoder;
  const cached = setting.microBatch < rows;
  const passes = 3 + (setting.checkpoint ? 1 : 0) + (cached ? 1 : 0);
  const towers = (passes * forward * rows) / (gpu.peak * gpu.towerShare);
  const loss = lossOperations(batch, rows, model.embedding) / (gpu.peak * gpu.lossShare);
  const updated = setting.sharding === 'data' ? parameters : parameters / gpus;
  const optimizer = (ADAM_BYTES * updated) / gpu.memoryRate;

  const rate = LINK_SHARE * rateBetween(gpu, gpus);
  const blocks = model.vision.depth + model.text.depth;
  const steps = gpus === 1 ? 0 : Math.ceil(Math.log2(gpus)) * LATENCY;
  const sharded = setting.sharding === 'fsdp';
  const told = traffic.parameters / rate + (traffic.parameters === 0 ? 0 : steps);
  // Gradients follow the backward of the last micro-batch; FSDP's parameters come ahead of every pass,
  // over the same links. The last block's gradients are hidden by nothing, nor are ZeRO-1's parameters.
  const summed = traffic.gradients / rate + blocks * steps;
  const gathered = sharded ? traffic.parameters / rate + 2 * blocks * steps : 0;
  const backward = (towers * (setting.checkpoint ? 3 : 2) * setting.microBatch) / (passes * rows);
  const reduction =
    Math.max(summed / blocks, summed - backward, summed + gathered - towers) + (sharded ? 0 : told);
  const hops = gpus === 1 ? 0 : exchange === 'gather' ? 2 * steps : 2 * (gpus - 1) * LATENCY;
  const sent = traffic.embeddings / rate + hops;
  // A ring works on one block while the next is under way.
  const embeddings = exchange === 'gather' ? sent : Math.max(0, sent - loss);
  const parts = { towers, loss, optimizer, reduction, embeddings };
  const total = Object.values(parts).reduce((sum, seconds) => sum + seconds, 0);
  const useful = 3 * forward * rows + lossOperations(batch, rows, model.embedding);
  const [[largest]] = Object.entries(parts).sort(([, a], [, b]) => b - a) as [
    keyof typeof parts,
    number,
  ][];
  return {
    ...setting,
    exchange,
    parameters,
    operations,
    memory,
    fits,
    traffic,
    time: { ...parts, total },
    pairsPerSecond: batch / total,
    utilization: useful / (total * gpu.peak),
    binds: fits ? largest : 'memory',
  };
}

// Rings of a collective run over all network cards of a server at once.
function rateBetween({ link, network }: GpuFigures, gpus: number): number {
  return gpus <= GPUS_PER_SERVER ? link : Math.min(link, GPUS_PER_SERVER * network);
}

function memoryOf(
  { model, gpus, batch, exchange = 'gather' }: PlanConfig,
  { sharding, checkpoint, microBatch }: Setting,
  parameters: number,
): PlanMemory {
  const share = (bytes: number, divided: boolean): number => (divided ? bytes / gpus : bytes);
  const { text, vision } = model;
  // FSDP holds two parts in full: the largest is the table of tokens, or a block.
  const block = Math.max(
    ...[vision, text].map(({ width, mlpWidth }) => 4 * width ** 2 + 2 * width * mlpWidth),
  );
  const part = text.vocabulary * text.width + block;
  const gathered = sharding === 'fsdp' ? 2 * part : 2 * parameters;
  const activations = activationBytes(model, 2);
  const rows = batch / gpus;
  const width = model.embedding;
  const others = exchange === 'gather' ? batch : Math.min(batch, 2 * rows);
  const parts = {
    weights: share(4 * parameters, sharding === 'fsdp') + gathered,
    gradients: share(4 * parameters, sharding === 'fsdp') + (sharding === 'fsdp' ? 4 * block : 0),
    moments: share(8 * parameters, sharding !== 'data'),
    activations: microBatch * (checkpoint ? activations.checkpointed : activations.kept),
    // Own images and texts with gradients in float32, others' texts and what their gradients sum to.
    embeddings: 4 * rows * width * 4 + others * width * (2 + 4),
  };
  return { ...parts, total: Object.values(parts).reduce((sum, bytes) => sum + bytes, 0) };
}

function trafficOf(
  { model, gpus, batch }: PlanConfig,
  { sharding, microBatch }: Setting,
  parameters: number,
): PlanTraffic {
  const others = (gpus - 1) / gpus;
  const rows = batch / gpus;
  // Reduced in float32; an all-reduce sends twice, once to sum and once to tell.
  const gradients = (sharding === 'data' ? 2 : 1) * 4 * parameters * others;
  // ZeRO-1 tells the updated parameters once, FSDP gathers them in bfloat16 for every pass.
  const runs = rows / microBatch;
  const passes = runs > 1 ? 3 * runs : 2;
  const told = sharding === 'data' ? 0 : sharding === 'zero1' ? 4 : 2 * passes;
  return {
    gradients,
    parameters: told * parameters * others,
    // Texts in bfloat16 to everyone, their gradients in float32 back.
    embeddings: batch * model.embedding * (2 + 4) * others,
  };
}

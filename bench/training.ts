// A training step against the same model and losses in PyTorch, on the CPU, in turns; and what activation
// checkpointing and the planner's prediction are worth.
//
//   npm run bench:training             table on standard output, rows in bench/results/training.json
//   npm run bench:training -- --quick  few rounds; nothing is written
//   --no-pytorch, --no-compile (PyTorch as it is written, alone)
//
// SIGLIP2_BENCH_PYTHON: a Python with torch. SIGLIP2_THREADS: threads of both sides.
import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Philox4x32 } from '../lib/array/random';
import type { HostArray, Spec } from '../lib/graph';
import { disposeArrays, elements, mapTree } from '../lib/graph';
import { localViewSize, variant } from '../lib/model';
import { loadAddon } from '../lib/native/load';
import {
  compileStep,
  defaultOptimizer,
  freshState,
  placedOn,
  parseRecipe,
  scheduleInput,
  stageDecoder,
  stageObjective,
  wholeStep,
} from '../lib/train';
import type { Recipe, Stage, StepProgram } from '../lib/train';
import type { Averages, StepBatch, TrainedParameters } from '../lib/train';
import type { Contender } from './measure';
import { measure, readPeak } from './measure';
import { PythonPeer, pytorchMissing } from './pytorch';
import { writeJson } from './results';
import type { Row } from './rows';
import { PEAK, lineOf, rounded, speedRow } from './rows';

const resultsFile = join(__dirname, 'results', 'training.json');

/** Ids of a target of the decoder that carry loss. */
const targetLength = 16;

const model = variant('S/16', { imageSize: 224, vocabulary: 32000, length: 64 });
const batch = 8;

// S/16 at 224 pixels with a vocabulary that does not drown the towers, and every loss of the recipe.
const recipe: Recipe = parseRecipe({
  name: 'benchmark',
  model,
  batch,
  totalSteps: 100,
  warmupSteps: 0,
  optimizer: { ...defaultOptimizer, learningRate: 1e-6 },
  selfDistillation: { prototypes: 16384, patchPrototypes: 8192 },
  stages: [
    { name: 'sigmoid', start: 0, end: 1, losses: {} },
    { name: 'decoder', start: 0, end: 1, losses: { caption: 1, referring: 1, grounded: 1 } },
    {
      name: 'all',
      start: 0,
      end: 1,
      losses: { caption: 1, referring: 1, grounded: 1, local: 0.25, masked: 0.0625 },
    },
  ],
});

type Program = StepProgram<TrainedParameters<Spec>, Averages<Spec>, StepBatch<Spec>>;

/** Ours, ready to take steps on one batch. */
class Training {
  private readonly state;
  private readonly batches: StepBatch<HostArray>;

  constructor(
    readonly stage: Stage,
    private readonly program: Program,
    objective: ReturnType<typeof stageObjective>,
  ) {
    this.state = freshState(objective, 0, undefined, placedOn('cpu'));
    const specs = objective.step('images').batch;
    this.batches = mapTree<StepBatch<Spec>, Spec, HostArray>(specs, (spec, path) =>
      batchValues(path, spec),
    );
  }

  static of(stage: Stage, checkpoint: boolean): Training {
    const pixelTable = Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2);
    const objective = stageObjective(recipe, stage, { pixelTable, checkpoint });
    const program = compileStep({
      ...wholeStep(objective.step('images')),
      optimizer: recipe.optimizer,
    });
    return new Training(stage, program, objective);
  }

  get peakBytes(): number {
    return this.program.memory.peakBytes;
  }

  async step(): Promise<void> {
    const { parameters, moments, averages } = this.state;
    const outputs = await this.program.run({
      parameters,
      state: moments,
      averages,
      schedule: scheduleInput(1, 1, recipe.optimizer),
      entered: {},
      batches: [this.batches],
    });
    const { loss, terms, gradientNorm, updateNorm, parameterNorm } = outputs;
    await loss.read();
    disposeArrays({ loss, terms, gradientNorm, updateNorm, parameterNorm });
  }

  dispose(): void {
    this.program.dispose();
    disposeArrays(this.state);
  }
}

// Random bytes, ids and masks of the right kind; the two sides need not see the same.
function batchValues(path: string, spec: Spec): HostArray {
  const random = new Philox4x32(0, `benchmark ${path}`);
  const length = elements(spec);
  const last = spec.shape.at(-1) ?? 1;
  const key = path.split('.').slice(-2).join('.');
  if (key === 'images.table') {
    return Float32Array.from({ length }, (_, i) => -1 + ((i % 256) / 255) * 2);
  }
  switch (path) {
    case 'targets.causal':
      return Uint8Array.from({ length }, (_, i) => (i % 6 === 0 ? 0 : 1));
    case 'targets.weights.caption':
    case 'targets.weights.referring':
    case 'targets.weights.grounded': {
      const task = ['caption', 'referring', 'grounded'].indexOf(path.split('.').at(-1) ?? '');
      return Float32Array.from({ length }, (_, i) =>
        Math.floor(i / last) % 3 === task && i % last < targetLength ? 1 : 0,
      );
    }
    case 'views.images':
      return Int32Array.from({ length }, (_, i) => Math.floor((i * batch) / length));
    case 'views.mask':
      return Uint8Array.from({ length }, (_, i) => i % 2);
    case 'views.rows':
      return Int32Array.from({ length }, (_, i) => 2 * i + 1);
    case 'views.weights':
      return new Float32Array(length).fill(1 / length);
    case 'views.temperature':
      return Float32Array.of(recipe.distillation.teacherTemperature);
  }
  if (spec.dtype === 'uint8') return Uint8Array.from({ length }, () => random.integer(256));
  return Int32Array.from({ length }, () => random.integer(model.text.vocabulary));
}

function peerSizes(): object {
  const { vision, text } = model;
  if (vision.layout !== 'fixed') throw new Error('benchmark: the tower must be of one resolution');
  return {
    batch,
    vision,
    text,
    decoder: stageDecoder(recipe, model),
    selfDistillation: recipe.selfDistillation,
    localSize: localViewSize(vision),
    localViews: recipe.distillation.localViews,
    targetLength,
  };
}

function residentBytes(): number {
  const [, kilobytes = '0'] =
    /VmRSS:\s+(\d+)/u.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
  return Number(kilobytes) * 1024;
}

interface Memory {
  readonly stage: string;
  readonly checkpointing: boolean;
  readonly predictedBytes: number;
  readonly measuredBytes: number;
}

/** The program's prediction and what the process grew by. */
async function memoryOf(stage: Stage, checkpoint: boolean): Promise<Memory> {
  const before = loadAddon().memory();
  const resident = residentBytes();
  const training = Training.of(stage, checkpoint);
  await training.step();
  const after = loadAddon().memory();
  const measuredBytes =
    after.bufferBytes + after.arenaBytes - before.bufferBytes - before.arenaBytes;
  const { peakBytes } = training;
  training.dispose();
  process.stdout.write(
    `${stage.name}${checkpoint ? ', checkpointing' : ''}: predicted ${mebibytes(peakBytes)}, arrays and arena ${mebibytes(measuredBytes)}, process grew by ${mebibytes(residentBytes() - resident)}\n`,
  );
  return { stage: stage.name, checkpointing: checkpoint, predictedBytes: peakBytes, measuredBytes };
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}

async function speedOf(
  stage: Stage,
  peer: PythonPeer | undefined,
  { quick, compile: compiles }: { readonly quick: boolean; readonly compile: boolean },
): Promise<Row[]> {
  const plain = Training.of(stage, false);
  const saving = Training.of(stage, true);
  const ours = (name: string, training: Training): Contender => ({
    name,
    run: async () => {
      await training.step();
      return undefined;
    },
  });
  const theirs = (name: string, compiled: boolean): Contender => ({
    name,
    run: async () => (await peer?.ask({ run: stage.name, compiled }))?.seconds,
  });
  const contenders = [ours('ours', plain), ours('checkpointing', saving)];
  if (peer !== undefined) contenders.push(theirs('eager', false));
  if (peer !== undefined && compiles) contenders.push(theirs('compiled', true));
  const measured = await measure(contenders, {
    rounds: quick ? 2 : 7,
    mostRounds: quick ? 3 : 15,
    warmups: 1,
  });
  plain.dispose();
  saving.dispose();
  const row = (mine: string, other: string, peerName: string): Row =>
    speedRow(
      `training step S/16-224, ${stage.name}${mine === 'ours' ? '' : `, ${mine}`}`,
      [mine, other],
      peerName,
      measured,
      batch,
      'pairs/s',
    );
  const rows = [row('checkpointing', 'ours', 'ours without')];
  if (peer === undefined) return rows;
  return [
    row('ours', 'eager', 'PyTorch eager'),
    ...(compiles ? [row('ours', 'compiled', 'PyTorch compiled')] : []),
    ...rows,
  ];
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      'no-pytorch': { type: 'boolean', default: false },
      'no-compile': { type: 'boolean', default: false },
    },
  });
  const { isa, threads } = loadAddon().describe();
  const missing = values['no-pytorch'] ? 'switched off' : pytorchMissing();
  if (missing !== undefined) process.stdout.write(`PyTorch: skipped, ${missing}\n`);
  const peer =
    missing === undefined ? new PythonPeer('pytorch_training.py', String(threads)) : undefined;
  const machine: Record<string, string | number> = {
    processor: cpus()[0].model,
    'instruction set': isa,
    threads,
    node: process.version,
    model: 'S/16 at 224 pixels, 32,000 ids',
    batch,
  };
  const { torch } = (await peer?.ask({ sizes: peerSizes() })) ?? {};
  if (torch !== undefined) machine.torch = torch;
  const memory: Memory[] = [];
  const rows: Row[] = [];
  for (const stage of recipe.stages) {
    for (const checkpoint of [false, true]) memory.push(await memoryOf(stage, checkpoint));
    for (const row of await speedOf(stage, peer, {
      quick: values.quick,
      compile: !values['no-compile'],
    })) {
      rows.push(row);
      process.stdout.write(`${lineOf(row)}\n`);
    }
  }
  peer?.close();
  machine[PEAK] = rounded(readPeak() / 1e9);
  if (!values.quick && missing === undefined) writeJson(resultsFile, { machine, rows, memory });
}

void main();

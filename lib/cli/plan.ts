// `siglip2 plan`: what a training step needs on any number of GPUs, before anybody rents them.
import { Command, Option } from 'commander';
import type { VariantName } from '../model';
import { variant } from '../model';
import type { Exchange, GpuName, Sharding, StepPlan } from '../plan';
import { exchanges, gpus as figures, planStep, shardings } from '../plan';
import { integer } from './integer';

interface Options {
  readonly model: string;
  readonly resolution?: string;
  readonly gpu: GpuName;
  readonly gpus: string;
  readonly batch: string;
  readonly decoder?: boolean;
  readonly sharding?: Sharding;
  readonly checkpoint?: boolean;
  readonly microBatch?: string;
  readonly exchange: Exchange;
  readonly json?: boolean;
}

/** The command. */
export function planCommand(): Command {
  return new Command('plan')
    .description('estimate time, memory and traffic of a training step on many GPUs')
    .requiredOption('-m, --model <name>', 'size and patch: B/16, L/16, So400m/14, g-opt/16')
    .option('--resolution <n>', 'pixels a side; default 16 patches a side')
    .addOption(
      new Option('--gpu <kind>', 'kind of GPU').choices(Object.keys(figures)).default('h200'),
    )
    .option('--gpus <n>', 'how many, in servers of eight', '8')
    .option('--batch <n>', 'pairs of the global batch', '32768')
    .option('--decoder', 'train the captioning decoder, too')
    .addOption(
      new Option('--sharding <kind>', 'of state; default the fastest that fits').choices(shardings),
    )
    .option('--checkpoint', 'compute blocks again in the backward; default where it is needed')
    .option('--no-checkpoint', 'never')
    .option('--micro-batch <n>', 'pairs per run of the towers; default the fastest that fits')
    .addOption(
      new Option('--exchange <kind>', 'of embeddings').choices(exchanges).default('gather'),
    )
    .option('--json', 'as JSON')
    .action(plan);
}

function plan(options: Options): void {
  const { resolution, microBatch } = options;
  // The table of sizes refuses a name that it does not have.
  const model = variant(
    options.model as VariantName,
    resolution === undefined ? {} : { imageSize: integer('resolution', resolution, 1) },
  );
  const gpu = figures[options.gpu];
  const gpus = integer('gpus', options.gpus, 1);
  const batch = integer('batch', options.batch, 1);
  const step = planStep({
    model,
    gpu,
    gpus,
    batch,
    decoder:
      options.decoder === true
        ? { depth: Math.floor(model.text.depth / 2), sequences: 3 }
        : undefined,
    sharding: options.sharding,
    checkpoint: options.checkpoint,
    microBatch: microBatch === undefined ? undefined : integer('micro-batch', microBatch, 1),
    exchange: options.exchange,
  });
  const setting = { model: options.model, gpu: gpu.name, gpus, batch, figures: gpu.source };
  process.stdout.write(
    options.json === true
      ? `${JSON.stringify({ ...setting, ...step }, null, 2)}\n`
      : table(setting, step, gpu.memory),
  );
}

const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(2)} GB`;
const milliseconds = (seconds: number): string => `${(1000 * seconds).toFixed(1)} ms`;
const giga = (operations: number): string => `${(operations / 1e9).toFixed(1)} GFLOP`;
const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

function table(
  setting: { model: string; gpu: string; gpus: number; batch: number; figures: string },
  step: StepPlan,
  capacity: number,
): string {
  const { memory, time, traffic, operations } = step;
  const rows: readonly (readonly [string, string])[] = [
    ['model', `${setting.model}, ${(step.parameters / 1e6).toFixed(1)} M parameters`],
    [
      'forward of a pair',
      `vision ${giga(operations.vision)}, text ${giga(operations.text)}${operations.decoder > 0 ? `, decoder ${giga(operations.decoder)}` : ''}`,
    ],
    ['on', `${String(setting.gpus)} × ${setting.gpu}, batch ${String(setting.batch)}`],
    [
      'setting',
      `${step.sharding}, ${String(step.microBatch)} pairs at a time of ${String(setting.batch / setting.gpus)}, ${step.checkpoint ? 'blocks computed again' : 'activations kept'}, embeddings by ${step.exchange}`,
    ],
    [
      'memory of a GPU',
      `${gigabytes(memory.total)} of ${gigabytes(capacity)}${step.fits ? '' : ': does not fit'}`,
    ],
    ...(['weights', 'gradients', 'moments', 'activations', 'embeddings'] as const).map(
      (part) => [`  ${part}`, gigabytes(memory[part])] as const,
    ),
    ['a GPU sends', gigabytes(traffic.gradients + traffic.parameters + traffic.embeddings)],
    ...(['gradients', 'parameters', 'embeddings'] as const).map(
      (part) => [`  ${part}`, gigabytes(traffic[part])] as const,
    ),
    ['step', milliseconds(time.total)],
    ...(['towers', 'loss', 'optimizer', 'reduction', 'embeddings'] as const).map(
      (part) => [`  ${part}`, milliseconds(time[part])] as const,
    ),
    ['pairs per second', step.pairsPerSecond.toFixed(0)],
    ['utilization', `${percent(step.utilization)} of the peak`],
    ['binds', step.binds],
    ['figures', setting.figures],
  ];
  return rows.map(([name, value]) => `${name.padEnd(20)}${value}\n`).join('');
}

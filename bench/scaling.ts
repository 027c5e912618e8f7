// Works out docs/scaling.md: a training step from B/16 to g-opt on 8 to 2,048 GPUs.
//
//   npm run docs:scaling
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { VariantName } from '../lib/model';
import { variant } from '../lib/model';
import type { GpuFigures, StepPlan } from '../lib/plan';
import { gpus, planStep } from '../lib/plan';

const models: readonly VariantName[] = ['B/16', 'L/16', 'So400m/16', 'g-opt/16'];
const counts = [8, 32, 128, 512, 2048];
const batch = 32768;

function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  return [header, header.map(() => '---'), ...rows]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n');
}

const ms = (seconds: number): string => (1000 * seconds).toFixed(1);
const gb = (bytes: number): string => (bytes / 1e9).toFixed(1);

function row(name: string, count: number, plan: StepPlan): string[] {
  const { memory, time, traffic } = plan;
  return [
    name,
    String(count),
    `${plan.sharding}, ${String(plan.microBatch)} of ${String(batch / count)}${plan.checkpoint ? ', again' : ''}`,
    `${gb(memory.total)}${plan.fits ? '' : ' (too much)'}`,
    gb(traffic.gradients + traffic.parameters),
    gb(traffic.embeddings),
    ms(time.towers),
    ms(time.loss),
    ms(time.reduction),
    ms(time.embeddings),
    ms(time.total),
    plan.pairsPerSecond.toFixed(0),
    (100 * plan.utilization).toFixed(1),
    plan.binds,
  ];
}

const header = [
  'model, 256 px',
  'GPUs',
  'setting',
  'GB a GPU',
  'GB sent: gradients, parameters',
  'embeddings',
  'towers ms',
  'loss ms',
  'reduction ms',
  'embeddings ms',
  'step ms',
  'pairs/s',
  'MFU %',
  'binds',
];

function section(gpu: GpuFigures): string {
  const rows = models.flatMap((name) =>
    counts.map((count) =>
      row(name, count, planStep({ model: variant(name), gpu, gpus: count, batch })),
    ),
  );
  return `## ${gpu.name}

Figures: ${gpu.source}.

${table(header, rows)}
`;
}

function hours(name: VariantName, count: number): string[] {
  const plan = planStep({ model: variant(name), gpu: gpus.h200, gpus: count, batch });
  const days = 40e9 / plan.pairsPerSecond / 86400;
  return [name, String(count), days.toFixed(1), (days * 24 * count).toFixed(0)];
}

const page = `# Scaling

Made by \`npm run docs:scaling\`, which asks what \`siglip2 plan\` asks; do not edit. A batch of ${String(batch)} pairs at
256 pixels, both towers and the sigmoid loss, bfloat16 activations, the fastest setting that fits.

**Estimates.** One figure in each row rests on a measurement: the share of its peak that one H200 reached in a
training step of B/16 (${(100 * gpus.h200.towerShare).toFixed(1)} %) and in the loss (${(100 * gpus.h200.lossShare).toFixed(1)} %). Larger models should reach more,
other GPUs may reach less; links are taken at 80 % of their data sheet, and nothing beyond one GPU was measured.

*setting*: what is sharded (\`data\`: nothing; \`zero1\`: moments; \`fsdp\`: parameters, gradients and moments), how
many pairs of a GPU's share the towers take at once (fewer than all: the forward runs twice), *again*: blocks are
computed again in the backward. *reduction*: what of sending gradients and parameters no computation hides.

## What a step costs

- **Towers**: 3 × forward; + 1 with blocks computed again, + 1 for a batch in parts. A block of width D, MLP M
  and N tokens takes 8 N D² + 4 N² D + 4 N D M.
- **Loss**: 6 · B · b · E on each GPU for b of the B pairs: the same text embeddings everywhere, own rows.
- **Memory**: 4 bytes a parameter for weights, 4 for gradients, 8 for moments, 2 for bfloat16 copies; activations
  2 N (8 D + 2 M) bytes a block; embeddings 16 bytes a number for own pairs, 6 for others' texts.
- **Sent by a GPU**: gradients 8 bytes a parameter (\`data\`), 4 (\`zero1\`, \`fsdp\`); parameters 4 (\`zero1\`), or 2 for
  every pass over them (\`fsdp\`); embeddings 6 · B · E, by gather or ring alike. A ring holds two blocks of them,
  hides behind the loss, and pays a latency for every rank.

${[gpus.h200, gpus.h100, gpus.a100].map(section).join('\n')}
## 40 billion pairs

As SigLIP 2 was trained, on H200s, without decoder, self-distillation and masked prediction:

${table(
  ['model', 'GPUs', 'days', 'GPU hours'],
  models.flatMap((name) => [64, 256, 1024].map((count) => hours(name, count))),
)}
`;

writeFileSync(join(__dirname, '..', 'docs', 'scaling.md'), page);

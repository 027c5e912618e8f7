// docs/gpu-status.md from what test:gpu wrote with --json and what bench:gpu measured.
//
//   node -r ./test/typescript.js test/gpu/status.ts FILE   FILE of `npm run test:gpu -- --json FILE`
//
// Without a file: what is compiled into the addon here, nothing having run.
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { loadAddon } from '../../lib/native/load';
import { opCases } from '../op_cases';
import { isPacked } from './programs';
import type { TestRecord } from './runner';

const root = join(__dirname, '..', '..');

interface Facts {
  readonly device?: string;
  readonly cuda?: {
    readonly driver?: string;
    readonly devices: readonly { readonly name: string; readonly architecture: number }[];
  };
  readonly kernels: readonly { readonly name: string; readonly compiled: boolean }[];
}

interface Report {
  readonly facts: Facts;
  readonly records: readonly TestRecord[];
}

interface BenchRow {
  readonly name: string;
  readonly ours: number | null;
  readonly unit: string;
  readonly ratio: number | null;
}

function readReport(file: string | undefined): Report {
  if (file !== undefined) return JSON.parse(readFileSync(file, 'utf8')) as Report;
  const kernels = loadAddon()
    .describe()
    .kernels.map(({ name, cuda }) => ({ name, compiled: cuda }));
  return { facts: { kernels }, records: [] };
}

function benchRows(): BenchRow[] {
  const folder = join(root, 'bench', 'results');
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((file) => file.endsWith('.json'))
    .flatMap((file) => {
      const content = JSON.parse(readFileSync(join(folder, file), 'utf8')) as {
        readonly machine?: Readonly<Record<string, unknown>>;
        readonly rows?: readonly BenchRow[];
      };
      return content.machine?.['gpu'] === undefined ? [] : (content.rows ?? []);
    });
}

/** The kernels of an operation: those that begin with its word and with no longer one. */
function kernelsOf(op: string, all: Facts['kernels'], words: readonly string[]): Facts['kernels'] {
  return all.filter(({ name }) => {
    const owners = words.filter((word) => name === word || name.startsWith(`${word}_`));
    return owners.sort((a, b) => b.length - a.length).at(0) === op;
  });
}

const precisions = ['float32', 'bfloat16'] as const;

/** `12 of 12 (0.31)`: tests that passed, and the largest error over its bar. */
function ran(records: readonly TestRecord[], precision: (typeof precisions)[number]): string {
  const those = records.filter(
    ({ name, outcome }) => name.includes(`, ${precision}`) && outcome !== 'skipped',
  );
  if (those.length === 0) return 'not yet';
  const passed = those.filter(({ outcome }) => outcome === 'passed').length;
  const worst = Math.max(...those.map(({ figures }) => figures?.['share'] ?? 0));
  return `${String(passed)} of ${String(those.length)} (${worst.toFixed(2)})`;
}

function figuresOf(op: string, rows: readonly BenchRow[]): string {
  const word = op.replaceAll('_', ' ').toLowerCase();
  return rows
    .filter(
      ({ name, ours }) => ours !== null && new RegExp(`^${word}\\b`, 'u').test(name.toLowerCase()),
    )
    .map(
      ({ name, ours, unit, ratio }) =>
        `${name.slice(word.length).replace(/^[ ,]+/u, '')}: ${String(ours)} ${unit}` +
        (ratio === null ? '' : ` (${ratio.toFixed(2)}×)`),
    )
    .join('<br>');
}

function pageOf({ facts, records }: Report): string {
  const words = [...new Set(opCases.map(({ op }) => op))].filter((op) => !isPacked(op));
  const rows = benchRows();
  const table = (head: readonly string[], body: readonly (readonly string[])[]): string =>
    [head, head.map(() => '---'), ...body].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
  const operations = words.map((op) => {
    const kernels = kernelsOf(op, facts.kernels, words);
    const compiled = kernels.filter((kernel) => kernel.compiled).length;
    const own = records.filter(({ group }) => group === op);
    return [
      op,
      kernels.length === 0
        ? 'no kernel of its own'
        : `${String(compiled)} of ${String(kernels.length)}`,
      ...precisions.map((precision) => ran(own, precision)),
      figuresOf(op, rows),
    ];
  });
  const others = [...new Set(records.map(({ group }) => group))].filter(
    (group) => !opCases.some(({ op }) => op === group),
  );
  const card = facts.cuda?.devices.at(0);
  const where =
    records.length === 0 || card === undefined
      ? 'The tests have not run on a GPU yet.'
      : `The tests ran on ${card.name} (compute capability ${(card.architecture / 10).toFixed(1)}, ` +
        `driver for CUDA ${facts.cuda?.driver ?? 'unknown'}).`;
  return `${[
    '# What has run on a GPU',
    'Made by `test/gpu/status.ts` from `npm run test:gpu -- --json FILE` and `bench/results`; do not ' +
      `edit. ${where} A test count is followed by the largest error over its bar: 1 is as far from the ` +
      'reference as a test allows. Ratios are to PyTorch on the same card; see benchmarks-gpu.md.',
    table(['operation', 'kernels compiled for CUDA', 'float32', 'bfloat16', 'figures'], operations),
    ...(others.length === 0
      ? []
      : [
          table(
            ['tests', 'passed', 'failed', 'skipped'],
            others.map((group) => [
              group,
              ...(['passed', 'failed', 'skipped'] as const).map((outcome) =>
                String(
                  records.filter((record) => record.group === group && record.outcome === outcome)
                    .length,
                ),
              ),
            ]),
          ),
        ]),
    betweenGpus(records),
    ...failures(records),
  ].join('\n\n')}\n`;
}

/** How far NCCL has been tried: on how many GPUs at once. */
function betweenGpus(records: readonly TestRecord[]): string {
  const ran = (ranks: string): readonly TestRecord[] =>
    records.filter(
      ({ group, outcome }) => group === `collectives by NCCL, ${ranks}` && outcome !== 'skipped',
    );
  const count = (those: readonly TestRecord[]): string => {
    const passed = those.filter(({ outcome }) => outcome === 'passed').length;
    return those.length === 0
      ? 'have never run'
      : `passed ${String(passed)} of ${String(those.length)} tests`;
  };
  return (
    'Collectives by NCCL: with one rank on one GPU they ' +
    `${count(ran('one rank'))}, between two GPUs they ${count(ran('two ranks'))}, and between more, or ` +
    'several machines, they have never run. Without a GPU the library is opened and gives ids, and the ' +
    'calls that collectives come to are tried on an emulation of what NCCL defines.'
  );
}

function failures(records: readonly TestRecord[]): string[] {
  const failed = records.filter(({ outcome }) => outcome === 'failed');
  if (failed.length === 0) return [];
  return [
    'Failed:',
    failed
      .map(({ group, name, reason = '' }) => `- ${group}: ${name}: ${reason.split('\n')[0]}`)
      .join('\n'),
  ];
}

writeFileSync(join(root, 'docs', 'gpu-status.md'), pageOf(readReport(process.argv[2])));

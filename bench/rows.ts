// Rows of results, their comparison with earlier ones, and the page made of them.
import type { Measured } from './measure';

/** One comparison. */
export interface Row {
  /** What was measured, ours; unique within its file. */
  readonly name: string;
  readonly peerName: string;
  readonly ours: number;
  readonly peer: number;
  /** How many times better ours is, whichever way the unit counts. */
  readonly ratio: number;
  readonly unit: string;
  /** Sound rounds behind the figures; 0: none was sound and all count. */
  readonly rounds?: number;
  /** Rounds thrown out because the machine was disturbed. */
  readonly rejected?: number;
}

/** Something that was not measured. */
export interface Skipped {
  readonly name: string;
  readonly reason: string;
}

/** One line of facts about accuracy. */
export interface Accuracy {
  readonly name: string;
  readonly meanCosine: number;
  readonly leastCosine: number;
  /** Share of images for which the best of the texts is that of float32. */
  readonly agreement: number;
}

/** Linear layers of the vision tower against the peak of the same minute. */
export interface LinearShare {
  readonly name: string;
  readonly batch: number;
  /** Of the time of all kernels. */
  readonly shareOfTime: number;
  readonly gigaflops: number;
  /** Of the measured peak of the multiply-adds it consists of. */
  readonly shareOfPeak: number;
}

/** The content of bench/results/cpu.json. */
export interface Results {
  readonly machine: Readonly<Record<string, string | number>>;
  readonly forms: Readonly<Record<string, string>>;
  readonly rows: readonly Row[];
  readonly accuracy: readonly Accuracy[];
  readonly linearShares: readonly LinearShare[];
  readonly skipped: readonly Skipped[];
}

/** The fact of the machine that is its best reading, whatever disturbed the others. */
export const PEAK = 'peak GFLOP/s';

/**
 * Earlier results with those of a run of some groups in their place. A row measures two sides in turns, so
 * rows of different runs on one machine stand beside each other.
 */
export function merged(earlier: Results, later: Results): Results {
  const replace = <T>(old: readonly T[], renewed: readonly T[], key: (entry: T) => string): T[] => {
    const keys = new Set(renewed.map(key));
    return [...old.filter((entry) => !keys.has(key(entry))), ...renewed];
  };
  const rows = replace(earlier.rows, later.rows, ({ name, peerName }) => `${name} / ${peerName}`);
  // A peer that one of the runs had was not skipped.
  const skipped = replace(earlier.skipped, later.skipped, ({ name }) => name).filter(
    ({ name }) => !rows.some(({ peerName }) => peerName.startsWith(name)),
  );
  const peaks = [earlier, later].map(({ machine }) => Number(machine[PEAK] ?? 0));
  return {
    machine: { ...earlier.machine, ...later.machine, [PEAK]: Math.max(...peaks) },
    forms: later.forms,
    rows,
    accuracy: replace(earlier.accuracy, later.accuracy, ({ name }) => name),
    linearShares: replace(
      earlier.linearShares,
      later.linearShares,
      ({ name, batch }) => `${name} ${String(batch)}`,
    ),
    skipped,
  };
}

/** A row of speed from a series of rounds: `items` are done in a run. */
export function speedRow(
  name: string,
  [ours, peer]: readonly [string, string],
  peerName: string,
  measured: Measured,
  items: number,
  unit: string,
): Row {
  const { seconds, ratios, rounds, rejected } = measured;
  const of = (map: ReadonlyMap<string, number>, key: string): number => map.get(key) ?? NaN;
  return {
    name,
    peerName,
    ours: rounded(items / of(seconds, ours)),
    peer: rounded(items / of(seconds, peer)),
    ratio: rounded(of(ratios, peer) / of(ratios, ours)),
    unit,
    rounds,
    rejected,
  };
}

/** Four significant digits. */
export function rounded(value: number): number {
  return Number(value.toPrecision(4));
}

/** Whether a row can be judged: on a disturbed machine a ratio says nothing. */
export function isSound({ rounds }: Row): boolean {
  return rounds !== 0;
}

/** Sound rows whose ratio fell by more than `tolerance` (0.1: a tenth), as lines to print. */
export function regressions(
  before: readonly Row[],
  now: readonly Row[],
  tolerance: number,
): string[] {
  const known = new Map(before.map((row) => [keyOf(row), row]));
  return now.filter(isSound).flatMap((row) => {
    const old = known.get(keyOf(row));
    if (old === undefined || row.ratio >= old.ratio * (1 - tolerance)) return [];
    return [`${keyOf(row)}: ratio ${String(row.ratio)}, was ${String(old.ratio)}`];
  });
}

function keyOf({ name, peerName }: Row): string {
  return `${name} vs ${peerName}`;
}

/** A line for the terminal. */
export function lineOf({ name, peerName, ours, peer, ratio, unit, rounds, rejected }: Row): string {
  const counted =
    rounds === undefined ? '' : ` (${String(rounds)} rounds, ${String(rejected)} thrown out)`;
  return (
    `${name.padEnd(44)} ${figure(ours).padStart(8)}  ${peerName.padEnd(34)} ${figure(peer).padStart(8)} ` +
    `${unit.padEnd(10)} ${ratio.toFixed(2).padStart(6)}×${counted}`
  );
}

function figure(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(2);
}

/** docs/benchmarks.md. */
export function pageOf({ machine, forms, rows, accuracy, linearShares, skipped }: Results): string {
  const sections = [
    '# Benchmarks',
    'Made by `npm run bench` from `bench/results/cpu.json`; do not edit. Every comparison runs the same ' +
      'weights and inputs through both sides in turns, in one process tree, with the same number of ' +
      'threads. Figures are medians; a ratio is the median over rounds, above 1 where ours is better. A ' +
      'round in which the machine did not deliver its peak is thrown out. Weights are random with the ' +
      'scale and outliers of trained ones (`bench/models.ts`). For onnxruntime several forms of the graph ' +
      'were tried and its fastest one is compared with. Embeddings of the float32 peers equal ours within ' +
      '1e-4 before anything is timed.',
    table(
      ['machine', ''],
      Object.entries(machine).map(([key, value]) => [key, String(value)]),
    ),
    '## Against peers',
    table(
      ['ours', 'peer', 'ours', 'peer', 'unit', 'ratio', 'rounds (thrown out)'],
      rows.map(({ name, peerName, ours, peer, unit, ratio, rounds, rejected }) => [
        name,
        peerName,
        figure(ours),
        figure(peer),
        unit,
        `${ratio.toFixed(2)}×`,
        rounds === undefined ? '' : `${String(rounds)} (${String(rejected)})`,
      ]),
    ),
    ...section(
      'Accuracy',
      'Cosine to our float32 embeddings of the same images, and how often the best of the texts is the ' +
        'same after means are removed.',
      ['engine', 'mean cosine', 'least cosine', 'same best text'],
      accuracy.map((row) => [
        row.name,
        row.meanCosine.toFixed(6),
        row.leastCosine.toFixed(6),
        `${(100 * row.agreement).toFixed(1)} %`,
      ]),
    ),
    ...section(
      'Linear layers',
      'Products of the vision tower against the peak of the same multiply-adds, measured before and after.',
      ['precision', 'batch', 'GFLOP/s', 'of the peak', 'of the time'],
      linearShares.map((row) => [
        row.name,
        String(row.batch),
        row.gigaflops.toFixed(1),
        `${(100 * row.shareOfPeak).toFixed(0)} %`,
        `${(100 * row.shareOfTime).toFixed(0)} %`,
      ]),
    ),
    ...section(
      'Form of the graphs that onnxruntime ran fastest',
      'See `bench/onnx/towers.ts`.',
      ['precision', 'form'],
      Object.entries(forms),
    ),
    ...section(
      'Not measured',
      '',
      ['what', 'why'],
      skipped.map(({ name, reason }) => [name, reason]),
    ),
  ];
  return `${sections.filter((text) => text !== '').join('\n\n')}\n`;
}

function section(
  title: string,
  text: string,
  head: readonly string[],
  body: readonly (readonly string[])[],
): string[] {
  return body.length === 0 ? [] : [`## ${title}`, text, table(head, body)];
}

function table(head: readonly string[], body: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...body.map(line)].join('\n');
}

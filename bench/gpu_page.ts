// docs/benchmarks-gpu.md from the results of a card.
import type { Row, Skipped } from './rows';

/** The content of bench/results/<card>.json. */
export interface GpuResults {
  readonly machine: Readonly<Record<string, string | number>>;
  /** What is to be said of the rows. */
  readonly note?: string;
  readonly rows: readonly Row[];
  /** Every variant of the peer that was timed, in the unit of the row. */
  readonly variants: Readonly<Record<string, Readonly<Record<string, number>>>>;
  readonly skipped: readonly Skipped[];
}

function figure(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

function table(head: readonly string[], body: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...body.map(line)].join('\n');
}

/** The page of one card or several, the later ones below. */
export function gpuPageOf(all: readonly GpuResults[]): string {
  const parts = [
    '# Benchmarks on GPUs',
    'Made by `npm run bench:gpu` from `bench/results/`; do not edit. Every row runs the same sizes ' +
      'through both sides on one card, one after the other within a minute. Kernels are timed by the ' +
      "device's clock (medians), towers and steps by the rate at which queued runs follow one another, " +
      'one image by the clock of the caller, memory and copies included. The peer is the fastest of the ' +
      'ways to write the row in PyTorch that were tried (`bench/peers/pytorch_gpu.py`); memory is ' +
      'compared with its leanest. A ratio above 1 is in our favour. Data and weights are random.',
  ];
  for (const { machine, note, rows, variants, skipped } of all) {
    parts.push(
      `## ${String(machine['gpu'] ?? 'unknown card')}`,
      table(
        ['', ''],
        Object.entries(machine).map(([key, value]) => [key, String(value)]),
      ),
      ...(note === undefined ? [] : [note]),
      table(
        ['row', 'unit', 'ours', 'PyTorch', 'ratio', 'its form'],
        rows.map(({ name, unit, ours, peer, ratio, peerName }) => [
          name,
          unit,
          Number.isFinite(ours) ? figure(ours) : '–',
          Number.isFinite(peer) ? figure(peer) : '–',
          Number.isFinite(ratio) ? `${ratio.toFixed(2)}×` : '–',
          peerName,
        ]),
      ),
    );
    const forms = Object.entries(variants).filter(([, of]) => Object.keys(of).length > 1);
    if (forms.length > 0) {
      parts.push(
        'All forms of the peer that were timed:',
        table(
          ['row', 'forms'],
          forms.map(([name, of]) => [
            name,
            Object.entries(of)
              .map(([form, value]) => `${form} ${figure(value)}`)
              .join(', '),
          ]),
        ),
      );
    }
    if (skipped.length > 0) {
      parts.push(
        'Not measured:',
        table(
          ['what', 'why'],
          skipped.map(({ name, reason }) => [name, reason]),
        ),
      );
    }
  }
  return `${parts.join('\n\n')}\n`;
}

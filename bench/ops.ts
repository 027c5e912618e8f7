// Every operation at the sizes of a B/16 tower: arithmetic and memory rates, and the share of what
// the machine was measured to do in the same minute. Best of many runs, since others may use the
// machine too; the peak is read before and after each operation and the better reading counts.
//
//   npm run bench:ops            table on standard output, rows in bench/results/ops.json
//   npm run bench:ops -- word    cases whose name contains the word; the table alone
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import type { DeviceArray } from '../lib/array';
import type { Spec } from '../lib/graph';
import { disposeArrays, flatten, mapTree } from '../lib/graph';
import type { StepTime } from '../lib/graph';
import { loadAddon } from '../lib/native/load';
import type { Cost, OpCase } from '../test/op_cases';
import {
  forwardProgram,
  gradientProgram,
  modelCases,
  operandArrays,
  valuesOf,
} from '../test/op_cases';
import { Random } from '../test/reference/random';

const secondsPerCase = 0.6;
const peakSeconds = 0.05;

interface Row {
  readonly operation: string;
  readonly direction: 'forward' | 'backward';
  readonly milliseconds: number;
  readonly gigaflops: number;
  /** Of float32 multiply-adds. */
  readonly shareOfPeak: number;
  /** Of the multiply-adds that the operation consists of, where those are others. */
  readonly shareOfOwnPeak?: number;
  readonly gigabytesPerSecond: number;
}

// The least time of the counted steps; every round's outputs but those in `keep` are disposed.
async function best(
  run: () => Promise<{ outputs: object; times: StepTime[] }>,
  counted: (step: StepTime) => boolean,
  keep: readonly DeviceArray[],
): Promise<number> {
  let least = Infinity;
  const end = performance.now() + 1000 * secondsPerCase;
  for (let round = 0; round < 5 || performance.now() < end; round++) {
    const { outputs, times } = await run();
    for (const { leaf } of flatten(outputs)) {
      const array = leaf as DeviceArray;
      if (!keep.includes(array)) array.dispose();
    }
    const sum = times.filter(counted).reduce((total, { nanoseconds }) => total + nanoseconds, 0);
    least = Math.min(least, sum);
  }
  return least / 1e6;
}

const PRECISION = { linear_int8: 'int8', linear_bfloat16: 'bfloat16' } as const;

async function measure(c: OpCase): Promise<Row[]> {
  const addon = loadAddon();
  const operands = operandArrays(c, valuesOf(c, new Random(1)));
  const keep = Object.values(operands);
  const precision = PRECISION[c.op as keyof typeof PRECISION] as 'int8' | 'bfloat16' | undefined;
  const peaks = [addon.peak(peakSeconds)];
  const ownPeaks = precision === undefined ? [] : [addon.peak(peakSeconds, precision)];
  const rows: Row[] = [];
  const row = (direction: Row['direction'], cost: Cost, milliseconds: number): void => {
    peaks.push(addon.peak(peakSeconds));
    if (precision !== undefined) ownPeaks.push(addon.peak(peakSeconds, precision));
    const gigaflops = cost.flops / milliseconds / 1e6;
    rows.push({
      operation: `${c.op} ${c.name}`,
      direction,
      milliseconds,
      gigaflops,
      shareOfPeak: (1e9 * gigaflops) / Math.max(...peaks),
      ...(precision === undefined
        ? {}
        : { shareOfOwnPeak: (1e9 * gigaflops) / Math.max(...ownPeaks) }),
      gigabytesPerSecond: cost.bytes / milliseconds / 1e6,
    });
  };
  const forward = forwardProgram(c);
  row(
    'forward',
    c.cost.forward,
    await best(
      () => forward.profile(operands),
      () => true,
      keep,
    ),
  );
  if (c.cost.backward !== undefined) {
    const outputs = await forward.run(operands);
    const results = mapTree<object, Spec, Spec>(outputs, ({ dtype, shape }) => ({ dtype, shape }));
    const gradients = gradientProgram(c, results as Record<string, Spec>);
    const given = { operands, directions: outputs };
    // The kernels of the backward alone, without the forward and the inner products around them.
    const isBackward = ({ kernel }: StepTime): boolean => kernel.includes('backward');
    // What only passes a gradient on has no kernel of its own to time.
    if (gradients.steps.some(({ kernel }) => kernel.includes('backward'))) {
      row(
        'backward',
        c.cost.backward,
        await best(() => gradients.profile(given), isBackward, keep),
      );
    }
    gradients.dispose();
    disposeArrays(outputs);
  }
  forward.dispose();
  disposeArrays(operands);
  return rows;
}

async function main(): Promise<void> {
  const { isa, threads } = loadAddon().describe();
  const rows: Row[] = [];
  process.stdout.write(`${cpus()[0].model}, ${isa}, ${String(threads)} threads\n`);
  const wanted = process.argv[2] ?? '';
  for (const c of modelCases.filter(({ op, name }) => `${op} ${name}`.includes(wanted))) {
    for (const row of await measure(c)) {
      rows.push(row);
      process.stdout.write(
        `${row.operation.padEnd(46)} ${row.direction.padEnd(8)} ${row.milliseconds.toFixed(3).padStart(9)} ms ` +
          `${row.gigaflops.toFixed(1).padStart(7)} GFLOP/s ${(100 * row.shareOfPeak).toFixed(0).padStart(4)} % ` +
          `${row.gigabytesPerSecond.toFixed(1).padStart(6)} GB/s` +
          (row.shareOfOwnPeak === undefined
            ? '\n'
            : ` ${(100 * row.shareOfOwnPeak).toFixed(0).padStart(4)} % of its own peak\n`),
      );
    }
  }
  if (wanted !== '') return;
  const path = join(__dirname, 'results', 'ops.json');
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.tmp`, `${JSON.stringify({ isa, threads, rows }, null, 2)}\n`);
  renameSync(`${path}.tmp`, path);
}

void main();

// Every operation at the sizes of a B/16 tower: arithmetic and memory rates, and the share of the
// machine's peak. The best of many runs counts, and the best of many readings of the peak among them,
// since others may use the machine too.
//
//   npm run bench:ops            table on standard output, rows in bench/results/ops.json
//   npm run bench:ops -- word    cases whose name contains the word; the table alone
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import type { DeviceArray } from '../lib/array';
import type { Spec } from '../lib/graph';
import { disposeArrays, flatten, mapTree, scope } from '../lib/graph';
import type { StepTime } from '../lib/graph';
import { loadAddon } from '../lib/native/load';
import * as ops from '../lib/ops';
import type { Cost, OpCase, Tensors } from '../test/op_cases';
import {
  forwardProgram,
  gradientProgram,
  modelCases,
  operandArrays,
  valuesOf,
} from '../test/op_cases';
import { Random } from '../test/reference/random';

const secondsPerCase = 3;
const peakSeconds = 0.02;
const runsPerReading = 8;

type Precision = 'float32' | 'bfloat16' | 'int8';
const PRECISIONS: Partial<Record<string, Precision>> = {
  linear_int8: 'int8',
  linear_bfloat16: 'bfloat16',
};

interface Row {
  readonly operation: string;
  readonly direction: 'forward' | 'backward';
  readonly milliseconds: number;
  readonly gigaflops: number;
  /** Of the best reading of multiply-adds in the operation's precision. */
  readonly shareOfPeak: number;
  readonly gigabytesPerSecond: number;
}

// What the machine does at its best, by precision: the best reading so far.
const bestPeaks = new Map<Precision, number>();

function readPeak(precision: Precision): void {
  const peak = loadAddon().peak(peakSeconds, precision);
  bestPeaks.set(precision, Math.max(peak, bestPeaks.get(precision) ?? 0));
}

// The least time of the counted steps; every run's outputs but those in `keep` are disposed.
async function leastSeconds(
  run: () => Promise<{ outputs: object; times: StepTime[] }>,
  counted: (step: StepTime) => boolean,
  keep: readonly DeviceArray[],
  precision: Precision,
): Promise<number> {
  let least = Infinity;
  const end = performance.now() + 1000 * secondsPerCase;
  for (let round = 0; round < 5 || performance.now() < end; round++) {
    if (round % runsPerReading === 0) readPeak(precision);
    const { outputs, times } = await run();
    for (const { leaf } of flatten(outputs)) {
      const array = leaf as DeviceArray;
      if (!keep.includes(array)) array.dispose();
    }
    const sum = times.filter(counted).reduce((total, { nanoseconds }) => total + nanoseconds, 0);
    least = Math.min(least, sum / 1e9);
  }
  return least;
}

// One number of each result, so that results lie in the arena, as in a model: memory of a run's own is new,
// and the system gives a page of it when it is first written, at the expense of the operation.
function squares(results: Tensors): Tensors {
  return scope('squares', () =>
    Object.fromEntries(
      Object.entries(results).map(([name, x]) => [name, x.dtype === 'float32' ? ops.dot(x, x) : x]),
    ),
  );
}

async function measure(c: OpCase): Promise<Row[]> {
  const operands = operandArrays(c, valuesOf(c, new Random(1)));
  const keep = Object.values(operands);
  const precision = PRECISIONS[c.op] ?? 'float32';
  const rows: Row[] = [];
  const row = async (
    direction: Row['direction'],
    { flops, bytes }: Cost,
    run: () => Promise<{ outputs: object; times: StepTime[] }>,
    counted: (step: StepTime) => boolean,
  ): Promise<void> => {
    const seconds = await leastSeconds(run, counted, keep, precision);
    rows.push({
      operation: `${c.op} ${c.name}`,
      direction,
      milliseconds: 1e3 * seconds,
      gigaflops: flops / seconds / 1e9,
      shareOfPeak: flops / seconds / (bestPeaks.get(precision) ?? NaN),
      gigabytesPerSecond: bytes / seconds / 1e9,
    });
  };
  const donates = Object.values(c.operands).some(({ donated }) => donated);
  const forward = forwardProgram(c, undefined, donates ? {} : { given: squares });
  await row(
    'forward',
    c.cost.forward,
    () => forward.profile(operands),
    ({ label }) => !label.startsWith('squares'),
  );
  if (c.cost.backward !== undefined) {
    const whole = forwardProgram(c);
    const outputs = await whole.run(operands);
    whole.dispose();
    const results = mapTree<object, Spec, Spec>(outputs, ({ dtype, shape }) => ({ dtype, shape }));
    const gradients = gradientProgram(c, results as Record<string, Spec>, { given: squares });
    const given = { operands, directions: outputs };
    // The kernels of the backward alone, without the forward and the inner products around them.
    const isBackward = ({ kernel }: StepTime): boolean => kernel.includes('backward');
    // What only passes a gradient on has no kernel of its own to time.
    if (gradients.steps.some(({ kernel }) => kernel.includes('backward'))) {
      await row('backward', c.cost.backward, () => gradients.profile(given), isBackward);
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
          `${row.gigabytesPerSecond.toFixed(1).padStart(6)} GB/s\n`,
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

// The recipe over ranks is that of one process, to rounding, whatever a rank keeps a part of.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DeviceArray } from '../../lib/array';
import { localRanks } from '../../lib/comm';
import { flatten } from '../../lib/graph';
import { loadAddon } from '../../lib/native/load';
import type { RanksConfig, StepMetrics } from '../../lib/train';
import { overrideRecipe, readMetrics, runRecipe, stageFolder } from '../../lib/train';
import { openStream, pixelTable, recipe } from './recipe_noise';
import { expectGivenBack } from '../memory';

let folders: string[] = [];

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-recipe-ranks-'));
  folders.push(folder);
  return folder;
}

afterEach(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
  folders = [];
});

/** Every stage but the curated one. */
const stages = recipe.stages.flatMap(({ name, curation }) =>
  curation === undefined ? [name] : [],
);

interface Stop {
  readonly stage: string;
  readonly step: number;
}

interface Ended {
  readonly finished: boolean;
  /** Parameters and averages of every stage that ended now, by stage and path. */
  readonly values: ReadonlyMap<string, Float32Array>;
}

type Way = Omit<RanksConfig, 'comm'>;

async function runOn(
  folder: string,
  ranks: RanksConfig | undefined,
  names: readonly string[],
  stop?: Stop,
  of = recipe,
): Promise<Ended> {
  const values = new Map<string, Float32Array>();
  const abort = new AbortController();
  const finished = await runRecipe(of, {
    folder,
    pixelTable,
    stages: names,
    device: 'cpu',
    ranks,
    openStream: openStream(of, ranks),
    onStep: (stage, { step }) => {
      if (stage.name === stop?.stage && step === stop.step) abort.abort();
    },
    onStageEnd: async ({ name }, trainer) => {
      if ((ranks?.comm.rank ?? 0) > 0) return;
      const { parameters, averages } = trainer;
      expect(trainer.peakBytes).toBeGreaterThan(0);
      for (const { path, leaf } of flatten({ parameters, averages })) {
        values.set(`${name} ${path}`, Float32Array.from(await (leaf as DeviceArray).read()));
      }
    },
    signal: abort.signal,
  });
  return { finished, values };
}

async function onRanks(
  size: number,
  folder: string,
  way: Way,
  names: readonly string[],
  stop?: Stop,
  of = recipe,
): Promise<Ended> {
  const [first] = await Promise.all(
    localRanks(size).map((comm) => runOn(folder, { comm, ...way }, names, stop, of)),
  );
  return first;
}

function logOf(folder: string, name: string): StepMetrics[] {
  return readMetrics(join(stageFolder(folder, { name }), 'metrics.jsonl'));
}

function expectClose(actual: number, expected: number, bar: number): void {
  expect(Math.abs(actual - expected)).toBeLessThan(bar * Math.max(1, Math.abs(expected)));
}

function expectSameRun(folder: string, expected: string, names: readonly string[]): void {
  for (const name of names) {
    const [ours, theirs] = [logOf(folder, name), logOf(expected, name)];
    expect(ours.map(({ step }) => step)).toEqual(theirs.map(({ step }) => step));
    for (const [i, line] of ours.entries()) {
      const { loss, gradientNorm, terms = {}, pairsSeen } = theirs[i];
      expectClose(line.loss, loss, 2e-4);
      expectClose(line.gradientNorm, gradientNorm, 2e-3);
      expect(line.pairsSeen).toBe(pairsSeen);
      expect(Object.keys(line.terms ?? {})).toEqual(Object.keys(terms));
      for (const [term, value] of Object.entries(terms)) {
        expectClose(line.terms?.[term] ?? NaN, value, 2e-4);
      }
    }
  }
}

function expectSameValues(actual: Ended, expected: Ended): void {
  expect([...actual.values.keys()]).toEqual([...expected.values.keys()]);
  for (const [path, values] of expected.values) {
    // The softmax does not see it: its gradient is rounding alone, which Adam brings to full size.
    if (path.endsWith('key.bias')) continue;
    const ours = actual.values.get(path) ?? new Float32Array();
    const scale = Math.hypot(...values) + 1e-3 * Math.sqrt(values.length);
    const difference = Math.hypot(...values.map((x, i) => x - ours[i]));
    expect(difference / scale).toBeLessThan(1e-3);
  }
}

// Half batches of NaFlex are of 2 pairs, so of no more ranks.
const fixed = stages.filter((name) => name !== 'N');

const ways: readonly (readonly [string, number, readonly string[], Way])[] = [
  ['2 ranks', 2, stages, { partBytes: 1 }],
  ['3 ranks, sharded moments', 3, fixed, { shard: 'optimizer' }],
  ['2 ranks, sharded parameters', 2, stages, { shard: 'parameters', partBytes: 1 }],
  ['4 ranks, in larger parts', 4, fixed, { shard: 'parameters', partBytes: 40000 }],
];

test.each(ways)('%s: the recipe of one process', async (_, size, names, way) => {
  const [alone, folder] = [newFolder(), newFolder()];
  const expected = await runOn(alone, undefined, names);
  const before = loadAddon().memory();
  const actual = await onRanks(size, folder, way, names);
  expect(actual.finished).toBe(true);
  expectSameRun(folder, alone, names);
  expectSameValues(actual, expected);
  expectGivenBack(before);
});

test('stopped within stages, it goes on with other numbers of ranks and other parts of the state', async () => {
  const [alone, folder] = [newFolder(), newFolder()];
  const expected = await runOn(alone, undefined, ['B']);
  const parameters: Way = { shard: 'parameters', partBytes: 1 };
  await onRanks(2, folder, parameters, ['B'], { stage: 'A', step: 7 });
  await runOn(folder, undefined, ['B'], { stage: 'A', step: 11 });
  await onRanks(3, folder, { shard: 'optimizer' }, ['B'], { stage: 'B', step: 16 });
  const last = await onRanks(2, folder, parameters, ['B']);
  expect(last.finished).toBe(true);
  expectSameRun(folder, alone, ['A', 'B']);
  const ofB = (ended: Ended): Ended => ({
    ...ended,
    values: new Map([...ended.values].filter(([path]) => path.startsWith('B '))),
  });
  expectSameValues(ofB(last), ofB(expected));
});

test.each([{}, { shard: 'parameters' }] as const)(
  'Sinkhorn-Knopp balances the teacher over the whole batch: %o',
  async (way) => {
    const balanced = overrideRecipe(recipe, { 'distillation.centring': 'sinkhorn' });
    const [alone, folder] = [newFolder(), newFolder()];
    const expected = await runOn(alone, undefined, ['B'], undefined, balanced);
    const actual = await onRanks(3, folder, way, ['B'], undefined, balanced);
    expectSameRun(folder, alone, ['A', 'B']);
    expectSameValues(actual, expected);
  },
);

test.each([
  [2, {}],
  [3, { shard: 'optimizer' }],
  [2, { shard: 'parameters', partBytes: 1 }],
] as const)('with the decoder, in micro-batches on %d ranks: %o', async (size, way) => {
  const [alone, folder] = [newFolder(), newFolder()];
  const expected = await runOn(alone, undefined, ['A']);
  const before = loadAddon().memory();
  const split = overrideRecipe(recipe, { microBatch: 1 });
  const actual = await onRanks(size, folder, way, ['A'], undefined, split);
  expectSameRun(folder, alone, ['A']);
  expectSameValues(actual, expected);
  expectGivenBack(before);
});

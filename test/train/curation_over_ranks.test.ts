// Curation over ranks: global selection is that of one rank, and its pairs get to the ranks that train on
// them; local selection is every rank's own.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { evenParts, localRanks } from '../../lib/comm';
import { loadAddon } from '../../lib/native/load';
import type { CurationConfig } from '../../lib/train';
import { describeMpi, mpirun } from '../comm/mpirun';
import { failure } from '../failure';
import type { CuratedRun } from './curation_run';
import { curatedRun } from './curation_run';
import { steps, withoutTimes } from './noise';
import { expectGivenBack } from '../memory';

let folders: string[] = [];

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-curation-over-ranks-'));
  folders.push(folder);
  return folder;
}

afterEach(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
  folders = [];
});

function onRanks(size: number, changes: Partial<CurationConfig>): Promise<CuratedRun[]> {
  const folder = newFolder();
  return Promise.all(localRanks(size).map((comm) => curatedRun(folder, changes, { comm })));
}

// Every rank has the same weights and tells the same numbers.
function expectOneRun(runs: readonly CuratedRun[]): void {
  for (const { metrics, parameters } of runs) {
    expect(withoutTimes(metrics)).toEqual(withoutTimes(runs[0].metrics));
    expect(parameters).toEqual(runs[0].parameters);
  }
}

function expectGlobal(runs: readonly CuratedRun[], alone: CuratedRun): void {
  expectOneRun(runs);
  expect(runs[0].metrics).toHaveLength(steps);
  const shares = evenParts(8, runs.length);
  for (const [step, wanted] of alone.selections.entries()) {
    const own = runs.map(({ selections }) => selections[step]);
    for (const { rows } of own) expect(rows).toEqual(wanted.rows);
    expect(own.flatMap(({ candidates }) => candidates)).toEqual(wanted.candidates);
    expect(own.map(({ texts }) => texts.length)).toEqual(
      own.map((_, rank) => shares[rank + 1] - shares[rank]),
    );
    expect(own.flatMap(({ texts }) => texts)).toEqual(wanted.texts);
    expect(own.flatMap(({ examples }) => examples)).toEqual(wanted.examples);
    expect(own.flatMap(({ tokens }) => tokens)).toEqual(wanted.tokens);
    const [line, other] = [runs[0].metrics[step], alone.metrics[step]];
    expect(Math.abs(line.loss - other.loss)).toBeLessThan(2e-5 * Math.max(1, other.loss));
    expect(line.curation?.candidates).toBe(16);
    for (const name of ['score', 'selectedScore'] as const) {
      const [mine, theirs] = [line.curation?.[name] ?? 0, other.curation?.[name] ?? 0];
      expect(Math.abs(mine - theirs)).toBeLessThan(1e-5);
    }
  }
}

test.each([1, 2, 3])('global over %d ranks: the selection of one, moved whole', async (size) => {
  const before = loadAddon().memory();
  const alone = await curatedRun(newFolder());
  const runs = await onRanks(size, {});
  expectGlobal(runs, alone);
  if (size === 1) {
    const pixels = runs[0].selections.map((selection) => selection.pixels);
    expect(pixels).toEqual(alone.selections.map((selection) => selection.pixels));
  }
  expectGivenBack(before);
});

test.each([
  ['independent', { selection: 'independent' }],
  ['uniform', { selection: 'uniform' }],
  ['softmax', { scoreLoss: 'softmax' }],
] as const)('global, %s: the selection of one', async (_, changes) => {
  const alone = await curatedRun(newFolder(), changes);
  expectGlobal(await onRanks(2, changes), alone);
});

function expectLocal(runs: readonly CuratedRun[]): void {
  expectOneRun(runs);
  for (let step = 0; step < steps; step++) {
    const own = runs.map(({ selections }) => selections[step]);
    for (const { rows, candidates, texts } of own) {
      expect(candidates).toHaveLength(8);
      expect(new Set(rows).size).toBe(4);
      expect(texts).toEqual(rows.map((row) => candidates[row]));
    }
  }
  // Ranks draw each their own noise.
  const [first, second] = runs.map(({ selections }) => selections.map(({ rows }) => rows));
  expect(first).not.toEqual(second);
}

test('local: every rank out of its own pairs, its share of the batch', async () => {
  const runs = await onRanks(2, { scope: 'local', chunks: 2 });
  expectLocal(runs);
  expect((await onRanks(2, { scope: 'local', chunks: 2 }))[0].parameters).toEqual(
    runs[0].parameters,
  );
  const uneven = onRanks(2, { scope: 'local', chunks: 3 });
  expect((await failure(uneven)).message).toBe(
    'jointSelection: batch must be a positive multiple of chunks, got 4 and 3',
  );
});

describeMpi('jobs of 2 ranks', () => {
  const job = async (scope: 'global' | 'local'): Promise<CuratedRun[]> => {
    const folder = newFolder();
    const end = await mpirun(2, 'test/train/curation_child.ts', [folder, scope]);
    expect({ status: end.status, stderr: end.stderr }).toEqual({ status: 0, stderr: '' });
    return [0, 1].map(
      (rank) =>
        JSON.parse(readFileSync(join(folder, `rank-${String(rank)}.json`), 'utf8')) as CuratedRun,
    );
  };

  test('global: the selection of one process', async () => {
    expectGlobal(await job('global'), await curatedRun(newFolder()));
  });

  test('local: what ranks of one process select', async () => {
    const runs = await job('local');
    expectLocal(runs);
    const here = await onRanks(2, { scope: 'local', chunks: 2 });
    expect(runs.map(({ selections }) => selections)).toEqual(
      here.map(({ selections }) => selections),
    );
  });
});

// The whole recipe, every stage and loss, at the smallest size.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DeviceArray } from '../../lib/array';
import { flatten } from '../../lib/graph';
import { loadAddon } from '../../lib/native/load';
import type { Recipe, StepMetrics } from '../../lib/train';
import {
  inheritCheckpoint,
  overrideRecipe,
  readMetrics,
  runRecipe,
  stageFolder,
  stageOf,
} from '../../lib/train';
import { failure } from '../failure';
import { batch, openStream, pixelTable, recipe } from './recipe_noise';
import { expectGivenBack } from '../memory';

let folder = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-recipe-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

interface Ended {
  readonly parameters: ReadonlyMap<string, Float32Array>;
  readonly averages: ReadonlyMap<string, Float32Array>;
}

async function valuesOf(tree: unknown): Promise<Map<string, Float32Array>> {
  const values = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(tree)) {
    values.set(path, Float32Array.from(await (leaf as DeviceArray).read()));
  }
  return values;
}

async function run(
  of: Recipe,
  stages?: readonly string[],
  stop?: { readonly stage: string; readonly step: number },
): Promise<{ finished: boolean; ended: Map<string, Ended> }> {
  const ended = new Map<string, Ended>();
  const abort = new AbortController();
  const finished = await runRecipe(of, {
    folder,
    pixelTable,
    ...(stages === undefined ? {} : { stages }),
    openStream: openStream(of),
    onStep: (stage, { step }) => {
      if (stage.name === stop?.stage && step === stop.step) abort.abort();
    },
    onStageEnd: async (stage, trainer) => {
      ended.set(stage.name, {
        parameters: await valuesOf(trainer.parameters),
        averages: await valuesOf(trainer.averages),
      });
    },
    signal: abort.signal,
  });
  return { finished, ended };
}

function logOf(name: string): StepMetrics[] {
  return readMetrics(join(stageFolder(folder, { name }), 'metrics.jsonl'));
}

test('every stage runs, with its own terms, model and steps, and gives back all memory', async () => {
  const before = loadAddon().memory();
  const { finished, ended } = await run(recipe);
  expect(finished).toBe(true);
  expect([...ended.keys()]).toEqual(recipe.stages.map(({ name }) => name));
  expect(Object.keys(logOf('A')[0].terms ?? {})).toEqual([
    'sigmoid',
    'caption',
    'referring',
    'grounded',
  ]);
  expect(Object.keys(logOf('B')[0].terms ?? {}).slice(4)).toEqual(['local', 'masked']);
  expect(Object.keys(logOf('D')[0].terms ?? {})).toEqual(['sigmoid']);
  expect(logOf('D')[0].curation?.candidates).toBe(2 * batch);
  // A: 0 to 80 %, B to 95 %, C to the end; N from 90 %, stretched, by half batches at the longest.
  expect(logOf('A').map(({ step }) => step)).toEqual(Array.from({ length: 16 }, (_, i) => i));
  expect(logOf('B')[0].step).toBe(16);
  expect(logOf('C').map(({ step }) => step)).toEqual([19]);
  expect(logOf('N')[0].step).toBe(18);
  const pairs = logOf('N').at(-1)?.pairsSeen ?? 0;
  expect(pairs - 18 * batch).toBeGreaterThanOrEqual(7.5 * batch);
  expect(pairs - 18 * batch).toBeLessThan(8.5 * batch);
  for (const { name } of recipe.stages) {
    for (const line of logOf(name)) {
      expect(Number.isFinite(line.loss)).toBe(true);
      const weights: Readonly<Record<string, number>> = stageOf(recipe, name).losses;
      const sum = Object.entries(line.terms ?? {}).reduce(
        (total, [term, value]) => total + weights[term] * value,
        0,
      );
      expect(Math.abs(sum / line.loss - 1)).toBeLessThan(1e-5);
    }
  }
  expect(ended.get('C-48')?.parameters.get('vision.positions')).toHaveLength(36 * 32);
  expect(ended.get('N')?.parameters.has('selfDistillation.maskToken')).toBe(false);
  expect(ended.get('D')?.parameters.has('decoder.tokens')).toBe(false);
  expectGivenBack(before);
});

test('the same run again gives the same bits; stopped in the middle of a stage it goes on to them', async () => {
  const stages = ['B'];
  const whole = await run(recipe, stages);
  rmSync(folder, { recursive: true });
  const first = await run(recipe, stages, { stage: 'B', step: 17 });
  expect(first.finished).toBe(false);
  const rest = await run(recipe, stages);
  expect(rest.finished).toBe(true);
  expect(rest.ended.get('B')).toEqual(whole.ended.get('B'));
});

test('a stage enters with a teacher that is the student, and new moments with a count of their own', async () => {
  const still = overrideRecipe(recipe, {
    'optimizer.learningRate': 1e-30,
    'optimizer.weightDecay': 0,
  });
  await run(still, ['B'], { stage: 'B', step: 16 });
  const opened = await inheritCheckpoint(join(stageFolder(folder, { name: 'B' }), 'checkpoints'));
  const { position } = opened;
  // The heads entered at step 16, which the towers count as their seventeenth.
  expect(position.entered).toEqual({ selfDistillation: { m: 16, v: 16 } });
  const average = await opened.average({
    path: 'teacher.vision.norm.weight',
    dtype: 'float32',
    shape: [32],
  });
  const student = await opened.parameter({
    path: 'vision.norm.weight',
    dtype: 'float32',
    shape: [32],
    init: { kind: 'constant', value: 1 },
    decay: false,
  });
  expect(average).toEqual(student?.values);
  const centre = await opened.average({
    path: 'centres.pooled',
    dtype: 'float32',
    shape: [32],
  });
  // Zero in the beginning, then a tenth of the mean of the teacher's logits.
  expect(centre?.some((value) => value !== 0)).toBe(true);
  opened.dispose();
});

test('micro-batches: the decoder is trained too, and the first loss is that of the whole batch', async () => {
  const whole = await run(recipe, ['A']);
  expect(whole.finished).toBe(true);
  const losses = logOf('A').map(({ loss }) => loss);
  rmSync(folder, { recursive: true });
  const cut = overrideRecipe(recipe, { microBatch: 2 });
  await run(cut, ['A']);
  const again = logOf('A').map(({ loss }) => loss);
  losses.forEach((loss, i) => {
    expect(Math.abs(again[i] / loss - 1)).toBeLessThan(i < 3 ? 1e-5 : 1e-2);
  });
});

test('a folder of another recipe is refused', async () => {
  await run(recipe, ['A'], { stage: 'A', step: 0 });
  const other = overrideRecipe(recipe, { 'stages.B.losses.local': 0.5 });
  const error = await failure(run(other, ['A']));
  expect(error.code).toBe('ERR_CONFIG');
  expect(error.message).toMatch(/recipe\.json must hold the recipe that is run/u);
  expect(JSON.parse(readFileSync(join(folder, 'recipe.json'), 'utf8'))).toEqual(recipe);
});

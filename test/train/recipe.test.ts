import {
  cosineSchedule,
  trainsDecoder,
  trainsSelfDistillation,
  oneGpuRecipe,
  overrideRecipe,
  parseRecipe,
  publishedRecipe,
  publishedSizes,
  stageModel,
  stageOf,
} from '../../lib/train';
import type { Recipe, RecipeInput } from '../../lib/train';
import { variant } from '../../lib/model';
import { defaultOptimizer } from '../../lib/train/optimizer';
import { stagesOf, stageUpdates } from '../../lib/train/recipe_run';

function small(stages: RecipeInput['stages']): unknown {
  return {
    name: 'small',
    model: variant('mu/8', { imageSize: 16, vocabulary: 40, length: 6 }),
    batch: 8,
    totalSteps: 100,
    warmupSteps: 10,
    optimizer: defaultOptimizer,
    stages,
  };
}

const first = { name: 'A', start: 0, end: 0.8, losses: {} };

describe('the published recipe', () => {
  test.each(publishedSizes)('%s: stages cover the schedule and begin where others end', (size) => {
    const recipe = publishedRecipe(size);
    for (const stage of recipe.stages) {
      if (stage.after === undefined || stage.constant !== undefined) continue;
      expect(stageOf(recipe, stage.after).end).toBe(stage.start);
    }
    // 40 billion examples in batches of 32,768 (arXiv 2502.14786 §2.1).
    expect(recipe.totalSteps).toBe(Math.round(40e9 / recipe.batch));
    expect(trainsSelfDistillation(stageOf(recipe, 'A'))).toBe(false);
    expect(trainsSelfDistillation(stageOf(recipe, 'B'))).toBe(true);
    expect(recipe.stages.filter(({ constant }) => constant === undefined).every(trainsDecoder)).toBe(
      true,
    );
  });

  test.each([
    ['B/16', 0.25, 0.0625],
    ['L/16', 0.5, 0.125],
    ['So400m/16', 1, 0.25],
    ['g-opt/16', 0.5, 0.125],
  ])('%s: weights of self-distillation (§2.3)', (size, local, masked) => {
    const { losses } = stageOf(publishedRecipe(size), 'B');
    expect(losses).toEqual({ sigmoid: 1, caption: 1, referring: 1, grounded: 1, local, masked });
  });

  test('B/16: NaFlex is stretched to 15 billion examples, 3 per length (§2.4.2)', () => {
    const recipe = publishedRecipe('B/16');
    const naflex = stageOf(recipe, 'N');
    expect(naflex.lengths).toEqual([128, 256, 576, 784, 1024]);
    const examples = stageUpdates(recipe, naflex) * recipe.batch;
    expect(Math.abs(examples - 15e9) / 15e9).toBeLessThan(1e-3);
    expect(stageModel(recipe, naflex).vision).toEqual(variant('B/16', { layout: 'naflex' }).vision);
  });

  test('B/16: active curation has 4 billion examples at 1e-5, without decay (§2.5)', () => {
    const recipe = publishedRecipe('B/16');
    const curated = stageOf(recipe, 'D-384');
    expect(curated.curation?.filterRatio).toBe(0.5);
    expect(curated.constant?.learningRate).toBe(1e-5);
    expect(curated.optimizer.weightDecay).toBe(0);
    expect(Math.abs(stageUpdates(recipe, curated) * recipe.batch - 4e9) / 4e9).toBeLessThan(1e-3);
    expect(stageModel(recipe, curated).vision).toEqual(variant('B/16', { imageSize: 384 }).vision);
  });

  test('So400m/16: patch 14 at 384 pixels has 729 patches', () => {
    const recipe = publishedRecipe('So400m/16');
    expect(stageModel(recipe, stageOf(recipe, 'C-384-p14')).vision.positions).toBe(729);
  });

  test('learning rates at the borders of the stages (§5.3 of the specification)', () => {
    const { totalSteps, warmupSteps, stages } = publishedRecipe('B/16');
    const rate = (name: string): number => {
      const { start } = stages.find((stage) => stage.name === name) ?? { start: NaN };
      return 1e-3 * cosineSchedule(start * totalSteps, { totalSteps, warmupSteps });
    };
    expect(rate('B')).toBeCloseTo(9.86e-5, 6);
    expect(rate('N')).toBeCloseTo(2.53e-5, 6);
    expect(rate('C-384')).toBeCloseTo(6.36e-6, 7);
  });

  test('a size that was not published is refused', () => {
    expect(() => publishedRecipe('S/16')).toThrow(/model must be one of B\/32/);
    expect(() => oneGpuRecipe('S/16')).toThrow(/model must be one of B\/32/);
  });
});

describe('parseRecipe', () => {
  test('defaults are those of the specification', () => {
    const { distillation, selfDistillation, parallelShare } = parseRecipe(small([first]));
    expect(parallelShare).toBe(0.5);
    expect(distillation).toEqual({
      momentum: 0.966,
      centreMomentum: 0.9,
      studentTemperature: 0.1,
      teacherTemperature: 0.04,
      centring: 'centre',
      localViews: 8,
      maskShare: 0.5,
      mask: 'random',
    });
    expect(selfDistillation.prototypes).toBe(65536);
  });

  test('a recipe survives being written and read', () => {
    const recipe = publishedRecipe('B/16');
    expect(parseRecipe(JSON.parse(JSON.stringify(recipe)))).toEqual(recipe);
  });

  test.each<[string, RecipeInput['stages'], RegExp]>([
    ['an unknown parent', [{ ...first, after: 'Z' }], /after of stage A must be a stage before it/],
    ['a name twice', [first, { ...first, after: 'A', start: 0.8, end: 1 }], /name of stage A/],
    ['an empty part', [{ ...first, end: 0 }], /start of stage A must be below its end/],
    ['a late start', [{ ...first, start: 0.5 }], /start of stage A must be 0/],
    ['lengths without NaFlex', [{ ...first, lengths: [16] }], /lengths of stage A/],
    [
      'NaFlex with self-distillation',
      [{ ...first, resolution: { layout: 'naflex' }, lengths: [4], losses: { local: 1 } }],
      /losses of stage A/,
    ],
    ['no stages', [], /stages must be a list of stages/],
  ])('%s is refused', (_, stages, message) => {
    expect(() => parseRecipe(small(stages))).toThrow(message);
  });
});

describe('overrideRecipe', () => {
  const recipe: Recipe = publishedRecipe('B/16');

  test('any field, stages by their name', () => {
    const changed = overrideRecipe(recipe, {
      batch: 1024,
      'optimizer.learningRate': 5e-4,
      'stages.B.losses.local': 0,
      'stages.N.lengths': [64, 256],
    });
    expect(changed.batch).toBe(1024);
    expect(changed.optimizer.learningRate).toBe(5e-4);
    expect(stageOf(changed, 'B').losses.local).toBe(0);
    expect(stageOf(changed, 'N').lengths).toEqual([64, 256]);
    expect(stageOf(recipe, 'B').losses.local).toBe(0.25);
  });

  test.each([
    [{ 'stages.Q.losses.local': 0 }, /field must be one of a recipe/],
    [{ 'optimizer.rate': 1 }, /optimizer/],
    [{ batch: 0 }, /batch must be a positive integer/],
  ])('%j is refused', (fields, message) => {
    expect(() => overrideRecipe(recipe, fields)).toThrow(message);
  });
});

test('stages asked for come with those they go on from', () => {
  const names = stagesOf(publishedRecipe('B/16'), ['N', 'C-512']).map(({ name }) => name);
  expect(names).toEqual(['A', 'B', 'C-512', 'A-90', 'N']);
});

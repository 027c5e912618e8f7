// Does active curation pay? A teacher learns emoji from clean pairs; students, all alike, learn from data
// in which a share of the drawings carries the names of another emoji: with batches drawn at random out
// of super-batches, and with batches that teacher and student select out of the same super-batches.
//
//   npm run experiment:curation               three seeds; ten to fifteen minutes on two cores
//   npm run experiment:curation -- --seeds 1 --steps 200 --teacher-steps 300 --output /tmp/curation
//
// Accuracy is that of naming drawings of a style nobody was trained on, among all trained emoji, mean
// over the trained languages. Writes curation.json, curation.svg and curation.md.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import type { DeviceArray } from '../lib/array';
import { Philox4x32 } from '../lib/array/random';
import { emojiRecipe, WARMUP } from '../lib/cli/emoji_recipe';
import { gemmaTokenizer } from '../lib/cli/emoji_training';
import { integer } from '../lib/cli/integer';
import { lineChart } from '../lib/cli/line_chart';
import { Progress } from '../lib/cli/progress';
import { SiglipError } from '../lib/errors';
import type { Batch, EmojiPreset, PairTable } from '../lib/data';
import { EmojiData, Prefetch, emojiPreset, pairBatchesModule } from '../lib/data';
import { zeroShot } from '../lib/eval';
import { flatten, mapTree } from '../lib/graph';
import { normalizationTable } from '../lib/image';
import type { ModelConfig, TwoTowersParameters } from '../lib/model';
import type { BytePairTokenizer } from '../lib/text';
import { TokenizerSubset } from '../lib/text';
import type { CurationConfig, Recipe, Reference } from '../lib/train';
import { Trainer, modelReference, pairObjective, superBatch } from '../lib/train';
import { PairEmbedder } from '../lib/train/pair_embedder';
import { defaultPreprocessor } from '../lib/weights';

const methods = {
  uniform: { selection: 'uniform' },
  learnability: { selection: 'joint', score: 'learnability' },
  easyReference: { selection: 'joint', score: 'easyReference' },
  hardLearner: { selection: 'joint', score: 'hardLearner' },
  independent: { selection: 'independent', score: 'learnability' },
} as const satisfies Record<string, Partial<CurationConfig>>;

type Method = keyof typeof methods;

interface Settings {
  readonly seeds: number;
  readonly steps: number;
  readonly teacherSteps: number;
  readonly batch: number;
  readonly filterRatio: number;
  readonly chunks: number;
  readonly gain: number;
  readonly mislabelled: number;
  readonly evaluateEvery: number;
  readonly methods: readonly Method[];
}

/** One evaluation of a student. */
interface Point {
  readonly pairs: number;
  readonly accuracy: number;
  /** Share of mislabelled pairs among those trained on since the last point. */
  readonly mislabelled: number;
}

interface Student {
  readonly method: Method;
  readonly seed: number;
  readonly points: readonly Point[];
  /** Of all batches. */
  readonly mislabelled: number;
  /** Share of the time of its steps that scoring and selecting took. */
  readonly selectionShare: number;
  readonly seconds: number;
}

/** What all runs share. */
interface World {
  readonly preset: EmojiPreset;
  readonly recipe: Recipe;
  readonly model: ModelConfig;
  readonly table: PairTable;
  readonly pixelTable: Float32Array;
  readonly data: EmojiData;
  readonly tokenizer: BytePairTokenizer;
}

async function prepare(batch: number): Promise<World> {
  const preset = emojiPreset('animals-food-3');
  const data = new EmojiData(preset);
  const { tokenizer } = TokenizerSubset.from(await gemmaTokenizer(), data.texts());
  const recipe = emojiRecipe(preset, 'towers', tokenizer.vocabulary, { batch });
  const { model } = recipe;
  const table = await data.trainingTable((texts) => tokenizer.encode(texts, model.text.length));
  const preprocessor = defaultPreprocessor(model);
  return {
    preset,
    recipe,
    model,
    table,
    data,
    tokenizer,
    pixelTable: normalizationTable(preprocessor),
  };
}

// A share of the drawings trade their concepts in a ring.
function mislabel(
  table: PairTable,
  share: number,
  seed: number,
): { table: PairTable; wrong: Uint8Array } {
  const random = new Philox4x32(seed, 'mislabelled');
  const order = Int32Array.from(table.concepts.keys());
  for (let i = order.length - 1; i > 0; i--) {
    const j = random.integer(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  const ring = order.subarray(0, Math.round(share * order.length));
  const concepts = table.concepts.slice();
  const wrong = new Uint8Array(concepts.length);
  for (const [k, index] of ring.entries()) {
    const other = table.concepts[ring[(k + 1) % ring.length]];
    wrong[index] = other === table.concepts[index] ? 0 : 1;
    concepts[index] = other;
  }
  return { table: { ...table, concepts }, wrong };
}

async function accuracyOf(
  world: World,
  parameters: TwoTowersParameters<DeviceArray>,
): Promise<number> {
  const { preset, model, data, tokenizer, pixelTable } = world;
  const { pixels: images } = await data.images(preset.testStyle, 'train');
  const names = preset.locales.map((locale) => data.names(locale, 'train'));
  const texts = names.flatMap((name) => name.texts);
  const count = data.emoji.train.length;
  // The towers take pairs: images are filled up with zeros to the number of texts.
  const rows = Math.max(count, texts.length);
  const pixels = new Uint8Array((rows * images.length) / count);
  pixels.set(images);
  const ids = new Int32Array(rows * model.text.length);
  ids.set(tokenizer.encode(texts, model.text.length));
  const embedder = new PairEmbedder({ model, batch: 128 });
  const embeddings = await embedder.embed(
    parameters,
    { images: { pixels, table: pixelTable }, texts: ids },
    rows,
  );
  embedder.dispose();
  const width = model.embedding;
  const shown = { data: embeddings.images.subarray(0, count * width), width };
  let sum = 0;
  let first = 0;
  for (const { rows: named } of names) {
    const classes = {
      data: embeddings.texts.subarray(first * width, (first + named.length) * width),
      width,
    };
    const labels = Int32Array.from({ length: count }, (_, row) => named.indexOf(row));
    sum += zeroShot(shown, classes, labels).top1.value;
    first += named.length;
  }
  return sum / names.length;
}

interface Run {
  readonly world: World;
  readonly table: PairTable;
  readonly steps: number;
  readonly seed: number;
  readonly curation?: CurationConfig | undefined;
  readonly evaluateEvery: number;
  readonly onSelected?: (examples: Int32Array) => void;
  readonly onPoint: (trainer: Trainer, pairs: number) => Promise<void>;
  readonly onStep?: (step: number, selectionSeconds: number, seconds: number) => void;
}

async function trainRun(run: Run): Promise<Trainer> {
  const { world, table, steps, seed, curation, evaluateEvery } = run;
  const { recipe, model, preset, pixelTable } = world;
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-curation-'));
  const batch =
    curation === undefined ? recipe.batch : superBatch(recipe.batch, curation.filterRatio);
  const stream = await Prefetch.open<Batch>({
    module: pairBatchesModule,
    factory: 'openPairBatches',
    input: { table, options: { batch, seed, augment: preset.augment } },
    name: 'emoji batches',
  });
  try {
    const trainer = await Trainer.start(
      {
        objective: pairObjective({ model, batch: recipe.batch, pixelTable }),
        folder,
        schedule: { totalSteps: steps, warmupSteps: Math.floor(WARMUP * steps) },
        optimizer: recipe.optimizer,
        seed,
        initialLogits: recipe.initialLogits,
        keepCheckpoints: 1,
        device: 'cpu',
        curation,
      },
      stream,
    );
    for (let finished = false; !finished;) {
      const pause = new AbortController();
      finished = await trainer.train({
        signal: pause.signal,
        onStep: ({ step, curation: selection, pairsPerSecond }) => {
          run.onStep?.(step, selection?.seconds ?? 0, recipe.batch / pairsPerSecond);
          if ((step + 1) % evaluateEvery === 0) pause.abort();
        },
        onSelection: (selection) => run.onSelected?.(selection.batch.examples),
      });
      await run.onPoint(trainer, trainer.step * recipe.batch);
    }
    return trainer;
  } finally {
    await stream.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

async function teach(
  world: World,
  { teacherSteps }: Settings,
): Promise<{ reference: Reference; accuracy: number }> {
  const progress = new Progress({ total: teacherSteps, unit: 'steps of the teacher' });
  let accuracy = 0;
  const trainer = await trainRun({
    world,
    table: world.table,
    steps: teacherSteps,
    seed: 1000,
    evaluateEvery: teacherSteps,
    onStep: (step) => {
      progress.update(step + 1);
    },
    onPoint: async (trained) => {
      accuracy = await accuracyOf(world, trained.parameters);
    },
  });
  const copies = new Map<string, DeviceArray>();
  for (const { path, leaf } of flatten(trainer.parameters)) {
    copies.set(path, await (leaf as DeviceArray).to('cpu'));
  }
  trainer.dispose();
  const parameters = mapTree<TwoTowersParameters<DeviceArray>, DeviceArray, DeviceArray>(
    trainer.parameters,
    (array, path) => copies.get(path) ?? array,
  );
  const { model, pixelTable, recipe } = world;
  return {
    reference: await modelReference({ model, parameters, batch: recipe.batch, pixelTable }),
    accuracy,
  };
}

async function study(
  world: World,
  settings: Settings,
  reference: Reference,
  method: Method,
  seed: number,
): Promise<Student> {
  const { steps, evaluateEvery, filterRatio, chunks, gain } = settings;
  const { table, wrong } = mislabel(world.table, settings.mislabelled, seed);
  const progress = new Progress({ total: steps, unit: `steps of ${method}, seed ${String(seed)}` });
  const points: Point[] = [{ pairs: 0, accuracy: NaN, mislabelled: NaN }];
  const seen = { all: 0, wrong: 0, recent: 0, recentWrong: 0 };
  const time = { selection: 0, step: 0 };
  const trainer = await trainRun({
    world,
    table,
    steps,
    seed,
    evaluateEvery,
    curation: { reference, filterRatio, chunks, gain, ...methods[method] },
    onSelected: (examples) => {
      const count = examples.reduce((sum, example) => sum + wrong[example], 0);
      seen.all += examples.length;
      seen.wrong += count;
      seen.recent += examples.length;
      seen.recentWrong += count;
    },
    onStep: (step, selectionSeconds, seconds) => {
      time.selection += selectionSeconds;
      time.step += seconds;
      progress.update(step + 1);
    },
    onPoint: async ({ parameters }, pairs) => {
      const accuracy = await accuracyOf(world, parameters);
      points.push({ pairs, accuracy, mislabelled: seen.recentWrong / seen.recent });
      seen.recent = 0;
      seen.recentWrong = 0;
    },
  });
  trainer.dispose();
  return {
    method,
    seed,
    points: points.slice(1),
    mislabelled: seen.wrong / seen.all,
    selectionShare: time.selection / time.step,
    seconds: time.step,
  };
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, x) => sum + x, 0) / values.length;

// Mean over seeds, point by point.
function curve(students: readonly Student[], value: (point: Point) => number): [number, number][] {
  return students[0].points.map(({ pairs }, i) => [
    pairs,
    mean(students.map(({ points }) => value(points[i]))),
  ]);
}

function chart(byMethod: ReadonlyMap<Method, readonly Student[]>): string {
  const svg = lineChart(
    [...byMethod].map(([name, students]) => ({
      name,
      points: curve(students, ({ accuracy }) => 100 * accuracy),
    })),
  );
  const style =
    ':root { --accent: #2563c9; --line: #d9dee5; } text { fill: #5b6675; font: 11px sans-serif; }';
  return svg
    .replace('<svg ', '<svg xmlns="http://www.w3.org/2000/svg" ')
    .replace('>', `><style>${style}</style>`);
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

function page(
  settings: Settings,
  teacherAccuracy: number,
  byMethod: ReadonlyMap<Method, readonly Student[]>,
): string {
  const uniform = byMethod.get('uniform');
  const goal = uniform === undefined ? NaN : (curve(uniform, (p) => p.accuracy).at(-1)?.[1] ?? NaN);
  const rows = [...byMethod].map(([name, students]) => {
    const accuracies = curve(students, (p) => p.accuracy);
    const reached = accuracies.find(([, accuracy]) => accuracy >= goal)?.[0];
    const last = students.map(({ points }) => points.at(-1)?.accuracy ?? NaN);
    return [
      name,
      `${percent(mean(last))} (${last.map(percent).join(', ')})`,
      reached === undefined ? 'not reached' : String(reached),
      percent(mean(students.map(({ mislabelled }) => mislabelled))),
      percent(mean(students.map(({ selectionShare }) => selectionShare))),
    ];
  });
  const header = [
    'batches',
    'accuracy at the end (seeds)',
    'pairs to the uniform student’s last accuracy',
    'mislabelled among those trained on',
    'selection’s share of the time',
  ];
  const table = [header, header.map(() => '---'), ...rows]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n');
  const { seeds, steps, batch, filterRatio, chunks, gain, mislabelled, teacherSteps } = settings;
  return `# Active curation on emoji with wrong names

Made by \`npm run experiment:curation\`; do not edit. A teacher was trained on clean pairs for ${String(teacherSteps)}
steps (accuracy ${percent(teacherAccuracy)}). ${String(seeds)} seeds of students of its size saw ${String(steps)} batches of ${String(batch)} pairs out of
super-batches of ${String(superBatch(batch, filterRatio))}, in which ${percent(mislabelled)} of the drawings carried the names of another emoji. Chunks ${String(chunks)}, gain
${String(gain)}. Accuracy: naming drawings of a style that nobody was trained on, mean over the trained languages.

${table}

![accuracy in per cent against pairs trained on](curation.svg)
`;
}

async function main(): Promise<void> {
  const command = new Command('experiment:curation')
    .option('--seeds <n>', 'students of each kind', '3')
    .option('--steps <n>', 'of every student', '1200')
    .option('--teacher-steps <n>', 'of the teacher', '3000')
    .option('--batch <n>', 'pairs of a step', '64')
    .option('--filter-ratio <f>', 'share of a super-batch that is dropped', '0.5')
    .option('--chunks <n>', 'of a selection', '16')
    .option('--gain <x>', 'sharpness of the choice', '1')
    .option('--mislabelled <f>', 'share of drawings with a wrong name', '0.25')
    .option('--evaluate-every <n>', 'steps', '100')
    .option('--methods <names...>', Object.keys(methods).join(', '), ['uniform', 'learnability'])
    .option('-o, --output <folder>', 'of the results', 'docs/experiments');
  const flags = command.parse().opts<Record<string, string> & { methods: string[] }>();
  const chosen = flags.methods.filter((name): name is Method => Object.hasOwn(methods, name));
  if (chosen.length !== flags.methods.length) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `--methods must be of ${Object.keys(methods).join(', ')}, got ${flags.methods.join(', ')}`,
    );
  }
  const settings: Settings = {
    seeds: integer('seeds', flags.seeds, 1),
    steps: integer('steps', flags.steps, 1),
    teacherSteps: integer('teacher-steps', flags.teacherSteps, 1),
    batch: integer('batch', flags.batch, 1),
    filterRatio: Number(flags.filterRatio),
    chunks: integer('chunks', flags.chunks, 1),
    gain: Number(flags.gain),
    mislabelled: Number(flags.mislabelled),
    evaluateEvery: integer('evaluate-every', flags.evaluateEvery, 1),
    methods: chosen,
  };
  const world = await prepare(settings.batch);
  const { reference, accuracy } = await teach(world, settings);
  console.log(`teacher: ${percent(accuracy)}`);
  const students: Student[] = [];
  for (let seed = 0; seed < settings.seeds; seed++) {
    for (const method of settings.methods) {
      const student = await study(world, settings, reference, method, seed);
      students.push(student);
      console.log(
        `seed ${String(seed)} ${method}: ${percent(student.points.at(-1)?.accuracy ?? NaN)}, ` +
          `${percent(student.mislabelled)} mislabelled, ${student.seconds.toFixed(0)} s`,
      );
    }
  }
  reference.dispose();
  const byMethod = new Map(
    settings.methods.map((name) => [name, students.filter(({ method }) => method === name)]),
  );
  mkdirSync(flags.output, { recursive: true });
  const at = (name: string): string => join(flags.output, name);
  const results = { settings, teacher: { accuracy }, students };
  writeFileSync(at('curation.json'), `${JSON.stringify(results, null, 2)}\n`);
  writeFileSync(at('curation.svg'), chart(byMethod));
  writeFileSync(at('curation.md'), page(settings, accuracy, byMethod));
  console.log(page(settings, accuracy, byMethod));
}

void main();

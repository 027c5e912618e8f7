// `siglip2 demo`, the main job: train a small model, save it, load it back, measure it on what it
// has never seen, and show the result on one page.
import { Command } from 'commander';
import { join } from 'node:path';
import sharp from 'sharp';
import type { EmojiData, EmojiPreset, EmojiStyle } from '../data';
import { Siglip2 } from '../embed';
import type { EmojiReport, EmojiTask, Proportion, Rows } from '../eval';
import { evaluateEmoji, forEachScores } from '../eval';
import type { ComputeDType } from '../graph';
import type { EmojiTraining, StageFacts, TrainedStage } from './emoji_training';
import { withOutput } from './output';
import { percent, shareText } from './page';
import type { Confusion, GalleryItem, Report, ResultRow, ResultTable } from './report';
import { renderReport } from './report';
import type { TrainFlags } from './train';
import { runTraining, withTrainFlags } from './train';

const gallerySize = 48;
const confusedClasses = 10;
// Languages named one by one in the summary and under a drawing; the tables have them all.
const summaryLanguages = 4;

const credits: Readonly<Record<EmojiStyle, string>> = {
  noto: 'Noto Emoji by Google (Apache-2.0)',
  twemoji: 'Twemoji by Twitter and contributors (CC BY 4.0)',
  openmoji: 'OpenMoji by its contributors (CC BY-SA 4.0)',
  'fluent-emoji-flat': 'Fluent Emoji by Microsoft (MIT)',
  'noto-v1': 'Noto Emoji of 2016 by Google (Apache-2.0)',
  emojione: 'EmojiTwo by EmojiOne and contributors (CC BY 4.0)',
  'emojione-v1': 'EmojiOne 1 by JoyPixels (CC BY-SA 4.0)',
  fxemoji: 'FxEmoji by Mozilla (Apache-2.0)',
  'streamline-emojis': 'Streamline Emojis by Streamline (CC BY 4.0)',
};

function attribution({ trainStyles, testStyle }: EmojiPreset): string[] {
  return [
    `Drawings: ${[...trainStyles, testStyle].map((style) => credits[style]).join(', ')}.`,
    'Names: Unicode CLDR annotations (Unicode-3.0). Tokenizer: Gemma (Apache-2.0).',
    'The numbers compare recipes on drawings of emoji. They say nothing about the quality of the published SigLIP 2 checkpoints.',
  ];
}

/** The command. */
export function demoCommand(): Command {
  const command = new Command('demo').description(
    'train a small SigLIP 2 on emoji, evaluate it on an unseen style and write a report',
  );
  return withTrainFlags(command, 'runs/demo').action(demo);
}

async function demo(flags: TrainFlags): Promise<void> {
  const training = await runTraining({ ...flags, recipe: 'towers' });
  const trained = training.stages.at(-1);
  if (!training.finished || trained === undefined) return;
  const { device, precision } = flags;
  const model = await Siglip2.load(trained.folder, { device, precision });
  try {
    const embedder = embedderOf(model);
    const measured = await evaluateEmoji(training.data, embedder);
    const report = await reportOf(training, trained, measured, embedder, model, precision);
    const page = join(flags.output, 'report.html');
    await withOutput(page, (write) => write(renderReport(report)));
    for (const line of report.summary) process.stdout.write(`${line}\n`);
    process.stdout.write(`model:  ${trained.folder}\nreport: ${page}\n`);
  } finally {
    model.dispose();
  }
}

interface Embedder {
  images(pixels: Uint8Array, size: number): Promise<Rows>;
  texts(texts: readonly string[]): Promise<Rows>;
}

function embedderOf(model: Siglip2): Embedder {
  const width = model.config.embedding;
  const rows = (embeddings: readonly Float32Array[]): Rows => {
    const data = new Float32Array(embeddings.length * width);
    embeddings.forEach((embedding, i) => {
      data.set(embedding, i * width);
    });
    return { data, width };
  };
  return {
    images: async (pixels, size) => {
      const bytes = 3 * size * size;
      const images = Array.from({ length: pixels.length / bytes }, (_, i) => ({
        data: pixels.subarray(i * bytes, (i + 1) * bytes),
        width: size,
        height: size,
        channels: 3 as const,
      }));
      return rows(await model.embedImages(images, { batchSize: 64 }));
    },
    texts: async (texts) => rows(await model.embedTexts(texts, { batchSize: 64 })),
  };
}

async function reportOf(
  { data, facts }: EmojiTraining,
  { stage, model: config, metrics, seconds }: TrainedStage,
  measured: EmojiReport,
  embedder: Embedder,
  model: Siglip2,
  precision: ComputeDType,
): Promise<Report> {
  const { preset } = data;
  const found = (seen: boolean): EmojiTask[] =>
    measured.tasks.filter(
      (task) => task.seenStyle === seen && task.part === 'train' && task.kind === 'trained',
    );
  const [unseen] = found(false);
  const seen = found(true);
  const seenMean = seen.reduce((sum, task) => sum + task.top1.value, 0) / seen.length;
  const views = await viewsOf(data, embedder, model);
  const last = metrics.at(-1);
  return {
    title: `A small SigLIP 2, trained on ${String(data.emoji.train.length)} emoji in ${preset.locales.join(', ')}`,
    summary: [
      `unseen style (${preset.testStyle}): top-1 ${shareText(unseen.top1)} of ${String(unseen.classes)} emoji, top-5 ${percent(unseen.top5)}; chance ${percent(unseen.chance)}, pixel baseline ${percent(measured.pixels.top1.value)}`,
      `training styles: top-1 ${percent(seenMean)} (${seen.map((task) => `${task.style} ${shareText(task.top1)}`).join(', ')})`,
      ...measured.retrieval
        .slice(0, summaryLanguages)
        .map(
          ({ locale, textToImage, imageToText }) =>
            `retrieval on the unseen style, ${locale}: text→image R@1 ${percent(textToImage.at1.value)} R@5 ${percent(textToImage.at5.value)}, image→text R@1 ${percent(imageToText.at1.value)} R@5 ${percent(imageToText.at5.value)}`,
        ),
      ...unseenLanguages(measured),
      `trained on ${String(last?.pairsSeen ?? 0)} pairs in ${seconds.toFixed(0)} s (${((last?.pairsSeen ?? 0) / seconds).toFixed(0)} pairs/s), final loss ${(last?.loss ?? NaN).toFixed(3)}`,
    ],
    settings: {
      model: JSON.stringify(config),
      ...factsOf(facts.get(stage.name), precision),
      'training styles': preset.trainStyles.join(', '),
      augmentation: JSON.stringify(preset.augment),
    },
    metrics,
    tables: tables(measured),
    gallery: views.gallery,
    confusion: views.confusion,
    attribution: attribution(preset),
  };
}

// Nothing where all steps were taken by an earlier run of the command.
function factsOf(facts: StageFacts | undefined, precision: ComputeDType): Record<string, string> {
  if (facts === undefined) return {};
  return {
    parameters: facts.parameters.toLocaleString('en'),
    device: `${facts.device}, ${precision}`,
    'peak memory of a step': `${(facts.peakBytes / 2 ** 20).toFixed(0)} MiB`,
  };
}

function unseenLanguages({ tasks }: EmojiReport): string[] {
  const rows = tasks.filter(
    (task) => !task.seenStyle && task.part === 'train' && task.kind !== 'trained',
  );
  return rows.map(
    (task) =>
      `unseen languages (${task.kind}: ${task.locales.map(({ locale }) => locale).join(', ')}), unseen style: top-1 ${shareText(task.top1)}`,
  );
}

function tables(measured: EmojiReport): ResultTable[] {
  // Languages that were not trained are shown for the unseen style only.
  const shown = measured.tasks.filter((task) => !task.seenStyle || task.kind === 'trained');
  const styles = shown.map((task): ResultRow => {
    const what = task.part === 'train' ? 'emoji of training' : 'unseen emoji';
    const baseline =
      !task.seenStyle && task.part === 'train' ? { baseline: measured.pixels.top1.value } : {};
    return {
      name: `${task.seenStyle ? 'training style' : 'unseen style'} ${task.style}, ${what}`,
      note: `${task.kind === 'trained' ? 'trained languages' : `unseen languages, ${task.kind}`}: ${task.locales
        .map(({ locale, top1 }) => `${locale} ${percent(top1.value)}`)
        .join(', ')}`,
      shares: { 'top-1': task.top1 },
      chance: task.chance,
      ...baseline,
    };
  });
  const direction = (
    name: string,
    recall: { at1: Proportion; at5: Proportion; at10: Proportion; chance: number },
  ): ResultRow => ({
    name,
    note: 'unseen style',
    shares: { 'R@1': recall.at1, 'R@5': recall.at5, 'R@10': recall.at10 },
    chance: recall.chance,
  });
  return [
    {
      title: 'Zero-shot classification',
      text: 'Which of all names fits a drawing? Mean over the languages, 95 % interval over the drawings. The pixel baseline knows the labels of the training styles and compares 32 × 32 pixels.',
      rows: styles,
    },
    {
      title: 'Retrieval',
      text: 'Finding the drawing of a name among all, and the name of a drawing; recall with 95 % intervals.',
      rows: measured.retrieval.flatMap(({ locale, textToImage, imageToText }) => [
        direction(`${locale}: text → image`, textToImage),
        direction(`${locale}: image → text`, imageToText),
      ]),
    },
  ];
}

// The gallery and the confusion matrix, both of the unseen style.
async function viewsOf(
  data: EmojiData,
  embedder: Embedder,
  model: Siglip2,
): Promise<{ gallery: GalleryItem[]; confusion: Confusion }> {
  const { preset, emoji } = data;
  const count = emoji.train.length;
  const { pixels } = await data.images(preset.testStyle, 'train');
  const images = await embedder.images(pixels, preset.size);
  const best = new Map<
    string,
    { rows: Int32Array; texts: readonly string[]; chosen: Int32Array; logits: Float64Array }
  >();
  for (const locale of preset.locales.slice(0, summaryLanguages)) {
    const { rows, texts } = data.names(locale, 'train');
    const chosen = new Int32Array(count);
    const logits = new Float64Array(count);
    forEachScores(images, await embedder.texts(texts), (image, scores) => {
      const top = scores.reduce((a, score, i) => (score > scores[a] ? i : a), 0);
      chosen[image] = top;
      logits[image] = model.logitScale * scores[top] + model.logitBias;
    });
    best.set(locale, { rows, texts, chosen, logits });
  }
  const thumbnail = (row: number): Promise<string> => dataUrl(pixels, row, preset.size);
  const step = Math.max(1, Math.floor(count / gallerySize));
  const shown = Array.from({ length: Math.min(gallerySize, count) }, (_, i) => i * step);
  const gallery = await Promise.all(
    shown.map(async (row) => ({
      image: await thumbnail(row),
      name: emoji.train[row].name,
      captions: [...best].map(([language, { rows, texts, chosen, logits }]) => ({
        language,
        text: texts[chosen[row]],
        probability: 1 / (1 + Math.exp(-logits[row])),
        right: rows[chosen[row]] === row,
      })),
    })),
  );
  return { gallery, confusion: await confusionOf(data, best, thumbnail) };
}

// The classes with the most mistakes among each other: those of the commonest subgroup pairs.
async function confusionOf(
  data: EmojiData,
  best: ReadonlyMap<string, { rows: Int32Array; chosen: Int32Array }>,
  thumbnail: (row: number) => Promise<string>,
): Promise<Confusion> {
  const { train } = data.emoji;
  const predicted = (row: number): number[] =>
    [...best.values()].map(({ rows, chosen }) => rows[chosen[row]]);
  const taken = new Map<number, number>();
  train.forEach((_, row) => {
    for (const guess of predicted(row)) {
      if (guess !== row) taken.set(guess, (taken.get(guess) ?? 0) + 1);
    }
  });
  const magnets = [...taken].sort(([, a], [, b]) => b - a).map(([row]) => row);
  const classes: number[] = [];
  for (const magnet of magnets) {
    const victims = train.flatMap((_, row) =>
      row !== magnet && predicted(row).includes(magnet) ? [row] : [],
    );
    for (const row of [magnet, ...victims.slice(0, 2)]) {
      if (classes.length < confusedClasses && !classes.includes(row)) classes.push(row);
    }
    if (classes.length >= confusedClasses) break;
  }
  const counts = classes.map((row) => {
    const guesses = predicted(row);
    return classes.map((column) => guesses.filter((guess) => guess === column).length);
  });
  return {
    labels: classes.map((row) => train[row].name),
    images: await Promise.all(classes.map(thumbnail)),
    counts,
  };
}

async function dataUrl(pixels: Uint8Array, row: number, size: number): Promise<string> {
  const bytes = 3 * size * size;
  const png = await sharp(pixels.subarray(row * bytes, (row + 1) * bytes), {
    raw: { width: size, height: size, channels: 3 },
  })
    .png()
    .toBuffer();
  return `data:image/png;base64,${png.toString('base64')}`;
}

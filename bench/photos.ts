// The complete recipe on photographs with human captions and masks of their objects: a run of every stage
// and loss on data of one's own, with regions that say something.
//
//   npm run experiment:photos -- <photos> [--masks <folder>] [--steps 400] [--output runs/photos]
//
// <photos>: a folder with photos.jsonl and the photographs (see lib/data/photo_corpus.ts). The sizes are those
// of a laptop; so few photographs show that it runs, not how good it gets.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Command } from 'commander';
import { trainOnCorpus } from '../lib/cli/corpus_training';
import { gemmaTokenizer } from '../lib/cli/emoji_training';
import { integer } from '../lib/cli/integer';
import { writePhotoCorpus } from '../lib/data';
import { defaultCaptionFormat, variant } from '../lib/model';
import { TokenizerSubset, saveTokenizer } from '../lib/text';
import { defaultOptimizer, smallRecipe } from '../lib/train';

const batch = 32;

async function captionsOf(corpus: string): Promise<string[]> {
  const lines = (await readFile(corpus, 'utf8')).split('\n').filter((line) => line !== '');
  return lines.flatMap((line) => {
    const { text, regions } = JSON.parse(line) as {
      text: string | string[];
      regions?: { text: string }[];
    };
    const own = (regions ?? []).map((region) => region.text);
    return [...(Array.isArray(text) ? text : [text]), ...own];
  });
}

async function main(): Promise<void> {
  const command = new Command('experiment:photos')
    .argument('<photos>')
    .option('--masks <folder>')
    .option('--steps <n>', 'of the whole schedule', '400')
    .option('-o, --output <folder>', 'run folder', 'runs/photos')
    .parse();
  const [photos] = command.args;
  const flags = command.opts<{ masks?: string; steps: string; output: string }>();
  const totalSteps = integer('steps', flags.steps, 20);
  await mkdir(flags.output, { recursive: true });
  const corpusFile = join(flags.output, 'photos.jsonl');
  const corpus = await writePhotoCorpus({ photos, masks: flags.masks, output: corpusFile });
  const captions = await captionsOf(corpusFile);
  const texts = [
    ...captions,
    ...captions.map((caption) => ` ${caption}`),
    ...Object.values(defaultCaptionFormat.prefixes),
    ' :',
    ' 0 1 2 3 4 5 6 7 8 9',
  ];
  const { tokenizer } = TokenizerSubset.from(await gemmaTokenizer(), texts);
  const tokenizerFolder = join(flags.output, 'tokenizer');
  await mkdir(tokenizerFolder, { recursive: true });
  await saveTokenizer(tokenizerFolder, tokenizer);
  const data = join(flags.output, 'mixture.json');
  const mixture = {
    corpora: { photos: corpus },
    streams: [{ name: 'photos', weight: 1, corpus: 'photos' }],
  };
  await writeFile(data, JSON.stringify(mixture));
  const base = variant('mu/8', { imageSize: 64, vocabulary: tokenizer.vocabulary, length: 24 });
  const size = { width: 128, depth: 2, mlpWidth: 256, heads: 4 };
  const recipe = smallRecipe({
    name: 'photographs',
    model: {
      ...base,
      vision: { ...base.vision, ...size },
      text: { ...base.text, ...size, depth: 1 },
      embedding: size.width,
    },
    batch,
    totalSteps,
    warmupSteps: Math.floor(totalSteps / 20),
    optimizer: {
      ...defaultOptimizer,
      learningRateFactors: { logitScale: 5, logitBias: 5, 'text.tokens': 25 },
    },
    initialLogits: { logitBias: -Math.log(batch) },
    seed: 0,
    decoder: { depth: 1, length: 40 },
    selfDistillation: { hidden: 256, bottleneck: 64, prototypes: 1024, patchPrototypes: 512 },
    resolutions: [{ imageSize: 96 }],
    naflexLengths: [16, 36, 64, 100, 144],
    sizeFactor: 0.25,
    curation: { reference: 'C', filterRatio: 0.5 },
  });
  const file = join(flags.output, 'photographs.json');
  await writeFile(file, JSON.stringify(recipe, undefined, 2));
  const { folders } = await trainOnCorpus({
    data,
    recipe: file,
    model: '',
    tokenizer: tokenizerFolder,
    fields: {},
    folder: flags.output,
    workers: 0,
    checkpointEvery: 0,
    device: 'cpu',
    precision: 'float32',
    checkpointActivations: false,
  });
  for (const folder of folders) process.stdout.write(`${folder}\n`);
}

void main();

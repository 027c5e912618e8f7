// `siglip2 regions`: region-caption pairs by the recipe of OWLv2, around a detector of one's own.
import { Command, Option } from 'commander';
import { readFile } from 'node:fs/promises';
import type { PairCorpus, RegionSummary } from '../data';
import { joinRegions, readMixture, writeRegionQueries } from '../data';
import { SiglipError } from '../errors';
import { unreadable } from '../weights/file_errors';
import { integer } from './integer';

interface QueryOptions {
  readonly output: string;
  readonly labels: readonly string[];
  readonly longest: string;
  readonly most: string;
  readonly punctuation: 'keep' | 'strip';
}

interface JoinOptions {
  readonly output: string;
  readonly minScore: string;
  readonly minImageScore: string;
  readonly labelFactor: string;
  readonly onlyWithRegions?: boolean;
}

const CORPUS_HELP =
  'a mixture (.json), or .jsonl, .tar or .parquet files with fields as by default';

/** The command. */
export function regionsCommand(): Command {
  const command = new Command('regions').description(
    'region-caption pairs: what to ask a detector, and a corpus with what it found',
  );
  command
    .command('queries')
    .description('write the n-grams of every alt-text, for a detector to look for')
    .argument('<corpus>', CORPUS_HELP)
    .requiredOption('-o, --output <file>', 'JSON lines: {image, queries}')
    .option(
      '--labels <file...>',
      'names of a label space, a line each; go to <output>.labels.txt',
      [],
    )
    .option('--longest <n>', 'words of the longest n-gram', '10')
    .option('--most <n>', 'most queries of an image', '300')
    .addOption(
      new Option('--punctuation <what>', 'what becomes of punctuation around words')
        .choices(['keep', 'strip'])
        .default('keep'),
    )
    .action(queries);
  command
    .command('join')
    .description('write a corpus with the regions that a detector found')
    .argument('<corpus>', CORPUS_HELP)
    .argument('<detections>', 'JSON lines: {image, query, boxes, scores, space}')
    .requiredOption('-o, --output <file>', 'JSON lines: {id, image, text, regions}')
    .option('--min-score <x>', 'least score of a box', '0.1')
    .option('--min-image-score <x>', 'score that a box must be above for its image to count', '0.3')
    .option('--label-factor <x>', 'factor of scores of the label space', '0.3')
    .option('--only-with-regions', 'leave out images without regions')
    .action(join);
  return command;
}

async function queries(corpus: string, options: QueryOptions): Promise<void> {
  const labels: string[] = [];
  for (const file of options.labels) {
    const content = await readFile(file, 'utf8').catch((error: unknown) => {
      throw unreadable(file, error);
    });
    labels.push(...content.split(/\r?\n/u));
  }
  const summary = await writeRegionQueries({
    corpora: await corporaOf(corpus),
    output: options.output,
    ...(options.labels.length === 0 ? {} : { labels }),
    longest: integer('longest', options.longest, 1),
    most: integer('most', options.most, 1),
    punctuation: options.punctuation,
  });
  report(summary, 'queries', options.output);
}

async function join(corpus: string, detections: string, options: JoinOptions): Promise<void> {
  const summary = await joinRegions({
    corpora: await corporaOf(corpus),
    detections,
    output: options.output,
    minScore: share('min-score', options.minScore),
    minImageScore: share('min-image-score', options.minImageScore),
    labelFactor: share('label-factor', options.labelFactor),
    onlyWithRegions: options.onlyWithRegions === true,
  });
  report(summary, 'regions', options.output);
}

async function corporaOf(corpus: string): Promise<readonly PairCorpus[]> {
  if (!corpus.endsWith('.json')) return [{ inputs: [corpus] }];
  return Object.values((await readMixture(corpus)).corpora);
}

function share(flag: string, text: string): number {
  const value = Number(text);
  if (text !== '' && value >= 0 && value <= 1) return value;
  throw new SiglipError('ERR_ARGUMENT', `--${flag} must be a number from 0 to 1, got ${text}`);
}

function report({ rows, failures, items }: RegionSummary, what: string, output: string): void {
  const failed = failures === 0 ? '' : `; ${String(failures)} rows are no pairs and left out`;
  process.stderr.write(
    `siglip2: ${String(items)} ${what} of ${String(rows)} rows in ${output}${failed}\n`,
  );
}

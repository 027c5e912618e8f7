// The two steps around a detector: what it is asked, and a corpus with what it found. Both write JSON
// lines that appear when they are complete.
import { basename, dirname, isAbsolute, relative, resolve } from 'node:path';
import type { FileHandle } from 'node:fs/promises';
import { stat } from 'node:fs/promises';
import type { ImageReference } from '../corpus';
import { damaged } from '../corpus/failures';
import { openFileStream } from '../corpus/file_stream';
import { linesOf, MAX_LINE_BYTES } from '../corpus/json_lines';
import { SiglipError } from '../errors';
import type { StagedFiles } from '../weights';
import { publishTogether } from '../weights';
import { unreadable } from '../weights/file_errors';
import { parseJson } from '../weights/json_file';
import type { PairCorpus } from './mixture';
import { openPairCorpus } from './pair_corpus';
import type { PairRow } from './pair_row';
import { pairOf } from './pair_row';
import type { RegionFilter } from './region_detections';
import { RegionDetections } from './region_detections';
import type { RegionQueryOptions } from './region_queries';
import { labelSpace, regionQueries } from './region_queries';

/** What a step came to. */
export interface RegionSummary {
  /** Rows written. */
  readonly rows: number;
  /** Rows of the corpora that are no pairs. */
  readonly failures: number;
  /** Queries, or regions, of all rows. */
  readonly items: number;
}

export interface WriteRegionQueriesOptions extends RegionQueryOptions {
  readonly corpora: readonly PairCorpus[];
  /** A line per row: `{ image, queries }`, `image` being the id of the row. */
  readonly output: string;
  /** Names of a fixed space of labels, which are the same for every image. */
  readonly labels?: readonly string[] | undefined;
}

/**
 * Writes what a detector is to be asked about each image. The label space goes to
 * `<output>.labels.txt`, a name per line.
 *
 * @throws ERR_ARGUMENT, ERR_CONFIG, ERR_FILE, ERR_DATA
 */
export async function writeRegionQueries(
  options: WriteRegionQueriesOptions,
): Promise<RegionSummary> {
  const { corpora, output, labels } = options;
  return writing(output, async (files, name) => {
    if (labels !== undefined) {
      const lines = labelSpace(labels).map((label) => `${label}\n`);
      await files.write(`${name}.labels.txt`, (file) => file.writeFile(lines.join('')));
    }
    return lineFile(files, name, corpora, ({ id, texts }) => {
      const queries = [...new Set(texts.flatMap((text) => regionQueries(text, options)))];
      const most = queries.slice(0, options.most ?? 300);
      return { line: { image: id, queries: most }, items: most.length };
    });
  });
}

export interface JoinRegionsOptions extends RegionFilter {
  readonly corpora: readonly PairCorpus[];
  /** JSON lines of a detector: `{ image, query, boxes, scores, space }`; see the guide. */
  readonly detections: string;
  /** A corpus of pairs with regions, as JSON lines. */
  readonly output: string;
  /** Leave out images without regions. Default false: they train the other losses. */
  readonly onlyWithRegions?: boolean | undefined;
}

/**
 * Writes a corpus with the regions that a detector found. Paths of images start from the output's
 * folder where they are below it and are whole otherwise; images that were in a container are written
 * as base64. What the filters leave of the detections is held in memory.
 *
 * @throws ERR_ARGUMENT, ERR_CONFIG, ERR_FILE, ERR_DATA
 */
export async function joinRegions(options: JoinRegionsOptions): Promise<RegionSummary> {
  const { corpora, output, onlyWithRegions = false } = options;
  const detections = await readDetections(options.detections, options);
  const folder = dirname(resolve(output));
  return writing(output, (files, name) =>
    lineFile(files, name, corpora, (pair) => {
      const regions = detections.regions(pair.id);
      if (onlyWithRegions && regions.length === 0) return undefined;
      const { id, texts, language, attributes } = pair;
      const image = storedImage(pair.image, folder);
      const text = texts.length === 1 ? texts[0] : texts;
      return { line: { id, image, text, regions, language, attributes }, items: regions.length };
    }),
  );
}

async function readDetections(path: string, filter: RegionFilter): Promise<RegionDetections> {
  const detections = new RegionDetections(filter);
  const { size } = await stat(path).catch((error: unknown) => {
    throw unreadable(path, error);
  });
  const { stream } = openFileStream(path, size);
  let number = 0;
  try {
    for await (const { text } of linesOf(stream, MAX_LINE_BYTES)) {
      const who = `${path}, line ${String(++number)}`;
      if (text === undefined) {
        throw new SiglipError(
          'ERR_DATA',
          `${who}: line must have at most ${String(MAX_LINE_BYTES)} bytes, got more`,
        );
      }
      const content = text.toString('utf8');
      if (content.trim() !== '') detections.add(parseJson(who, content, 'ERR_DATA'), who);
    }
  } catch (error) {
    throw damaged(path, 'whole JSON lines', error);
  } finally {
    stream.destroy();
  }
  return detections;
}

function storedImage(image: ImageReference, folder: string): string | { readonly bytes: string } {
  if ('bytes' in image) return { bytes: Buffer.from(image.bytes).toString('base64') };
  const path = relative(folder, image.path);
  return path.startsWith('..') || isAbsolute(path) ? resolve(image.path) : path;
}

async function writing(
  output: string,
  write: (files: StagedFiles, name: string) => Promise<RegionSummary>,
): Promise<RegionSummary> {
  let summary: RegionSummary = { rows: 0, failures: 0, items: 0 };
  await publishTogether(dirname(output), async (files) => {
    summary = await write(files, basename(output));
    return [];
  });
  return summary;
}

/** Characters that are gathered before they are written. */
const CHUNK = 1 << 16;

// Parquet has whole numbers of 64 bits.
function withoutBigInts(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? Number(value) : value;
}

async function lineFile(
  files: StagedFiles,
  name: string,
  corpora: readonly PairCorpus[],
  lineOf: (pair: PairRow) => { readonly line: object; readonly items: number } | undefined,
): Promise<RegionSummary> {
  let [rows, failures, items] = [0, 0, 0];
  let text = '';
  const flush = async (file: FileHandle): Promise<void> => {
    await file.writeFile(text);
    text = '';
  };
  await files.write(name, async (file) => {
    for (const corpus of corpora) {
      for (const source of await openPairCorpus(corpus.inputs.join(', '), corpus)) {
        for await (const row of source.rows(() => true)) {
          const pair = pairOf(row, corpus);
          if ('reason' in pair) {
            failures++;
            continue;
          }
          const found = lineOf(pair);
          if (found === undefined) continue;
          rows++;
          items += found.items;
          text += `${JSON.stringify(found.line, withoutBigInts)}\n`;
          if (text.length > CHUNK) await flush(file);
        }
      }
    }
    await flush(file);
  });
  return { rows, failures, items };
}

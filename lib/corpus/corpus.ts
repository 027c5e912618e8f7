// The inputs of a run as sources: what each argument is, by what it names.
import { readFile, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { SiglipError } from '../errors';
import { unreadable } from '../weights/file_errors';
import { fileFingerprint } from './fingerprint';
import type { FileChoice } from './image_files';
import { imageFiles } from './image_files';
import { jsonLinesSource } from './json_lines';
import type { ListedImage } from './list_source';
import { imageListSource, textListSource } from './list_source';
import { openParquetSource } from './parquet_source';
import { expandPattern } from './pattern';
import type { FieldNames } from './record';
import type { Source, What } from './row';
import { webDatasetSource } from './web_dataset';

/** How inputs are read. */
export interface CorpusOptions extends FileChoice {
  /**
   * Paths or patterns: folders of images, image files, `.jsonl`/`.ndjson` (also `.gz`), `.tar`
   * (also `.tar.gz`, `.tgz`), `.parquet`. Anything else is taken for an image.
   */
  readonly inputs?: readonly string[];
  /** Files that list image paths, one a line, relative to the list. */
  readonly lists?: readonly string[];
  /** Texts, after everything else. */
  readonly texts?: readonly string[];
  /** What is embedded of records that may hold both. Default `'image'`. */
  readonly what?: What;
  readonly fields?: FieldNames;
  /**
   * Names of further fields (columns; members of a tar file or fields of its `.json` member) that rows
   * carry along where they have them.
   */
  readonly keep?: readonly string[];
  /** Folder that image paths in records start from. Default: that of the file. */
  readonly imageRoot?: string;
  /** How a plain string in an image field is read. Default `'path'`. */
  readonly imageStrings?: 'path' | 'base64';
}

/**
 * Opens the inputs as sources, in the order given. Neighbouring image files and folders are one
 * source; files of records are one each.
 *
 * @throws SiglipError ERR_ARGUMENT for nothing to embed or texts of images; ERR_FILE, ERR_DATA for an
 * input that cannot be read
 */
export async function openCorpus(options: CorpusOptions): Promise<Source[]> {
  const { inputs = [], lists = [], texts = [], what = 'image' } = options;
  if (inputs.length + lists.length + texts.length === 0) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      'corpus: give image files, folders, files of records or --text, got nothing',
    );
  }
  const sources: Source[] = [];
  let images: ListedImage[] = [];
  let names: string[] = [];
  const closeImages = (): void => {
    if (names.length === 0) return;
    const more = names.length > 1 ? ` and ${String(names.length - 1)} more` : '';
    sources.push(imageListSource(`${names[0]}${more}`, images));
    images = [];
    names = [];
  };
  for (const path of (await Promise.all(inputs.map(expandPattern))).flat()) {
    const record = await recordSource(path, options);
    if (record === undefined) {
      names.push(path);
      for (const image of await withSizes(await imageFiles(path, options))) images.push(image);
    } else {
      closeImages();
      sources.push(record);
    }
  }
  for (const list of lists) {
    names.push(list);
    for (const image of await listedImages(list)) images.push(image);
  }
  closeImages();
  if (texts.length > 0) sources.push(textListSource('texts', texts));
  const single = sources.find((source) => source.what !== what);
  if (what === 'both' && single !== undefined) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `corpus: both image and text must come from files of records, got ${single.name} of ${single.what}s alone`,
    );
  }
  return sources;
}

async function recordSource(path: string, options: CorpusOptions): Promise<Source | undefined> {
  const kind = /\.(jsonl|ndjson|jsonl\.gz|ndjson\.gz|tar|tar\.gz|tgz|parquet)$/iu.exec(path);
  const isFolder = await stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
  if (kind === null || isFolder) return undefined;
  const { what = 'image', fields = {}, keep } = options;
  const images = {
    root: options.imageRoot ?? dirname(resolve(path)),
    strings: options.imageStrings ?? 'path',
  } as const;
  const file = await fileFingerprint(path);
  const common = { source: path, path, ...file, what, fields, keep };
  const extension = kind[1].toLowerCase();
  if (extension === 'parquet') return openParquetSource({ ...common, images });
  if (/^(jsonl|ndjson)/u.test(extension)) return jsonLinesSource({ ...common, images });
  return webDatasetSource(common);
}

async function listedImages(list: string): Promise<ListedImage[]> {
  const content = await readFile(list, 'utf8').catch((error: unknown) => {
    throw unreadable(list, error);
  });
  const lines = content.split(/\r?\n/u).filter((line) => line.trim() !== '');
  const folder = dirname(list);
  return withSizes(lines.map((line) => (resolve(line) === line ? line : join(folder, line))));
}

const STATS_AT_ONCE = 64;

/** A file that is gone has no size; it fails when its turn comes. */
async function withSizes(paths: readonly string[]): Promise<ListedImage[]> {
  const images: ListedImage[] = [];
  for (let from = 0; from < paths.length; from += STATS_AT_ONCE) {
    const chunk = paths.slice(from, from + STATS_AT_ONCE);
    const sizes = await Promise.all(
      chunk.map((path) =>
        stat(path).then(
          ({ size }) => size,
          () => 0,
        ),
      ),
    );
    chunk.forEach((path, i) => images.push({ path, bytes: sizes[i] }));
  }
  return images;
}

// Photographs with captions and masks of their objects (the layout of small excerpts of COCO) as a
// corpus of pairs. The photographs stay where they are.
import { readFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import sharp from 'sharp';
import { z } from 'zod';
import { publishTogether } from '../weights';
import { unreadable } from '../weights/file_errors';
import { checked, parseJson } from '../weights/json_file';
import type { PairCorpus } from './mixture';
import type { Region } from './pair_row';

export interface PhotoCorpusOptions {
  /** Folder with `photos.jsonl` (`id`, `file`, `tier`, `captions`) and the photographs. */
  readonly photos: string;
  /** Folder with `segmentation.jsonl` (`id`, `mask`), `classes.json` and the masks. */
  readonly masks?: string | undefined;
  /** The JSON lines file that is written. */
  readonly output: string;
  /** Photographs of these tiers alone, such as `open`. Default all. */
  readonly tiers?: readonly string[] | undefined;
  /** Least share of the image that a part must cover to be a region. Default 0.005. */
  readonly minArea?: number | undefined;
}

const PHOTO = z.looseObject({
  id: z.number('a number'),
  file: z.string('a path'),
  tier: z.string('a tier'),
  captions: z.array(z.string('a caption'), 'a list of captions').min(1, 'one caption or more'),
});
const MASK = z.looseObject({ id: z.number('a number'), mask: z.string('a path') });
const CLASSES = z.array(z.looseObject({ label: z.int('a number'), name: z.string('a name') }));

/** Label of pixels that are background, and of those that no class is known of. */
const NO_CLASS: readonly number[] = [0, 255];

/**
 * Writes photographs as JSON lines: a photograph with all of its captions, of which training draws one
 * at each visit, and a region for every connected part of an object mask, named by its class.
 *
 * @returns the corpus, for a mixture
 * @throws ERR_FILE, ERR_DATA
 */
export async function writePhotoCorpus(options: PhotoCorpusOptions): Promise<PairCorpus> {
  const { photos, masks, output, tiers, minArea = 0.005 } = options;
  const list = await readLines(join(photos, 'photos.jsonl'), PHOTO);
  const maskOf = new Map<number, string>();
  let names = new Map<number, string>();
  if (masks !== undefined) {
    for (const { id, mask } of await readLines(join(masks, 'segmentation.jsonl'), MASK)) {
      maskOf.set(id, join(masks, mask));
    }
    const path = join(masks, 'classes.json');
    const classes = checked(
      CLASSES,
      parseJson(path, await text(path), 'ERR_DATA'),
      path,
      'ERR_DATA',
    );
    names = new Map(classes.map(({ label, name }) => [label, name]));
  }
  const lines: string[] = [];
  for (const { id, file, tier, captions } of list) {
    if (tiers?.includes(tier) === false) continue;
    const mask = maskOf.get(id);
    const regions = mask === undefined ? [] : await maskRegions(mask, names, minArea);
    const row = { id: String(id), image: file, text: captions, language: 'en', regions };
    lines.push(`${JSON.stringify(row)}\n`);
  }
  await publishTogether(dirname(output), async (files) => {
    await files.write(basename(output), (file) => file.writeFile(lines.join('')));
    return [];
  });
  return { inputs: [output], imageRoot: photos };
}

async function maskRegions(
  path: string,
  names: ReadonlyMap<number, string>,
  minArea: number,
): Promise<Region[]> {
  const { data, info } = await sharp(path)
    .toColourspace('b-w')
    .raw()
    .toBuffer({ resolveWithObject: true })
    .catch((error: unknown) => {
      throw unreadable(path, error);
    });
  const { width, height, channels } = info;
  const labels = Uint8Array.from({ length: width * height }, (_, i) => data[i * channels]);
  return labelledRegions(labels, width, height, minArea).flatMap(({ box, label }) => {
    const name = names.get(label);
    return name === undefined ? [] : [{ box, text: name }];
  });
}

/** Pixels of one label beside each other, and the part of the image that they belong to. */
interface Run {
  readonly label: number;
  readonly from: number;
  readonly to: number;
  part: Part;
}

interface Part {
  readonly label: number;
  area: number;
  top: number;
  left: number;
  bottom: number;
  right: number;
  /** The part that has taken this one in. */
  into: Part | undefined;
}

/**
 * Boxes of the connected parts (of eight neighbours) of a label image.
 *
 * @param labels - (height, width)
 * @param minArea - share of the image that a part must cover
 */
export function labelledRegions(
  labels: Uint8Array,
  width: number,
  height: number,
  minArea: number,
): { readonly label: number; readonly box: Region['box'] }[] {
  const parts: Part[] = [];
  let above: Run[] = [];
  for (let row = 0; row < height; row++) {
    const runs = runsOf(labels.subarray(row * width, (row + 1) * width), row);
    for (const run of runs) {
      parts.push(run.part);
      for (const other of above) {
        if (other.label === run.label && other.from <= run.to && run.from <= other.to) {
          merge(wholeOf(other.part), wholeOf(run.part));
        }
      }
    }
    above = runs;
  }
  return parts
    .filter(({ into, area }) => into === undefined && area >= minArea * labels.length)
    .map(({ label, top, left, bottom, right }) => ({
      label,
      box: [top / height, left / width, bottom / height, right / width],
    }));
}

/** Runs of a row, each a part for now. */
function runsOf(line: Uint8Array, row: number): Run[] {
  const runs: Run[] = [];
  for (let from = 0, to = 0; from < line.length; from = to) {
    const label = line[from];
    while (to < line.length && line[to] === label) to++;
    if (NO_CLASS.includes(label)) continue;
    const extent = { top: row, left: from, bottom: row + 1, right: to };
    runs.push({ label, from, to, part: { label, area: to - from, ...extent, into: undefined } });
  }
  return runs;
}

function wholeOf(part: Part): Part {
  let whole = part;
  while (whole.into !== undefined) whole = whole.into;
  return whole;
}

function merge(whole: Part, part: Part): void {
  if (whole === part) return;
  part.into = whole;
  whole.area += part.area;
  whole.top = Math.min(whole.top, part.top);
  whole.left = Math.min(whole.left, part.left);
  whole.bottom = Math.max(whole.bottom, part.bottom);
  whole.right = Math.max(whole.right, part.right);
}

async function readLines<T extends z.ZodType>(path: string, schema: T): Promise<z.output<T>[]> {
  const lines = (await text(path)).split('\n').filter((line) => line.trim() !== '');
  return lines.map((line, i) => {
    const who = `${path}, line ${String(i + 1)}`;
    return checked(schema, parseJson(who, line, 'ERR_DATA'), who, 'ERR_DATA');
  });
}

async function text(path: string): Promise<string> {
  return readFile(path, 'utf8').catch((error: unknown) => {
    throw unreadable(path, error);
  });
}

// A row of a corpus as a training pair: what its fields must hold.
import type { ImageReference, Row, RowFailure } from '../corpus';
import { textOf } from '../corpus/record';
import { unfit } from '../corpus/failures';
import type { PairCorpus } from './mixture';

/** Ymin, xmin, ymax, xmax as shares of height and width: 0 ≤ min < max ≤ 1. */
export type Box = readonly [ymin: number, xmin: number, ymax: number, xmax: number];

/** A part of an image and what it shows. */
export interface Region {
  readonly box: Box;
  readonly text: string;
}

/** A pair before its image is decoded. */
export interface PairRow {
  readonly id: string;
  readonly image: ImageReference;
  /** One or more, each a text of the whole image. */
  readonly texts: readonly string[];
  /** Boxes count in what the corpus says. */
  readonly regions: readonly Region[];
  readonly language: string | undefined;
  readonly attributes: unknown;
}

// Tar files call their texts .txt, records text.
export function textNames(text: string | undefined): readonly string[] {
  return text === undefined ? ['text', 'txt'] : [text];
}

/** The pair of a row, or why it is none. */
export function pairOf(row: Row, corpus: PairCorpus): PairRow | RowFailure {
  if (row.failure !== undefined) return row.failure;
  const { fields: names = {} } = corpus;
  const { id, image, fields = {} } = row;
  if (image === undefined) return unfit('row must have an image');
  const value = textNames(names.text).map((name) => fields[name]);
  const held = value.find((each) => each !== undefined);
  const texts = textsOf(held);
  if (texts === undefined) {
    const field = JSON.stringify(names.text ?? 'text');
    const got = held === undefined ? 'nothing' : typeof held;
    return unfit(`field ${field} must hold a text or a list of texts, got ${got}`);
  }
  const full = corpus.emptyTexts === 'drop' ? texts.filter((text) => text.trim() !== '') : texts;
  if (full.length === 0) return unfit('text must not be empty, got nothing');
  const regions = regionsOf(fields[names.regions ?? 'regions']);
  if (!Array.isArray(regions)) return regions as RowFailure;
  return {
    id,
    image,
    texts: full,
    regions,
    language: textOf(fields[names.language ?? 'language']),
    attributes: fields[names.attributes ?? 'attributes'],
  };
}

function textsOf(value: unknown): readonly string[] | undefined {
  if (!Array.isArray(value)) {
    const text = textOf(value);
    return text === undefined ? undefined : [text];
  }
  const texts = value.map(textOf);
  return texts.every((text) => text !== undefined) && texts.length > 0 ? texts : undefined;
}

const EXPECTED = 'a list of { box: [ymin, xmin, ymax, xmax], text }';

// Tar members and Parquet columns hold lists as JSON.
function regionsOf(value: unknown): readonly Region[] | RowFailure {
  const text = Array.isArray(value) ? undefined : textOf(value);
  let list: unknown = value ?? [];
  if (text !== undefined) {
    try {
      list = JSON.parse(text);
    } catch {
      return unfit(`regions must be ${EXPECTED}, got no JSON`);
    }
  }
  if (!Array.isArray(list)) return unfit(`regions must be ${EXPECTED}, got ${typeof list}`);
  const regions: Region[] = [];
  for (const item of list as readonly unknown[]) {
    const region = regionOf(item);
    if (region === undefined) {
      const got = JSON.stringify(item, (_, each: unknown) =>
        typeof each === 'bigint' ? Number(each) : each,
      );
      return unfit(`regions must be ${EXPECTED}, got ${got.slice(0, 100)}`);
    }
    regions.push(region);
  }
  return regions;
}

function regionOf(item: unknown): Region | undefined {
  if (typeof item !== 'object' || item === null) return undefined;
  const { box, text } = item as { readonly box?: unknown; readonly text?: unknown };
  const caption = textOf(text);
  const corners = Array.isArray(box) || ArrayBuffer.isView(box) ? cornersOf(box) : undefined;
  return caption === undefined || corners === undefined
    ? undefined
    : { box: corners, text: caption };
}

function cornersOf(box: unknown): Box | undefined {
  const [ymin, xmin, ymax, xmax, ...rest] = Array.from(box as ArrayLike<unknown>, Number);
  const sound =
    rest.length === 0 &&
    [ymin, xmin, ymax, xmax].every(Number.isFinite) &&
    ymin < ymax &&
    xmin < xmax;
  return sound ? [ymin, xmin, ymax, xmax] : undefined;
}

/**
 * Regions with boxes in shares of the image. What reaches over its edge is cut off, and a box beyond
 * it is none.
 *
 * @param pixels - extents that boxes in pixels are divided by; none for boxes in shares
 */
export function relativeRegions(
  regions: readonly Region[],
  pixels?: { readonly width: number; readonly height: number },
): Region[] {
  const { width, height } = pixels ?? { width: 1, height: 1 };
  const share = (at: number, extent: number): number => Math.min(1, Math.max(0, at / extent));
  return regions.flatMap(({ box: [ymin, xmin, ymax, xmax], text }) => {
    const box: Box = [
      share(ymin, height),
      share(xmin, width),
      share(ymax, height),
      share(xmax, width),
    ];
    return box[0] < box[2] && box[1] < box[3] ? [{ box, text }] : [];
  });
}

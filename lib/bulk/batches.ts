// Rows to embedded rows: decoding and preparing run ahead of the model, in bounded memory, and the
// results come in order. Batches are made of consecutive sound rows of one block, so that what meets
// in a batch, and with it every bit of the result, does not depend on timing, restarts or shards.
import type { PreparedImage } from '../embed';
import type { SiglipErrorCode } from '../errors';
import { SiglipError } from '../errors';
import type { RgbImage } from '../image';
import { mapAhead } from '../corpus/ahead';
import { failureOf } from '../corpus/failures';
import type { ImageReference, Row, RowFailure, Source } from '../corpus/row';

/** What rows are embedded with. */
export interface BulkModel {
  /** Length of a vector. */
  readonly width: number;
  /** Decodes, where it is not decoded, and prepares. @throws SiglipError ERR_IMAGE, ERR_FILE for this image alone */
  prepareImage(image: ImageReference | RgbImage): Promise<PreparedImage>;
  embedImages(images: readonly PreparedImage[]): Promise<Float32Array[]>;
  embedTexts(texts: readonly string[]): Promise<Float32Array[]>;
}

export interface EmbeddedRow {
  readonly index: number;
  readonly id: string;
  /** One vector, or that of the image and that of the text. */
  readonly vectors: readonly Float32Array[];
}

export interface FailedRow extends RowFailure {
  readonly index: number;
  readonly id: string;
}

/** Some consecutive rows of a block. */
export interface Step {
  readonly block: number;
  readonly rows: readonly EmbeddedRow[];
  readonly failures: readonly FailedRow[];
  /** Rows of the source before this one are dealt with, as far as the block goes. */
  readonly next: number;
  /** No row of this block comes after these. */
  readonly last: boolean;
  /** As in {@link Row}. */
  readonly through: number | undefined;
}

export interface BatchOptions {
  /** Rows the model takes at once. */
  readonly batch: number;
  /** Rows of a block. */
  readonly blockRows: number;
  /** Images decoded at once. */
  readonly concurrency: number;
  /** Batches that may be prepared ahead. Default 3. */
  readonly batchesAhead?: number;
}

interface Prepared {
  readonly row: Row;
  readonly image?: PreparedImage;
  readonly failure?: RowFailure;
}

/** What is wrong with one row; anything else is wrong with the run. */
export const ROW_ERRORS: ReadonlySet<SiglipErrorCode> = new Set([
  'ERR_IMAGE',
  'ERR_FILE',
  'ERR_DATA',
]);

/** Embeds the wanted rows of a source. */
export async function* embedRows(
  source: Source,
  wanted: (index: number) => boolean,
  model: BulkModel,
  { batch, blockRows, concurrency, batchesAhead = 3 }: BatchOptions,
): AsyncGenerator<Step, void, undefined> {
  const prepared = mapAhead(source.rows(wanted), (row) => prepare(row, model), {
    concurrency,
    ahead: batch * batchesAhead,
  });
  let block = -1;
  let next = 0;
  let through: number | undefined;
  let pending: Prepared[] = [];
  let failures: FailedRow[] = [];
  const step = async (last: boolean): Promise<Step> => {
    const rows = await embed(pending, model);
    const result = { block, rows, failures, next, last, through };
    pending = [];
    failures = [];
    return result;
  };
  for await (const item of prepared) {
    const { row, failure } = item;
    const own = Math.floor(row.index / blockRows);
    if (own !== block) {
      if (block >= 0) yield await step(true);
      block = own;
    }
    next = row.index + 1;
    through = row.through;
    if (failure === undefined) pending.push(item);
    else failures.push({ index: row.index, id: row.id, ...failure });
    // The end of a block is told apart from a full batch by the row after it.
    if (pending.length === batch || pending.length === 0) yield await step(false);
  }
  if (block >= 0) yield await step(true);
}

async function prepare(row: Row, model: BulkModel): Promise<Prepared> {
  if (row.failure !== undefined) return { row, failure: row.failure };
  if (row.image === undefined) return { row };
  try {
    return { row, image: await model.prepareImage(row.image) };
  } catch (error) {
    if (error instanceof SiglipError && ROW_ERRORS.has(error.code)) {
      return { row, failure: failureOf(error) };
    }
    throw error;
  }
}

async function embed(items: readonly Prepared[], model: BulkModel): Promise<EmbeddedRow[]> {
  if (items.length === 0) return [];
  const images = items.flatMap(({ image }) => (image === undefined ? [] : [image]));
  const texts = items.flatMap(({ row }) => (row.text === undefined ? [] : [row.text]));
  const vectors = [
    ...(images.length === 0 ? [] : [await model.embedImages(images)]),
    ...(texts.length === 0 ? [] : [await model.embedTexts(texts)]),
  ];
  return items.map(({ row: { index, id } }, i) => ({
    index,
    id,
    vectors: vectors.map((each) => each[i]),
  }));
}

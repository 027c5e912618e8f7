// A record with named fields (a line of JSON, a row of Parquet) as a row of a source.
import { types } from 'node:util';
import { unfit } from './failures';
import type { ImageValueOptions } from './image_value';
import { imageOf } from './image_value';
import type { Row, RowFailure, What } from './row';
import { needsOf } from './row';

/** Which fields hold what. */
export interface FieldNames {
  /** Default `image`. */
  readonly image?: string | undefined;
  /** Default `text`. */
  readonly text?: string | undefined;
  /** Default `id` where there is one, else the source's name and the row's number. */
  readonly id?: string | undefined;
}

export interface RecordOptions {
  readonly source: string;
  readonly fields: FieldNames;
  /** Further fields that rows carry along. */
  readonly keep?: readonly string[] | undefined;
  readonly what: What;
  readonly images: ImageValueOptions;
}

/** The row of a record; what does not fit makes it a failed one. */
export function rowOfRecord(index: number, record: unknown, options: RecordOptions): Row {
  const { source, fields, what } = options;
  const fallback = `${source}#${String(index)}`;
  if (typeof record !== 'object' || record === null || Array.isArray(record)) {
    return { index, id: fallback, failure: unfit('row must be an object with fields') };
  }
  const field = (name: string): unknown =>
    Object.hasOwn(record, name) ? Reflect.get(record, name) : undefined;
  const named = textOf(field(fields.id ?? 'id'));
  if (named === undefined && fields.id !== undefined) {
    return { index, id: fallback, failure: missing(fields.id, 'an id', field(fields.id)) };
  }
  const id = named ?? fallback;
  const needs = needsOf(what);
  let row: Row = { index, id };
  if (needs.text) {
    const name = fields.text ?? 'text';
    const text = textOf(field(name));
    if (text === undefined) return { index, id, failure: missing(name, 'a text', field(name)) };
    row = { ...row, text };
  }
  if (needs.image) {
    const name = fields.image ?? 'image';
    const value = field(name);
    if (value === undefined || value === null) {
      return { index, id, failure: missing(name, 'an image', value) };
    }
    row = { ...row, ...imageOf(value, options.images) };
  }
  if (options.keep !== undefined) row = { ...row, fields: keptFields(options.keep, field) };
  return row;
}

/** The fields to carry along that are there. */
export function keptFields(
  keep: readonly string[],
  field: (name: string) => unknown,
): Record<string, unknown> {
  const kept: Record<string, unknown> = {};
  for (const name of keep) {
    const value = field(name);
    if (value !== undefined && value !== null) kept[name] = value;
  }
  return kept;
}

function missing(name: string, what: string, value: unknown): RowFailure {
  const got = value === undefined || value === null ? 'nothing' : typeof value;
  return unfit(`field ${JSON.stringify(name)} must hold ${what}, got ${got}`);
}

/** Strings as they are, numbers as they print, bytes as UTF-8. */
export function textOf(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  if (typeof value === 'number' || typeof value === 'bigint') return String(value);
  if (types.isUint8Array(value)) return new TextDecoder().decode(value);
  return undefined;
}

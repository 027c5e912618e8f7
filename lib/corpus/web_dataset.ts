// A WebDataset shard: a tar file whose members of one row follow each other and share the part of
// their path before the first dot of the last name (a/0001.jpg, a/0001.txt, a/0001.json).
import { extname } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream';
import { reasonOf } from '../weights/file_errors';
import { damaged, lostRest, unfit } from './failures';
import { openFileStream } from './file_stream';
import type { FieldNames } from './record';
import { keptFields, textOf } from './record';
import type { ImageReference, Row, RowFailure, Source, What } from './row';
import { needsOf } from './row';

const IMAGE_EXTENSIONS = new Set(['avif', 'gif', 'jpeg', 'jpg', 'png', 'tif', 'tiff', 'webp']);

// Larger members are no photographs; they are passed over without being held.
const MAX_MEMBER_BYTES = 256 << 20;

export interface WebDatasetOptions {
  readonly source: string;
  readonly path: string;
  readonly bytes: number;
  readonly fingerprint: string;
  readonly what: What;
  /**
   * `image`: extension of the image member, default any image's. `text`: extension of the text
   * member or, where there is none of that name, a field of the .json member; default `txt`. `id`: a
   * field of the .json member; default the key.
   */
  readonly fields: FieldNames;
  /** Further members, as texts, or fields of the .json member that rows carry along. */
  readonly keep?: readonly string[] | undefined;
  /** Largest member in bytes. Default 256 MiB. */
  readonly maxMemberBytes?: number | undefined;
}

/** A row in the making. */
interface Sample {
  readonly index: number;
  readonly key: string;
  readonly members: Map<string, Buffer>;
  failure?: RowFailure;
}

interface Entry extends AsyncIterable<Buffer> {
  readonly header: { readonly name: string; readonly size?: number; readonly type?: string | null };
  resume(): unknown;
}

/** Key and extension of a member; undefined for what is no part of a row. */
export function memberName(
  name: string,
): { readonly key: string; readonly extension: string } | undefined {
  const path = name.startsWith('./') ? name.slice(2) : name;
  const base = path.lastIndexOf('/') + 1;
  const dot = path.indexOf('.', base);
  // A name that begins with a dot (.DS_Store, ._0001.jpg) is no member of a row.
  if (dot <= base || dot === path.length - 1) return undefined;
  return { key: path.slice(0, dot), extension: path.slice(dot + 1).toLowerCase() };
}

/** A tar file as a source. */
export function webDatasetSource(options: WebDatasetOptions): Source {
  const { path, bytes, fingerprint, what } = options;
  return {
    name: options.source,
    idKey: 'id',
    what,
    bytes,
    length: undefined,
    fingerprint,
    async *rows(wanted): AsyncGenerator<Row> {
      const { extract } = await import('tar-stream');
      const { stream, through } = openFileStream(path, bytes);
      const tar = extract();
      pipeline(stream, tar, () => undefined);
      const entries = (tar as unknown as AsyncIterable<Entry>)[Symbol.asyncIterator]();
      let sample: Sample | undefined;
      let count = 0;
      const finished = (): Row[] => {
        if (sample === undefined || !wanted(sample.index)) return [];
        return [{ ...rowOfSample(sample, options), through: through() }];
      };
      try {
        for (;;) {
          let entry: Entry;
          try {
            const next = await entries.next();
            if (next.done === true) break;
            entry = next.value;
            const name = entry.header.type === 'file' ? memberName(entry.header.name) : undefined;
            if (name === undefined) {
              entry.resume();
              continue;
            }
            if (sample?.key !== name.key) {
              yield* finished();
              sample = { index: count++, key: name.key, members: new Map() };
            }
            await take(entry, name.extension, sample, wanted(sample.index), options);
          } catch (error) {
            // What came before is sound; the row that was cut and the rest of the file are not.
            const cut = lostRest(
              sample?.index ?? count++,
              sample === undefined ? options.source : `${options.source}#${sample.key}`,
              damaged(path, 'a whole tar file', error),
            );
            if (wanted(cut.index)) yield cut;
            return;
          }
        }
        yield* finished();
      } finally {
        stream.destroy();
        (tar as unknown as Readable).destroy();
      }
    },
  };
}

// Reads to the end of a member without keeping it; a cut file is noticed on the way.
async function skip(entry: Entry): Promise<void> {
  const pieces = entry[Symbol.asyncIterator]();
  while ((await pieces.next()).done !== true);
}

async function take(
  entry: Entry,
  extension: string,
  sample: Sample,
  wanted: boolean,
  options: WebDatasetOptions,
): Promise<void> {
  const limit = options.maxMemberBytes ?? MAX_MEMBER_BYTES;
  const { size = 0 } = entry.header;
  if (!wanted || !isUseful(extension, options)) {
    await skip(entry);
    return;
  }
  if (size > limit) {
    await skip(entry);
    sample.failure = unfit(
      `member .${extension} must have at most ${String(limit)} bytes, got ${String(size)}`,
    );
    return;
  }
  const pieces: Buffer[] = [];
  for await (const piece of entry) pieces.push(piece);
  if (sample.members.has(extension)) sample.failure = unfit(`member .${extension} is there twice`);
  sample.members.set(extension, Buffer.concat(pieces));
}

function isUseful(extension: string, { fields, keep, what }: WebDatasetOptions): boolean {
  const needs = needsOf(what);
  if (extension === 'json') return true;
  if (keep?.some((name) => extension === name.toLowerCase()) === true) return true;
  if (needs.image && isImage(extension, fields)) return true;
  return needs.text && extension === (fields.text ?? 'txt').toLowerCase();
}

function isImage(extension: string, fields: FieldNames): boolean {
  if (fields.image !== undefined) return extension === fields.image.toLowerCase();
  return IMAGE_EXTENSIONS.has(extname(`.${extension}`).slice(1) || extension);
}

function rowOfSample(sample: Sample, options: WebDatasetOptions): Row {
  const { index, key, members } = sample;
  const { fields, what } = options;
  const fail = (failure: RowFailure): Row => ({ index, id: key, failure });
  if (sample.failure !== undefined) return fail(sample.failure);
  let json: object = {};
  const bytes = members.get('json');
  const textName = fields.text ?? 'txt';
  const needs = needsOf(what);
  const needsJson =
    fields.id !== undefined ||
    (needs.text && !members.has(textName.toLowerCase())) ||
    options.keep?.some((name) => !members.has(name.toLowerCase())) === true;
  if (bytes !== undefined && needsJson) {
    try {
      const content: unknown = JSON.parse(bytes.toString('utf8'));
      if (typeof content === 'object' && content !== null) json = content;
    } catch (error) {
      return fail(unfit(`member .json must be JSON, got ${reasonOf(error)}`));
    }
  }
  const value = (name: string): unknown =>
    Object.hasOwn(json, name) ? Reflect.get(json, name) : undefined;
  const field = (name: string): string | undefined => textOf(value(name));
  const id = fields.id === undefined ? key : field(fields.id);
  if (id === undefined) return fail(unfit(`member .json must hold the id ${String(fields.id)}`));
  let text: string | undefined;
  if (needs.text) {
    const member = members.get(textName.toLowerCase());
    text = member === undefined ? field(textName) : member.toString('utf8').trim();
    if (text === undefined) {
      const reason = `row must have a member .${textName} or a field of that name in .json`;
      return { index, id, failure: unfit(reason) };
    }
  }
  let image: ImageReference | undefined;
  if (needs.image) {
    const name = [...members.keys()].find((extension) => isImage(extension, fields));
    const found = name === undefined ? undefined : members.get(name);
    if (found === undefined) {
      const reason = `row must have a member .${fields.image ?? 'jpg (or .png, .webp …)'}`;
      return { index, id, failure: unfit(reason) };
    }
    image = { bytes: found };
  }
  const kept = (name: string): unknown =>
    members.get(name.toLowerCase())?.toString('utf8').trim() ?? value(name);
  const further = options.keep === undefined ? {} : { fields: keptFields(options.keep, kept) };
  return { index, id, image, text, ...further };
}

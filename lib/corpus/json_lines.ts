// JSON lines: one object a line. Blank lines are no rows; a line that is no JSON is a failed one.
import { constants } from 'node:buffer';
import { reasonOf } from '../weights/file_errors';
import { damaged, lostRest, unfit } from './failures';
import { openFileStream } from './file_stream';
import type { RecordOptions } from './record';
import { rowOfRecord } from './record';
import type { Row, Source } from './row';

// A line is an image in base64 at most; what goes on for longer is no JSON lines file.
export const MAX_LINE_BYTES = Math.min(256 << 20, constants.MAX_STRING_LENGTH);

const NEWLINE = 0x0a;

export interface Line {
  /** Undefined when the line is longer than the limit. */
  readonly text: Buffer | undefined;
}

/** Splits a stream at newlines; of a line beyond the limit no more than the limit is kept. */
export async function* linesOf(stream: AsyncIterable<Buffer>, limit: number): AsyncGenerator<Line> {
  let pieces: Buffer[] = [];
  let length = 0;
  const line = (): Line => {
    const text = length > limit ? undefined : Buffer.concat(pieces);
    pieces = [];
    length = 0;
    return { text };
  };
  const take = (piece: Buffer): void => {
    length += piece.length;
    if (length <= limit) pieces.push(piece);
    else pieces = [];
  };
  for await (const chunk of stream) {
    let from = 0;
    for (let at = chunk.indexOf(NEWLINE); at >= 0; at = chunk.indexOf(NEWLINE, from)) {
      take(chunk.subarray(from, at));
      yield line();
      from = at + 1;
    }
    if (from < chunk.length) take(chunk.subarray(from));
  }
  if (length > 0) yield line();
}

function isBlank(text: Buffer): boolean {
  return text.every((byte) => byte === 0x20 || byte === 0x09 || byte === 0x0d);
}

export interface JsonLinesOptions extends RecordOptions {
  readonly path: string;
  readonly bytes: number;
  readonly fingerprint: string;
  /** Longest line in bytes. Default 256 MiB. */
  readonly maxLineBytes?: number | undefined;
}

/** A file of JSON lines as a source. */
export function jsonLinesSource(options: JsonLinesOptions): Source {
  const { path, bytes, fingerprint, what, maxLineBytes = MAX_LINE_BYTES } = options;
  return {
    name: options.source,
    idKey: 'id',
    what,
    bytes,
    length: undefined,
    fingerprint,
    async *rows(wanted): AsyncGenerator<Row> {
      const { stream, through } = openFileStream(path, bytes);
      let index = 0;
      try {
        for await (const { text } of linesOf(stream, maxLineBytes)) {
          if (text !== undefined && isBlank(text)) continue;
          const at = index++;
          if (!wanted(at)) continue;
          yield { ...rowOfLine(at, text, options, maxLineBytes), through: through() };
        }
      } catch (error) {
        const cut = damaged(path, 'whole JSON lines', error);
        const rest = lostRest(index, options.source, cut);
        if (wanted(rest.index)) yield rest;
      } finally {
        stream.destroy();
      }
    },
  };
}

function rowOfLine(
  index: number,
  text: Buffer | undefined,
  options: JsonLinesOptions,
  limit: number,
): Row {
  const id = `${options.source}#${String(index)}`;
  if (text === undefined) {
    const reason = `line must have at most ${String(limit)} bytes, got more`;
    return { index, id, failure: unfit(reason) };
  }
  let record: unknown;
  try {
    // A byte order mark belongs to the file and not to its first line.
    record = JSON.parse(text.toString('utf8').replace(/^\uFEFF/u, ''));
  } catch (error) {
    return { index, id, failure: unfit(`line must be JSON, got ${reasonOf(error)}`) };
  }
  return rowOfRecord(index, record, options);
}

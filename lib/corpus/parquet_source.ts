// A Parquet file, read a row group at a time, of the columns that are needed.
import type { AsyncBuffer, FileMetaData as Metadata } from 'hyparquet' with {
  'resolution-mode': 'import',
};
import type { FileHandle } from 'node:fs/promises';
import { open } from 'node:fs/promises';
import { SiglipError } from '../errors';
import { unreadable } from '../weights/file_errors';
import { damaged } from './failures';
import type { RecordOptions } from './record';
import { rowOfRecord } from './record';
import type { Row, Source } from './row';
import { needsOf } from './row';

export interface ParquetOptions extends RecordOptions {
  readonly path: string;
  readonly bytes: number;
  readonly fingerprint: string;
}

interface Group {
  readonly first: number;
  readonly rows: number;
}

const EXPECTED = 'a whole Parquet file';

/**
 * A Parquet file as a source.
 *
 * @throws SiglipError ERR_FILE, ERR_DATA when its end is not that of a Parquet file or a column is
 * not there
 */
export async function openParquetSource(options: ParquetOptions): Promise<Source> {
  const { path, bytes, fingerprint, what } = options;
  const { parquetMetadataAsync } = await import('hyparquet');
  const { metadata, groups } = await withFile(path, bytes, async (file) => {
    const found = await parquetMetadataAsync(file, { geoparquet: false });
    return { metadata: found, groups: groupsOf(found) };
  });
  const columns = columnsOf(metadata, options);
  return {
    name: options.source,
    idKey: 'id',
    what,
    bytes,
    length: groups.reduce((sum, { rows }) => sum + rows, 0),
    fingerprint,
    async *rows(wanted): AsyncGenerator<Row> {
      for (const { first, rows } of groups) {
        let [from, to] = [rows, 0];
        for (let i = 0; i < rows; i++) {
          if (!wanted(first + i)) continue;
          from = Math.min(from, i);
          to = i + 1;
        }
        if (from >= to) continue;
        const range = { rowStart: first + from, rowEnd: first + to };
        const records = await readRecords(options, metadata, columns, range);
        for (let index = range.rowStart; index < range.rowEnd; index++) {
          if (!wanted(index)) continue;
          if (records instanceof SiglipError) {
            const id = `${options.source}#${String(index)}`;
            yield { index, id, failure: { code: records.code, reason: records.message } };
          } else {
            yield rowOfRecord(index, records[index - range.rowStart], options);
          }
        }
      }
    },
  };
}

function groupsOf(metadata: Metadata): Group[] {
  const groups: Group[] = [];
  let first = 0;
  for (const { num_rows } of metadata.row_groups) {
    const rows = Number(num_rows);
    if (!Number.isSafeInteger(first + rows) || rows < 0) {
      throw new RangeError(`a row group of ${String(num_rows)} rows`);
    }
    groups.push({ first, rows });
    first += rows;
  }
  return groups;
}

function columnsOf(metadata: Metadata, options: ParquetOptions): string[] {
  const { fields, what } = options;
  const needs = needsOf(what);
  const present = topLevelColumns(metadata);
  const needed = [
    ...(needs.image ? [fields.image ?? 'image'] : []),
    ...(needs.text ? [fields.text ?? 'text'] : []),
    ...(fields.id === undefined ? [] : [fields.id]),
  ];
  const absent = needed.find((name) => !present.includes(name));
  if (absent !== undefined) {
    throw new SiglipError(
      'ERR_DATA',
      `${options.path}: columns must include ${absent}, got ${present.join(', ')}\n` +
        'to do: name the columns with --image-field, --text-field and --id-field.',
    );
  }
  const optional = [...(options.keep ?? []), ...(fields.id === undefined ? ['id'] : [])];
  return [...new Set([...needed, ...optional.filter((name) => present.includes(name))])];
}

// The schema is a tree in preorder under one root.
function topLevelColumns({ schema }: Metadata): string[] {
  const names: string[] = [];
  let at = 1;
  const skip = (): void => {
    const children = schema[at++]?.num_children ?? 0;
    for (let i = 0; i < children && at < schema.length; i++) skip();
  };
  while (at < schema.length) {
    names.push(schema[at].name);
    skip();
  }
  return names;
}

async function readRecords(
  { path, bytes }: ParquetOptions,
  metadata: Metadata,
  columns: string[],
  range: { readonly rowStart: number; readonly rowEnd: number },
): Promise<Record<string, unknown>[] | SiglipError> {
  const { parquetReadObjects } = await import('hyparquet');
  const { compressors } = await import('hyparquet-compressors');
  try {
    return await withFile(path, bytes, async (file) => {
      // Byte arrays without a type are images: as text they would be ruined.
      const records: Record<string, unknown>[] = await parquetReadObjects({
        file,
        metadata,
        columns,
        ...range,
        compressors,
        utf8: false,
        useOffsetIndex: true,
        geoparquet: false,
      });
      if (records.length !== range.rowEnd - range.rowStart) {
        throw new RangeError(`${String(records.length)} rows in a row group`);
      }
      return records;
    });
  } catch (error) {
    if (error instanceof SiglipError && error.code === 'ERR_DATA') return error;
    throw error;
  }
}

async function withFile<T>(
  path: string,
  bytes: number,
  use: (file: AsyncBuffer) => Promise<T>,
): Promise<T> {
  const handle = await open(path, 'r').catch((error: unknown) => {
    throw unreadable(path, error);
  });
  try {
    return await use(asyncBuffer(handle, bytes));
  } catch (error) {
    throw damaged(path, EXPECTED, error);
  } finally {
    await handle.close();
  }
}

function asyncBuffer(handle: FileHandle, byteLength: number): AsyncBuffer {
  return {
    byteLength,
    async slice(start: number, end = byteLength): Promise<ArrayBuffer> {
      // Offsets come from the file: what it says is checked before memory is asked for.
      if (!(start >= 0 && end >= start && end <= byteLength)) {
        const range = `bytes ${String(start)} to ${String(end)}`;
        throw new RangeError(`${range} of a file of ${String(byteLength)}`);
      }
      const bytes = new Uint8Array(end - start);
      let done = 0;
      while (done < bytes.length) {
        const { bytesRead } = await handle.read(bytes, done, bytes.length - done, start + done);
        if (bytesRead === 0) throw new RangeError('an end before its end');
        done += bytesRead;
      }
      return bytes.buffer;
    },
  };
}

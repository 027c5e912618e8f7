// Finished parts to the files people asked for, a part at a time.
import type { FileHandle } from 'node:fs/promises';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { SiglipError } from '../errors';
import { unwritable } from '../weights/file_errors';
import { encode } from '../weights/number_formats';
import { formatHeader } from '../weights/safetensors';
import { isOfSystem } from '../corpus/failures';
import { npyHeader } from './npy';
import { ParquetRows } from './parquet_rows';
import type { PartForm } from './part';
import { PartFile } from './part';

/** Kinds of output files. */
export const outputFormats = ['jsonl', 'npy', 'parquet', 'safetensors'] as const;

/** `jsonl`, `npy`, `parquet` or `safetensors`. */
export type OutputFormat = (typeof outputFormats)[number];

/** The format a name asks for. @throws SiglipError ERR_ARGUMENT when it asks for none */
export function outputFormat(path: string, format?: string): OutputFormat {
  const wanted = format ?? extname(path).slice(1).toLowerCase();
  const found = outputFormats.find((each) => each === wanted);
  if (found !== undefined) return found;
  // JSON lines are what this command has always written, whatever the file was called.
  if (format === undefined) return 'jsonl';
  throw new SiglipError(
    'ERR_ARGUMENT',
    `embed: format must be one of ${outputFormats.join(', ')}, got ${format}`,
  );
}

/** Where things are written, given the output's path. */
export interface OutputPaths {
  /** The vectors: one file, or one for images and one for texts. */
  readonly vectors: readonly string[];
  /** Ids of the rows, where the format has no room for them. */
  readonly ids: string | undefined;
  readonly failures: string;
  /** What was embedded by what; there when the output is complete. */
  readonly receipt: string;
}

export function outputPaths(
  path: string,
  format: OutputFormat,
  columns: readonly string[],
): OutputPaths {
  const extension = extname(path);
  const stem = join(dirname(path), basename(path, extension));
  const split = format === 'npy' && columns.length > 1;
  return {
    vectors: split ? columns.map((column) => `${stem}.${column}${extension}`) : [path],
    ids: format === 'npy' || format === 'safetensors' ? `${stem}.ids.jsonl` : undefined,
    failures: `${stem}.failures.jsonl`,
    receipt: `${path}.manifest.json`,
  };
}

/** What is assembled. */
export interface Assembly {
  /** In the order of the corpus. */
  readonly parts: readonly { readonly source: number; readonly path: string }[];
  readonly sources: readonly { readonly name: string; readonly idKey: 'image' | 'text' | 'id' }[];
  readonly form: PartForm;
  readonly format: OutputFormat;
  readonly output: string;
  /** Folder for files that are not complete yet, on the disk of the output. */
  readonly scratch: string;
  /** Written last. */
  readonly receipt: object;
}

/**
 * Writes all files of an output and gives them their names when every one is complete.
 *
 * @throws SiglipError ERR_FILE when the disk refuses; the journal is still there then
 */
export async function assemble(assembly: Assembly): Promise<{ rows: number; failures: number }> {
  const { parts, form, format, output, scratch } = assembly;
  const paths = outputPaths(output, format, form.columns);
  const rows = countRows(parts);
  const staged = new Staged(scratch);
  try {
    await mkdir(dirname(output), { recursive: true });
    const writer = await openWriter(assembly, paths, staged, rows);
    const ids = paths.ids === undefined ? undefined : new Lines(await staged.open(paths.ids));
    const failureLines = new Lines(await staged.open(paths.failures));
    let failures = 0;
    let first = 0;
    for (const { source, path } of parts) {
      using part = PartFile.open(path);
      const { name, idKey } = assembly.sources[source];
      const vectors = await Promise.all(form.columns.map((column) => part.vectors(column)));
      const labels = await part.ids();
      await writer.write({ first, labels, idKey, vectors });
      if (ids !== undefined) {
        const positions = await part.positions();
        for (const [i, id] of labels.entries()) {
          await ids.add({ id, source: name, row: positions[i] });
        }
      }
      for (const { index, id, code, reason } of await part.failures()) {
        failures++;
        await failureLines.add({ source: name, row: index, id, code, reason });
      }
      first += part.rows;
      // One part may be all synchronous work; others want the event loop, too.
      await setImmediate();
    }
    await writer.finish();
    await ids?.flush();
    await failureLines.flush();
    const receipt = new Lines(await staged.open(paths.receipt));
    await receipt.addText(`${JSON.stringify({ ...assembly.receipt, rows, failures }, null, 2)}\n`);
    await receipt.flush();
    await staged.publish(failures === 0 ? [paths.failures] : []);
    return { rows, failures };
  } catch (error) {
    await staged.discard();
    // Anything but a refusal of the system is a mistake of this program.
    throw isOfSystem(error) ? unwritable(output, error) : error;
  }
}

function countRows(parts: Assembly['parts']): number {
  let rows = 0;
  for (const { path } of parts) {
    using part = PartFile.open(path);
    rows += part.rows;
  }
  return rows;
}

// Files under temporary names in the scratch folder, renamed to their places together.
class Staged {
  private readonly files: { readonly handle: FileHandle; temporary: string; path: string }[] = [];

  constructor(private readonly scratch: string) {}

  async open(path: string): Promise<FileHandle> {
    await mkdir(this.scratch, { recursive: true });
    const temporary = join(this.scratch, `output-${String(this.files.length)}.tmp`);
    const handle = await open(temporary, 'w');
    this.files.push({ handle, temporary, path });
    return handle;
  }

  /** @param omitted - paths that are not to be there: nothing to say */
  async publish(omitted: readonly string[]): Promise<void> {
    for (const { handle } of this.files) {
      await handle.sync();
      await handle.close();
    }
    for (const { temporary, path } of this.files) {
      if (omitted.includes(path)) {
        await rm(temporary, { force: true });
        await rm(path, { force: true });
      } else {
        await rename(temporary, path);
      }
    }
    if (process.platform === 'win32') return;
    for (const folder of new Set(this.files.map(({ path }) => dirname(path)))) {
      const handle = await open(folder, 'r');
      try {
        await handle.sync();
      } finally {
        await handle.close();
      }
    }
  }

  async discard(): Promise<void> {
    for (const { handle, temporary } of this.files) {
      await handle.close().catch(() => undefined);
      await rm(temporary, { force: true });
    }
  }
}

const LINE_BUFFER = 1 << 20;

/** JSON lines, written in large pieces. */
export class Lines {
  private pieces: string[] = [];
  private length = 0;

  constructor(private readonly file: FileHandle) {}

  add(content: object): Promise<void> | undefined {
    return this.addText(`${JSON.stringify(content)}\n`);
  }

  addText(text: string): Promise<void> | undefined {
    this.pieces.push(text);
    this.length += text.length;
    return this.length < LINE_BUFFER ? undefined : this.flush();
  }

  async flush(): Promise<void> {
    const text = this.pieces.join('');
    this.pieces = [];
    this.length = 0;
    await writeAll(this.file, Buffer.from(text));
  }
}

/** Rows of one part on their way to a file. */
export interface PartRows {
  /** Place of the first of them in the output. */
  readonly first: number;
  readonly labels: readonly string[];
  readonly idKey: string;
  /** Per column (rows, E). */
  readonly vectors: readonly Float32Array[];
}

interface Writer {
  write(rows: PartRows): Promise<void>;
  finish(): Promise<void>;
}

async function openWriter(
  { form, format }: Assembly,
  paths: OutputPaths,
  staged: Staged,
  rows: number,
): Promise<Writer> {
  const files: FileHandle[] = [];
  for (const path of paths.vectors) files.push(await staged.open(path));
  switch (format) {
    case 'jsonl':
      return jsonWriter(files[0], form);
    case 'parquet':
      return ParquetRows.open(files[0], form);
    case 'npy':
      return matrixWriter(files, form, rows, async () => {
        const header = npyHeader(form.dtype, [rows, form.width]);
        for (const file of files) await writeAll(file, header);
        return form.columns.map(() => header.length);
      });
    case 'safetensors':
      return matrixWriter(
        form.columns.map(() => files[0]),
        form,
        rows,
        async () => {
          const header = safetensorsHeader(form, rows);
          await writeAll(files[0], header);
          return form.columns.map((_, c) => header.length + c * matrixBytes(form, rows));
        },
      );
  }
}

function jsonWriter(file: FileHandle, { columns, width }: PartForm): Writer {
  const lines = new Lines(file);
  const names = columns.map((column) => (columns.length > 1 ? `${column}_embedding` : column));
  return {
    async write({ labels, idKey, vectors }) {
      for (const [i, id] of labels.entries()) {
        const row: Record<string, unknown> = { [idKey]: id };
        names.forEach((name, c) => {
          row[name] = [...vectors[c].subarray(i * width, (i + 1) * width)];
        });
        await lines.add(row);
      }
    },
    finish: () => lines.flush(),
  };
}

// Matrices whose size is known before the first row: their bytes go where they belong.
async function matrixWriter(
  files: readonly FileHandle[],
  form: PartForm,
  rows: number,
  begin: () => Promise<number[]>,
): Promise<Writer> {
  const starts = await begin();
  const stored = form.dtype === 'float16' ? 'F16' : 'F32';
  const rowBytes = matrixBytes(form, 1);
  return {
    async write({ first, vectors }) {
      for (const [c, values] of vectors.entries()) {
        const bytes = encode(form.columns[c], values, stored);
        await writeAll(files[c], bytes, starts[c] + first * rowBytes);
      }
    },
    async finish() {
      for (const [c, file] of files.entries()) {
        const { size } = await file.stat();
        const expected = Math.max(...starts.filter((_, d) => files[d] === files[c]));
        if (size === expected + matrixBytes(form, rows)) continue;
        throw new SiglipError(
          'ERR_FILE',
          `embed: output must have ${String(rows)} rows, got fewer`,
        );
      }
    },
  };
}

function matrixBytes({ width, dtype }: PartForm, rows: number): number {
  return rows * width * (dtype === 'float16' ? 2 : 4);
}

function safetensorsHeader({ columns, width, dtype }: PartForm, rows: number): Buffer {
  const stored = dtype === 'float16' ? 'F16' : 'F32';
  const tensors = columns.map((column) => {
    return [column, { dtype: stored, shape: [rows, width] }] as const;
  });
  return formatHeader('embed', tensors, {});
}

/** Writes all of a buffer, at the end or at a position. */
export async function writeAll(
  file: FileHandle,
  bytes: Uint8Array,
  position?: number,
): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const at = position === undefined ? null : position + done;
    done += (await file.write(bytes, done, bytes.length - done, at)).bytesWritten;
  }
}

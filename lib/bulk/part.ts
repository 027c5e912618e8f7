// A part: the embeddings of consecutive rows of a source, and what failed among them, in one
// safetensors file that anyone can read. Tensors: `embedding`, or `image` and `text`, (k, E); `rows`
// (k) positions in the source less `first`; `ids` and `failures`, JSON in bytes.
import { types } from 'node:util';
import { z } from 'zod';
import { SiglipError } from '../errors';
import type { SafetensorsFile, StagedFiles, StoredTensor } from '../weights';
import { openSafetensors } from '../weights';
import { stageSafetensors } from '../weights/safetensors';
import type { EmbeddedRow, FailedRow, Step } from './batches';

/** Element type of stored embeddings. */
export type VectorDtype = 'float32' | 'float16';

/** Names of the vectors of a row, in order. */
export type Columns = readonly ['embedding'] | readonly ['image', 'text'];

/** What the parts of a run have in common. */
export interface PartForm {
  readonly columns: Columns;
  readonly width: number;
  readonly dtype: VectorDtype;
}

/** A part in memory, growing. */
export class PartBuilder {
  private readonly rows: EmbeddedRow[] = [];
  private readonly failures: FailedRow[] = [];
  private reached: number;

  /** @param first - position of the first row that may belong here */
  constructor(readonly first: number) {
    this.reached = first;
  }

  /** Where the next row goes on. */
  get next(): number {
    return this.reached;
  }

  /** Rows with an embedding and failures so far. */
  counts(): { readonly rows: number; readonly failures: number } {
    return { rows: this.rows.length, failures: this.failures.length };
  }

  add({ rows, failures, next }: Pick<Step, 'rows' | 'failures' | 'next'>): void {
    this.rows.push(...rows);
    this.failures.push(...failures);
    this.reached = Math.max(this.reached, next);
  }

  /** Writes the part as it stands. */
  async stage(files: StagedFiles, name: string, form: PartForm): Promise<void> {
    const { rows, first } = this;
    const dtype = form.dtype === 'float16' ? 'F16' : 'F32';
    const tensors = new Map<string, StoredTensor>();
    form.columns.forEach((column, c) => {
      const data = new Float32Array(rows.length * form.width);
      rows.forEach(({ vectors }, i) => {
        data.set(vectors[c], i * form.width);
      });
      tensors.set(column, { dtype, shape: [rows.length, form.width], data });
    });
    const positions = Int32Array.from(rows, ({ index }) => index - first);
    tensors.set('rows', { dtype: 'I32', shape: [rows.length], data: positions });
    tensors.set('ids', bytesOf(rows.map(({ id }) => id)));
    tensors.set('failures', bytesOf(this.failures));
    const metadata = { format: 'siglip2 part', first: String(first), next: String(this.next) };
    await stageSafetensors(files, name, tensors, metadata);
  }
}

function bytesOf(content: unknown): StoredTensor {
  const data = new Uint8Array(Buffer.from(JSON.stringify(content)));
  return { dtype: 'U8', shape: [data.length], data };
}

const failuresSchema = z.array(
  z.object({ index: z.number(), id: z.string(), code: z.string(), reason: z.string() }),
);

/** A part on disk. */
export class PartFile {
  private constructor(private readonly file: SafetensorsFile) {}

  /** @throws SiglipError ERR_WEIGHTS, ERR_FILE when it is no sound part */
  static open(path: string): PartFile {
    const file = openSafetensors(path);
    if (file.metadata.get('format') === 'siglip2 part' && file.tensors.has('rows')) {
      return new PartFile(file);
    }
    file.dispose();
    throw new SiglipError('ERR_WEIGHTS', `${path}: file must be a part of a run, got another`);
  }

  get first(): number {
    return Number(this.file.metadata.get('first'));
  }

  get next(): number {
    return Number(this.file.metadata.get('next'));
  }

  /** Rows with an embedding. */
  get rows(): number {
    return this.file.tensors.get('rows')?.elements ?? 0;
  }

  /** Length of a vector. */
  get width(): number {
    const tensor = this.file.tensors.get('embedding') ?? this.file.tensors.get('image');
    return tensor?.shape[1] ?? 0;
  }

  async positions(): Promise<number[]> {
    const { first } = this;
    return Array.from(await this.file.read('rows'), (offset) => first + offset);
  }

  async ids(): Promise<string[]> {
    return z.array(z.string()).parse(await this.json('ids'));
  }

  async failures(): Promise<FailedRow[]> {
    return failuresSchema.parse(await this.json('failures')) as FailedRow[];
  }

  /** (rows, E), as float32 whatever it is stored as. */
  async vectors(column: string): Promise<Float32Array> {
    const values = await this.file.read(column);
    if (types.isFloat32Array(values)) return values;
    throw new SiglipError('ERR_DTYPE', `${this.file.source}: ${column} must hold floats`);
  }

  /** The part in memory, to be continued. */
  async builder(columns: Columns): Promise<PartBuilder> {
    const builder = new PartBuilder(this.first);
    const { width } = this;
    const [positions, ids, failures] = [
      await this.positions(),
      await this.ids(),
      await this.failures(),
    ];
    const flat = await Promise.all(columns.map((column) => this.vectors(column)));
    const rows = positions.map((index, i) => ({
      index,
      id: ids[i],
      vectors: flat.map((values) => values.slice(i * width, (i + 1) * width)),
    }));
    builder.add({ rows, failures, next: this.next });
    return builder;
  }

  dispose(): void {
    this.file.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  private async json(name: string): Promise<unknown> {
    return JSON.parse(Buffer.from((await this.file.read(name)) as Uint8Array).toString('utf8'));
  }
}

// Embeddings as a Parquet file: `id` (string) and per column a list of floats, which is how Arrow
// stores lists of a fixed size, too. A row group per part.
import type { SchemaElement } from 'hyparquet' with { 'resolution-mode': 'import' };
import type { ByteWriter, ParquetWriter } from 'hyparquet-writer' with {
  'resolution-mode': 'import',
};
import type { FileHandle } from 'node:fs/promises';
import type { PartRows } from './output';
import type { PartForm } from './part';

/** Names of the columns of a form. */
export function parquetColumns({ columns }: PartForm): string[] {
  return columns.map((column) => (columns.length > 1 ? `${column}_embedding` : column));
}

function schemaOf(form: PartForm): SchemaElement[] {
  const leaf: SchemaElement =
    form.dtype === 'float16'
      ? {
          name: 'element',
          type: 'FIXED_LEN_BYTE_ARRAY',
          type_length: 2,
          logical_type: { type: 'FLOAT16' },
          repetition_type: 'REQUIRED',
        }
      : { name: 'element', type: 'FLOAT', repetition_type: 'REQUIRED' };
  const names = parquetColumns(form);
  return [
    { name: 'schema', num_children: 1 + names.length },
    {
      name: 'id',
      type: 'BYTE_ARRAY',
      converted_type: 'UTF8',
      logical_type: { type: 'STRING' },
      repetition_type: 'REQUIRED',
    },
    ...names.flatMap((name): SchemaElement[] => [
      {
        name,
        repetition_type: 'REQUIRED',
        num_children: 1,
        converted_type: 'LIST',
        logical_type: { type: 'LIST' },
      },
      { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
      leaf,
    ]),
  ];
}

/** Writes parts to a Parquet file. */
export class ParquetRows {
  private constructor(
    private readonly file: FileHandle,
    private readonly form: PartForm,
    private readonly bytes: ByteWriter,
    private readonly parquet: ParquetWriter,
  ) {}

  static async open(file: FileHandle, form: PartForm): Promise<ParquetRows> {
    const writer = await import('hyparquet-writer');
    const bytes = new writer.ByteWriter();
    const parquet = new writer.ParquetWriter({
      writer: bytes,
      schema: schemaOf(form),
      // Embeddings are noise to a compressor.
      codec: 'UNCOMPRESSED',
      statistics: false,
      createdBy: 'siglip2',
    });
    return new ParquetRows(file, form, bytes, parquet);
  }

  async write({ labels, vectors }: PartRows): Promise<void> {
    if (labels.length === 0) return;
    const { width } = this.form;
    const columnData = parquetColumns(this.form).map((name, c) => ({
      name,
      data: labels.map((_, i) => [...vectors[c].subarray(i * width, (i + 1) * width)]),
      encoding: 'PLAIN' as const,
    }));
    const ids = { name: 'id', data: [...labels], encoding: 'PLAIN' as const };
    await this.parquet.write({ columnData: [ids, ...columnData], rowGroupSize: labels.length });
    await this.flush();
  }

  async finish(): Promise<void> {
    await this.parquet.finish();
    await this.flush();
  }

  private async flush(): Promise<void> {
    const { bytes } = this;
    let done = 0;
    while (done < bytes.index) {
      const left = new Uint8Array(bytes.buffer, done, bytes.index - done);
      done += (await this.file.write(left)).bytesWritten;
    }
    // Offsets in the file go on; the buffer begins anew.
    bytes.index = 0;
  }
}

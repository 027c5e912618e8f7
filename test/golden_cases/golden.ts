// Reference numbers of the original implementations: folders with a case.json and safetensors files.
// Where they lie is told by SIGLIP2_GOLDEN; a case that is not there is skipped, and counted so.
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { NdArray } from '../reference/nd_array';
import { elements, ndArray, reshape } from '../reference/nd_array';

const FOLDER = resolve(
  process.env.SIGLIP2_GOLDEN ?? join(__dirname, '..', '..', '..', 'shared', 'golden'),
);

interface TensorEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

interface CaseDescription {
  readonly config?: unknown;
  readonly aliases?: Readonly<
    Record<string, { readonly same_values_as: string; readonly shape: readonly number[] }>
  >;
  readonly tensors?: Readonly<Record<string, { readonly suggested_atol?: number }>>;
  readonly [key: string]: unknown;
}

function decode(bytes: DataView, dtype: string, count: number): number[] {
  const readers: Record<string, [number, (offset: number) => number] | undefined> = {
    F64: [8, (offset) => bytes.getFloat64(offset, true)],
    F32: [4, (offset) => bytes.getFloat32(offset, true)],
    I64: [8, (offset) => Number(bytes.getBigInt64(offset, true))],
    I32: [4, (offset) => bytes.getInt32(offset, true)],
    U8: [1, (offset) => bytes.getUint8(offset)],
  };
  const reader = readers[dtype];
  if (reader === undefined) throw new Error(`golden: dtype must be known, got ${dtype}`);
  const [size, read] = reader;
  return Array.from({ length: count }, (_, i) => read(i * size));
}

/** Every tensor of a safetensors file, as float64. */
function readSafetensors(path: string): Map<string, NdArray> {
  const file = readFileSync(path);
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, 8 + headerBytes)) as Record<
    string,
    TensorEntry
  >;
  const tensors = new Map<string, NdArray>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const begin = file.byteOffset + 8 + headerBytes + entry.data_offsets[0];
    const bytes = new DataView(file.buffer, begin, entry.data_offsets[1] - entry.data_offsets[0]);
    tensors.set(name, ndArray(entry.shape, decode(bytes, entry.dtype, elements(entry.shape))));
  }
  return tensors;
}

/** One case, read when first asked. */
export class GoldenCase {
  private readonly files = new Map<string, Map<string, NdArray>>();
  private description: CaseDescription | undefined;

  constructor(readonly name: string) {}

  /** The folder of the case. */
  get folder(): string {
    return join(FOLDER, this.name);
  }

  get present(): boolean {
    return existsSync(join(this.folder, 'case.json'));
  }

  /** case.json. */
  get json(): CaseDescription {
    this.description ??= this.readJson('case.json') as CaseDescription;
    return this.description;
  }

  /** Another JSON file of the case. */
  readJson(file: string): unknown {
    return JSON.parse(readFileSync(join(this.folder, file), 'utf8')) as unknown;
  }

  /** All tensors of a file. */
  file(file: string): ReadonlyMap<string, NdArray> {
    let tensors = this.files.get(file);
    if (tensors === undefined) {
      tensors = readSafetensors(join(this.folder, file));
      this.files.set(file, tensors);
    }
    return tensors;
  }

  /** A tensor of the case, by its name or by an alias. */
  tensor(name: string, file = 'tensors.safetensors'): NdArray {
    const alias = this.json.aliases?.[name];
    if (alias !== undefined) return reshape(this.tensor(alias.same_values_as, file), alias.shape);
    const tensor = this.file(file).get(name);
    if (tensor === undefined) throw new Error(`golden: ${this.name} must have ${name}, got none`);
    return tensor;
  }

  /** The fair bar for a float32 implementation, given by the case. */
  atol(name: string): number {
    const source = this.json.aliases?.[name]?.same_values_as ?? name;
    const atol = this.json.tensors?.[source]?.suggested_atol;
    if (atol === undefined) {
      throw new Error(`golden: ${this.name} must suggest a tolerance for ${name}, got none`);
    }
    return atol;
  }
}

/** A group of tests of one case; one skipped test where the case is absent, which the body may not read. */
export function describeGolden(name: string, body: (golden: GoldenCase) => void): void {
  const golden = new GoldenCase(name);
  describe(name, () => {
    if (golden.present) body(golden);
    else test.skip(`needs ${golden.folder}`, () => undefined);
  });
}

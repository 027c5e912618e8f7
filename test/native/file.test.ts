import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { execFileSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { FileFormat, NativeBuffer } from '../../lib/native/addon';
import { loadAddon } from '../../lib/native/load';
import { bufferOf, bytesOf, codeOf, description, floatsOf, longSteps } from './steps';

const addon = loadAddon();
const folder = mkdtempSync(join(tmpdir(), 'siglip2-file-'));
afterAll(() => {
  rmSync(folder, { recursive: true });
});

function fileOf(name: string, bytes: Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

async function load(
  bytes: Uint8Array,
  format: FileFormat,
  elements: number,
  offset = 0,
): Promise<NativeBuffer> {
  const file = new addon.MappedFile(fileOf('numbers', bytes));
  const buffer = new addon.Buffer(4 * elements);
  file.load(offset, format, buffer, 0, elements);
  file.dispose();
  return Promise.resolve(buffer);
}

// The value of an IEEE 754 half by its definition.
function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return exponent === 0
    ? sign * fraction * 2 ** -24
    : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

describe('formats', () => {
  test('float16, every value there is', async () => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const buffer = await load(new Uint8Array(bits.buffer), 'float16', bits.length);
    const values = await floatsOf(buffer);
    const wrong = values.findIndex((value, i) => !Object.is(value, half(i)));
    expect(wrong).toBe(-1);
    buffer.dispose();
  });

  test('bfloat16, the upper half of a float32', async () => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const buffer = await load(new Uint8Array(bits.buffer), 'bfloat16', bits.length);
    const expected = new Float32Array(Uint32Array.from(bits, (x) => x * 65536).buffer);
    expect(await floatsOf(buffer)).toEqual([...expected]);
    buffer.dispose();
  });

  test.each<[FileFormat, ArrayBufferView, number[]]>([
    ['float64', Float64Array.of(1, -0.1, 1e300, NaN), [1, Math.fround(-0.1), Infinity, NaN]],
    [
      'float32',
      Float32Array.of(1, -0.1, 1e-40, NaN),
      [1, Math.fround(-0.1), Math.fround(1e-40), NaN],
    ],
  ])('%s becomes float32', async (format, data, expected) => {
    const buffer = await load(new Uint8Array(data.buffer), format, expected.length);
    expect(await floatsOf(buffer)).toEqual(expected);
    buffer.dispose();
  });

  test.each<[FileFormat, ArrayBufferView, number[]]>([
    [
      'int64',
      BigInt64Array.of(1n, -1n, -(2n ** 31n), 2n ** 31n - 1n),
      [1, -1, -(2 ** 31), 2 ** 31 - 1],
    ],
    ['int32', Int32Array.of(1, -1, 2 ** 31 - 1), [1, -1, 2 ** 31 - 1]],
    ['int16', Int16Array.of(1, -1, -32768), [1, -1, -32768]],
    ['int8', Int8Array.of(1, -1, -128), [1, -1, -128]],
  ])('%s becomes int32', async (format, data, expected) => {
    const buffer = await load(new Uint8Array(data.buffer), format, expected.length);
    const values = new Int32Array(expected.length);
    await buffer.read(0, bytesOf(values));
    expect([...values]).toEqual(expected);
    buffer.dispose();
  });

  test.each<FileFormat>(['uint8', 'bool'])('%s stays uint8', async (format) => {
    const buffer = await load(Uint8Array.of(0, 1, 255), format, 3);
    const values = new Uint8Array(3);
    await buffer.read(0, values);
    expect([...values]).toEqual([0, 1, 255]);
    buffer.dispose();
  });

  test('begin anywhere, and are longer than one chunk', async () => {
    const elements = 300_001;
    const data = new Uint8Array(3 + 2 * elements);
    for (let i = 0; i < elements; i++) data.set([0, 0x3c + (i % 7) * 4], 3 + 2 * i);
    const buffer = await load(data, 'float16', elements, 3);
    const values = await floatsOf(buffer);
    expect(values.every((value, i) => value === 2 ** (i % 7))).toBe(true);
    buffer.dispose();
  });

  test('an int64 that does not fit is refused', async () => {
    const bytes = new Uint8Array(BigInt64Array.of(2n ** 31n).buffer);
    await expect(load(bytes, 'int64', 1)).rejects.toMatchObject({ code: 'ERR_WEIGHTS' });
  });
});

describe('pieces', () => {
  const path = fileOf(
    'pieces',
    Uint8Array.from({ length: 100 }, (_, i) => i),
  );

  test('are copies', () => {
    const file = new addon.MappedFile(path);
    expect(file.bytes).toBe(100);
    expect([...file.slice(98, 2)]).toEqual([98, 99]);
    expect([...file.slice(100, 0)]).toEqual([]);
    file.dispose();
  });

  test('are written in queue order', async () => {
    const { steps, arenaBytes } = longSteps(20);
    const program = new addon.Program(description(steps, [8], arenaBytes));
    const buffer = bufferOf(0, 0);
    const run = program.run([buffer], false);
    const before = floatsOf(buffer);
    const file = new addon.MappedFile(fileOf('order', new Uint8Array(Float32Array.of(9).buffer)));
    file.load(0, 'float32', buffer, 4, 1);
    expect(await before).toEqual([0, 0]);
    expect(await floatsOf(buffer)).toEqual([0, 9]);
    await run;
    file.dispose();
    buffer.dispose();
    program.dispose();
  });

  test('outside the file or the buffer are refused', () => {
    const file = new addon.MappedFile(path);
    const buffer = bufferOf(0, 0);
    const bad: (() => unknown)[] = [
      () => file.slice(-1, 1),
      () => file.slice(0, 101),
      () => file.slice(100, 1),
      () => file.slice(2 ** 53 - 1, 1),
      () => file.slice(0, 2 ** 53 - 1),
      () => file.slice('0' as never, 1),
      () => {
        file.load(0, 'float32', buffer, 0, 3);
      },
      () => {
        file.load(0, 'float32', buffer, 8, 1);
      },
      () => {
        file.load(0, 'float32', buffer, 2, 1);
      },
      () => {
        file.load(97, 'float32', buffer, 0, 1);
      },
      () => {
        file.load(0, 'float32', buffer, 0, 2 ** 53 - 1);
      },
      () => {
        file.load(0, 'float32', buffer, 0, -1);
      },
      () => {
        file.load(0, 'float8' as never, buffer, 0, 1);
      },
      () => {
        file.load(0, 'float32', {} as never, 0, 1);
      },
      () => {
        file.load(0, 'float32', file as never, 0, 1);
      },
    ];
    for (const action of bad) expect(codeOf(action)).toBe('ERR_ARGUMENT');
    buffer.dispose();
    expect(
      codeOf(() => {
        file.load(0, 'float32', buffer, 0, 1);
      }),
    ).toBe('ERR_DISPOSED');
    file.dispose();
    expect(file.disposed).toBe(true);
    expect(codeOf(() => file.slice(0, 1))).toBe('ERR_DISPOSED');
  });
});

describe('files', () => {
  test('that are none are refused with the reason', () => {
    const pipe = join(folder, 'pipe');
    execFileSync('mkfifo', [pipe]);
    for (const path of [join(folder, 'missing'), folder, pipe, '/dev/zero']) {
      expect(codeOf(() => new addon.MappedFile(path))).toBe('ERR_FILE');
    }
    expect(() => new addon.MappedFile(join(folder, 'missing'))).toThrow('No such file');
    for (const path of [undefined, 5, 'a\0b']) {
      expect(codeOf(() => new addon.MappedFile(path as string))).toBe('ERR_ARGUMENT');
    }
  });

  test('cut short while open are an error and not a crash', () => {
    const path = fileOf('cut', new Uint8Array(1 << 20));
    const file = new addon.MappedFile(path);
    const buffer = new addon.Buffer(1 << 20);
    truncateSync(path, 100);
    expect(codeOf(() => file.slice(0, 1 << 20))).toBe('ERR_FILE');
    expect(
      codeOf(() => {
        file.load(0, 'float32', buffer, 0, 1 << 18);
      }),
    ).toBe('ERR_FILE');
    expect([...file.slice(0, 1)]).toEqual([0]);
    file.dispose();
    buffer.dispose();
  });

  test('may be empty', () => {
    const file = new addon.MappedFile(fileOf('empty', new Uint8Array(0)));
    expect(file.bytes).toBe(0);
    expect(file.slice(0, 0)).toHaveLength(0);
    file.dispose();
  });
});

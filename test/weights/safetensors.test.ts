import { existsSync, readdirSync, readFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { DeviceArray } from '../../lib/array';
import { Philox4x32 } from '../../lib/array/random';
import { SiglipError } from '../../lib/errors';
import type { StoredTensor } from '../../lib/weights';
import { openSafetensors, writeSafetensors } from '../../lib/weights';
import { put, temporaryFolder, withHeader } from './files';

const folder = temporaryFolder();
const golden = join(__dirname, '..', 'golden', 'weights');

const F32 = (data: number[], shape = [data.length]): StoredTensor => ({
  dtype: 'F32',
  shape,
  data: Float32Array.from(data),
});

async function numbers(path: string, name: string): Promise<number[]> {
  using file = openSafetensors(path);
  return Array.from(await file.read(name));
}

describe('a file of the Python library', () => {
  const path = join(golden, 'python.safetensors');
  const expected = JSON.parse(readFileSync(join(golden, 'python.json'), 'utf8')) as Record<
    string,
    (number | string)[]
  >;

  test('names, metadata and shapes', () => {
    using file = openSafetensors(path);
    expect([...file.tensors.keys()].sort()).toEqual(Object.keys(expected).sort());
    expect([...file.metadata].sort()).toEqual([
      ['by', 'safetensors 0.8.0'],
      ['format', 'np'],
    ]);
    expect(file.tensors.get('floats.single')).toMatchObject({ dtype: 'F32', shape: [3, 4] });
    expect(file.tensors.get('scalar')).toMatchObject({ shape: [], elements: 1, bytes: 4 });
    expect(file.tensors.get('empty')).toMatchObject({ shape: [0, 3], elements: 0, bytes: 0 });
  });

  test.each(Object.keys(expected))('%s', async (name) => {
    expect(await numbers(path, name)).toEqual(expected[name].map(Number));
  });

  test('parts of tensors, on the device and off it', async () => {
    using file = openSafetensors(path);
    const all = await file.read('floats.single');
    using part = await file.load('floats.single', { first: 4, shape: [2, 3] });
    expect(part.shape).toEqual([2, 3]);
    expect(part.dtype).toBe('float32');
    expect(await part.read()).toEqual(all.slice(4, 10));
    await expect(file.load('floats.single', { first: 8, shape: [5] })).rejects.toThrow(
      'part of floats.single must lie within its 12 elements, got 5 from 8',
    );
    await expect(file.load('none')).rejects.toThrow('tensors must include none, got 12 others');
  });

  test('a file that is closed', async () => {
    const file = openSafetensors(path);
    file.dispose();
    file.dispose();
    await expect(file.load('scalar')).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });
});

describe('writeSafetensors', () => {
  test('writes what is read, in order, aligned', async () => {
    const path = join(folder(), 'a.safetensors');
    const array = DeviceArray.from(Float32Array.of(5, 6, 7, 8), [2, 2]);
    await writeSafetensors(
      path,
      new Map<string, StoredTensor>([
        ['b', F32([1, 2, 3, 4], [2, 2])],
        ['a', { dtype: 'F32', shape: [2, 2], data: array }],
        ['ids', { dtype: 'I32', shape: [3], data: () => Int32Array.of(1, -2, 3) }],
        ['\u{1f98a}', { dtype: 'U8', shape: [1, 1], data: Uint8Array.of(200) }],
        ['\uffee', F32([])],
        ['scalar', F32([9], [])],
      ]),
      { format: 'pt', text: 'ä "quoted"' },
    );
    array.dispose();
    using file = openSafetensors(path);
    // By code point: the fox, beyond the first plane, comes last.
    expect([...file.tensors.keys()]).toEqual(['a', 'b', 'ids', 'scalar', '\uffee', '\u{1f98a}']);
    expect(file.metadata.get('text')).toBe('ä "quoted"');
    expect([...file.tensors.values()][0].offset % 8).toBe(0);
    expect(await file.read('a')).toEqual(Float32Array.of(5, 6, 7, 8));
    expect(await file.read('ids')).toEqual(Int32Array.of(1, -2, 3));
    expect(await file.read('\u{1f98a}')).toEqual(Uint8Array.of(200));
    expect(await file.read('\uffee')).toEqual(new Float32Array(0));
    expect(await file.read('scalar')).toEqual(Float32Array.of(9));
    expect(readdirSync(folder())).toEqual(['a.safetensors']);
  });

  test('bfloat16 and float16 are rounded to nearest even', async () => {
    const path = join(folder(), 'a.safetensors');
    const store = async (dtype: 'BF16' | 'F16', data: number[]): Promise<number[]> => {
      const stored = { dtype, shape: [data.length], data: Float32Array.from(data) };
      await writeSafetensors(path, new Map([['x', stored]]));
      return numbers(path, 'x');
    };
    const tie = 2 ** -8;
    expect(
      await store('BF16', [1, 1 + tie, 1 + 3 * tie, 1 + tie + 2 ** -20, -3.14159, NaN, Infinity]),
    ).toEqual([1, 1, 1 + 4 * tie, 1 + 2 * tie, -3.140625, NaN, Infinity]);
    const half = 2 ** -11;
    const least = 2 ** -24;
    expect(
      await store('F16', [
        0,
        -0,
        1 + half,
        1 + 3 * half,
        65504,
        65519,
        -Infinity,
        NaN,
        least,
        least / 2,
        1.5 * least,
        2 ** -14 - least / 2,
        1e-9,
        0.1,
      ]),
    ).toEqual([
      0,
      -0,
      1,
      1 + 4 * half,
      65504,
      65504,
      -Infinity,
      NaN,
      least,
      0,
      2 * least,
      2 ** -14,
      0,
      0.0999755859375,
    ]);
    await expect(store('F16', [65520])).rejects.toThrow('values of x in F16 must be at most 65504');
  });

  test('every float16 comes back as itself', async () => {
    const path = join(folder(), 'a.safetensors');
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i).filter(
      (b) => (b & 0x7c00) !== 0x7c00,
    );
    const header = {
      x: { dtype: 'F16', shape: [bits.length], data_offsets: [0, 2 * bits.length] },
    };
    put(folder(), 'bits.safetensors', withHeader(header, Buffer.from(bits.buffer)));
    using file = openSafetensors(join(folder(), 'bits.safetensors'));
    const data = await file.read('x');
    await writeSafetensors(path, new Map([['x', { dtype: 'F16', shape: [bits.length], data }]]));
    const written = readFileSync(path).subarray(-2 * bits.length);
    expect(Buffer.compare(written, Buffer.from(bits.buffer))).toBe(0);
  });

  test('a failure leaves the old file and nothing else', async () => {
    const path = join(folder(), 'a.safetensors');
    await writeSafetensors(path, new Map([['x', F32([1])]]));
    const before = readFileSync(path);
    const failing = (stored: StoredTensor): Promise<void> =>
      writeSafetensors(
        path,
        new Map([
          ['a', F32([1, 2])],
          ['x', stored],
        ]),
      );
    await expect(failing({ ...F32([1, 2]), shape: [3] })).rejects.toThrow(
      'x must have 3 elements for [3], got 2',
    );
    await expect(failing({ ...F32([1]), dtype: 'I32' })).rejects.toThrow(
      'must come from a Int32Array',
    );
    await expect(failing({ ...F32([1]), shape: [-1] })).rejects.toThrow(
      'non-negative integer extents',
    );
    await expect(
      failing({ ...F32([1]), data: () => Promise.reject(new SiglipError('ERR_DATA', 'gone')) }),
    ).rejects.toThrow('gone');
    await expect(
      writeSafetensors(path, new Map([['x', F32([1])]]), {}, { signal: AbortSignal.abort() }),
    ).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect(readFileSync(path).equals(before)).toBe(true);
    expect(readdirSync(folder())).toEqual(['a.safetensors']);
  });

  test('a folder that cannot be written', async () => {
    const file = put(folder(), 'file', '');
    const promise = writeSafetensors(join(file, 'a.safetensors'), new Map([['x', F32([1])]]));
    await expect(promise).rejects.toMatchObject({ code: 'ERR_FILE' });
  });
});

describe('openSafetensors refuses', () => {
  const entry = (change: object): object => ({
    x: { dtype: 'F32', shape: [2], data_offsets: [0, 8], ...change },
  });
  const eight = Buffer.alloc(8);
  const x = '"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}';

  test.each<[string, Buffer, string]>([
    ['an empty file', Buffer.alloc(0), 'file must be at least 8 bytes, got 0 bytes'],
    ['a length alone', withHeader('{}').subarray(0, 9), 'header length must be at most 1 bytes'],
    ['a length beyond 2^53', Buffer.alloc(20, 255), 'got 18446744073709551615'],
    ['an empty header', withHeader(''), 'must be JSON that begins with {, got an empty header'],
    ['another beginning', withHeader(' {}'), 'must be JSON that begins with {, got byte 32'],
    ['bytes that are no UTF-8', withHeader(Buffer.from([0x7b, 0xff, 0x7d])), 'must be valid UTF-8'],
    ['an open object', withHeader('{"x":'), 'JSON with { at character 5, got its end'],
    ['text behind the header', withHeader('{} x'), 'with the end of the header at character 3'],
    ['a name twice', withHeader(`{${x},${x}}`, eight), 'every name once, got "x" twice'],
    [
      'a name twice, spelled differently',
      withHeader(`{${x},${x.replace('x', '\\u0078')}}`, eight),
      '"x" twice',
    ],
    ['metadata twice', withHeader('{"__metadata__":{},"__metadata__":{}}'), 'every name once'],
    [
      'a metadata key twice',
      withHeader('{"__metadata__":{"a":"","a":""}}'),
      'every metadata key once',
    ],
    ['metadata that is no string', withHeader({ __metadata__: { a: 1 } }), 'JSON with a string'],
    [
      'an unknown dtype',
      withHeader(entry({ dtype: 'F33' }), eight),
      'dtype of x must be one of F64, F32',
    ],
    ['a dtype of the prototype', withHeader(entry({ dtype: 'toString' }), eight), 'got "toString"'],
    ['a missing key', withHeader('{"x":{"dtype":"F32","shape":[2]}}'), 'got fewer keys'],
    ['an unknown key', withHeader(entry({ strides: [1] }), eight), 'once each, got "strides"'],
    [
      'a negative extent',
      withHeader(entry({ shape: [-2] }), eight),
      'integers from 0 to 2^53 - 1, got -2',
    ],
    [
      'a fraction',
      withHeader('{"x":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', eight),
      'got 2.0',
    ],
    [
      'an exponent',
      withHeader('{"x":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}', eight),
      'got 2e0',
    ],
    ['a text for a number', withHeader(entry({ shape: ['2'] }), eight), 'JSON with a number'],
    [
      'an extent beyond 2^53',
      withHeader('{"x":{"dtype":"F32","shape":[9007199254740993],"data_offsets":[0,8]}}'),
      'got 9007199254740993',
    ],
    [
      'a product beyond 2^53',
      withHeader(entry({ shape: [2 ** 30, 2 ** 30] }), eight),
      'whose product is a safe number',
    ],
    [
      'half bytes',
      withHeader(entry({ dtype: 'F4', shape: [3] }), eight),
      'whole bytes, got [3] of F4',
    ],
    [
      'three offsets',
      withHeader(entry({ data_offsets: [0, 8, 8] }), eight),
      'must be [begin, end]',
    ],
    [
      'an end before the beginning',
      withHeader(entry({ data_offsets: [8, 0] }), eight),
      'begin <= end, got [8, 0]',
    ],
    [
      'a wrong number of bytes',
      withHeader(entry({ shape: [3] }), eight),
      '12 bytes for F32 [3], got 8 bytes',
    ],
    [
      'a hole',
      withHeader(entry({ data_offsets: [4, 12] }), Buffer.alloc(12)),
      'a hole: from byte 4',
    ],
    [
      'an overlap',
      withHeader(
        { ...entry({}), y: { dtype: 'U8', shape: [4], data_offsets: [7, 11] } },
        Buffer.alloc(11),
      ),
      'an overlap: from byte 7',
    ],
    [
      'bytes behind the last tensor',
      withHeader(entry({}), Buffer.alloc(9)),
      'bytes by its header, got',
    ],
    ['nesting', withHeader(`{"x":${'['.repeat(100_000)}`), 'JSON with {'],
  ])('%s', (_, content, message) => {
    const path = put(folder(), 'a.safetensors', content);
    expect(() => openSafetensors(path)).toThrow(message);
    expect(() => openSafetensors(path)).toThrow(SiglipError);
    expect(() => openSafetensors(path)).toThrow(path);
  });

  test.each([
    ['version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'],
    ['<!DOCTYPE html><html>', 'web page'],
    ['PK\x03\x04 and so on', 'PyTorch'],
    ['{"weight_map": {}}', 'JSON'],
  ])('%j and says what it is', (content, hint) => {
    const path = put(folder(), 'a.safetensors', content);
    expect(() => openSafetensors(path)).toThrow(hint);
  });

  test('a download cut short, with both sizes', async () => {
    const path = join(folder(), 'a.safetensors');
    await writeSafetensors(path, new Map([['x', F32(new Array<number>(100).fill(1))]]));
    const { length } = readFileSync(path);
    truncateSync(path, length - 3);
    expect(() => openSafetensors(path)).toThrow(
      `file must be ${String(length)} bytes by its header, got ${String(length - 3)} bytes`,
    );
  });

  test('what is no file', () => {
    const missing = join(folder(), 'none.safetensors');
    expect(existsSync(missing)).toBe(false);
    for (const path of [missing, folder()]) {
      expect(() => openSafetensors(path)).toThrow(SiglipError);
      expect(() => openSafetensors(path)).toThrow(path);
    }
  });

  test('a tensor whose dtype cannot be read, when it is asked for', async () => {
    const header = { x: { dtype: 'F8_E4M3', shape: [2], data_offsets: [0, 2] } };
    using file = openSafetensors(
      put(folder(), 'a.safetensors', withHeader(header, Buffer.alloc(2))),
    );
    await expect(file.read('x')).rejects.toThrow('dtype of x must be one of F64, F32');
  });

  test('an int64 that does not fit', async () => {
    const header = { x: { dtype: 'I64', shape: [1], data_offsets: [0, 8] } };
    using file = openSafetensors(
      put(folder(), 'a.safetensors', withHeader(header, Buffer.alloc(8, 1))),
    );
    await expect(file.read('x')).rejects.toMatchObject({ code: 'ERR_WEIGHTS' });
  });
});

test('damaged headers never do more than fail', async () => {
  const random = new Philox4x32(17, 'safetensors');
  const original = readFileSync(join(golden, 'python.safetensors'));
  const headerBytes = Number(original.readBigUInt64LE(0));
  for (let round = 0; round < 400; round++) {
    const bytes = Buffer.from(original);
    for (let i = 0; i <= random.integer(4); i++) {
      bytes[random.integer(8 + headerBytes)] = random.integer(256);
    }
    const cut = random.integer(4) === 0 ? random.integer(bytes.length) : bytes.length;
    const path = put(folder(), 'a.safetensors', bytes.subarray(0, cut));
    try {
      using file = openSafetensors(path);
      for (const name of file.tensors.keys()) await file.read(name);
    } catch (error) {
      expect(error).toBeInstanceOf(SiglipError);
    }
  }
});

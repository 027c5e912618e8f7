import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Philox4x32 } from '../../lib/array/random';
import { SiglipError } from '../../lib/errors';
import { openNpz } from '../../lib/weights';
import { put, temporaryFolder } from './files';

const folder = temporaryFolder();
const golden = join(__dirname, '..', 'golden', 'weights');
const archive = join(golden, 'numpy.npz');

describe('an archive of NumPy', () => {
  test.each<[string, number[], number[]]>([
    ['a/f4', [2, 3], [0, 1, 2, 3, 4, 5]],
    [
      'a/f2',
      [10],
      [
        0,
        -0,
        1,
        -1.5,
        65504,
        6.097555160522461e-5,
        5.960464477539063e-8,
        Infinity,
        -Infinity,
        0.3330078125,
      ],
    ],
    ['f8', [1], [Math.fround(1 / 3)]],
    ['i8', [2], [5, -6]],
    ['scalar', [], [1.5]],
    ['bf16', [2], [1, -2]],
    ['u1', [3], [0, 1, 2]],
  ])('%s', async (name, shape, values) => {
    using file = openNpz(archive);
    expect(file.tensors.get(name)?.shape).toEqual(shape);
    expect(Array.from(await file.read(name))).toEqual(values);
  });

  test('a part of an array', async () => {
    using file = openNpz(archive);
    expect(await file.read('a/f4', { first: 2, shape: [3] })).toEqual(Float32Array.of(2, 3, 4));
  });
});

describe('openNpz refuses', () => {
  test('compressed arrays and column-major arrays', () => {
    expect(() => openNpz(join(golden, 'compressed.npz'))).toThrow('not numpy.savez_compressed');
    expect(() => openNpz(join(golden, 'fortran.npz'))).toThrow("'fortran_order': True");
  });

  test('what is no archive', () => {
    for (const content of ['', 'PK', 'x'.repeat(70_000)]) {
      expect(() => openNpz(put(folder(), 'a.npz', content))).toThrow(
        'archive must have a zip archive',
      );
    }
  });

  test('a file cut short', () => {
    const bytes = readFileSync(archive);
    expect(() => openNpz(put(folder(), 'a.npz', bytes.subarray(0, -30)))).toThrow(SiglipError);
  });

  test('data that do not have their checksum, when they are read', async () => {
    const bytes = Buffer.from(readFileSync(archive));
    using sound = openNpz(archive);
    const offset = sound.tensors.get('a/f4')?.offset ?? 0;
    bytes[offset + 5] ^= 1;
    using file = openNpz(put(folder(), 'a.npz', bytes));
    await expect(file.read('a/f4')).rejects.toThrow('a/f4 with checksum');
    expect(await file.read('i8')).toEqual(Int32Array.of(5, -6));
  });
});

test('damaged archives never do more than fail', async () => {
  const random = new Philox4x32(23, 'npz');
  const original = readFileSync(archive);
  for (let round = 0; round < 400; round++) {
    const bytes = Buffer.from(original);
    for (let i = 0; i <= random.integer(5); i++)
      bytes[random.integer(bytes.length)] = random.integer(256);
    const cut = random.integer(4) === 0 ? random.integer(bytes.length) : bytes.length;
    const path = put(folder(), 'a.npz', bytes.subarray(0, cut));
    try {
      using file = openNpz(path);
      for (const name of file.tensors.keys()) await file.read(name);
    } catch (error) {
      expect(error).toBeInstanceOf(SiglipError);
    }
  }
});

// What every contender is given: the same pixels, ids, grids and files.
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import sharp from 'sharp';
import { Philox4x32 } from '../lib/array/random';

const seed = 11;

/** Values of `count` images (3, side, side) in [−1, 1]: a few soft blobs of colour and some noise. */
export function pixelValues(count: number, side: number): Float32Array[] {
  return Array.from({ length: count }, (_, image) => {
    const random = new Philox4x32(seed, `image/${String(image)}`);
    const values = new Float32Array(3 * side * side);
    for (let colour = 0; colour < 3; colour++) {
      const [fx, fy, phase] = [random.uniform(1, 6), random.uniform(1, 6), random.uniform(0, 6)];
      for (let y = 0; y < side; y++) {
        for (let x = 0; x < side; x++) {
          const wave = Math.sin((fx * x + fy * y) / side + phase);
          values[(colour * side + y) * side + x] = 0.8 * wave + random.uniform(-0.2, 0.2);
        }
      }
    }
    return values;
  });
}

/** Rows of patches for one NaFlex image of a grid. */
export function patchRows(grid: readonly [number, number], patch: number): Float32Array {
  const random = new Philox4x32(seed, `patches/${grid.join('x')}`);
  const values = new Float32Array(grid[0] * grid[1] * patch * patch * 3);
  random.fillUniform(values, -1, 1);
  return values;
}

/** Ids of `count` texts: some words, then padding, as texts come. */
export function textIds(count: number, length: number, vocabulary: number): Int32Array[] {
  return Array.from({ length: count }, (_, text) => {
    const random = new Philox4x32(seed, `text/${String(text)}`);
    const words = 4 + random.integer(Math.min(24, length - 4));
    return Int32Array.from({ length }, (_id, i) =>
      i < words ? 1 + random.integer(vocabulary - 1) : 0,
    );
  });
}

/** Where the photographs for the benchmark are, when there are any. */
const photosFolder = join(
  process.env.SIGLIP2_DATA ?? join(__dirname, '../../shared/data'),
  'photos/open',
);

/** Paths of JPEG files: real photographs where they are at hand, else drawn ones in `folder`. */
export async function jpegFiles(
  folder: string,
  count: number,
): Promise<{ readonly files: readonly string[]; readonly real: boolean }> {
  if (existsSync(photosFolder)) {
    const names = readdirSync(photosFolder).filter((name) => name.endsWith('.jpg'));
    if (names.length > 0) {
      const files = Array.from({ length: Math.min(count, names.length) }, (_, i) => names[i]);
      return { files: files.map((name) => join(photosFolder, name)), real: true };
    }
  }
  mkdirSync(folder, { recursive: true });
  const files: string[] = [];
  for (let i = 0; i < count; i++) {
    const path = join(folder, `drawn_${String(i)}.jpg`);
    files.push(path);
    if (!existsSync(path)) await draw(path, i);
  }
  return { files, real: false };
}

async function draw(path: string, index: number): Promise<void> {
  const random = new Philox4x32(seed, `jpeg/${String(index)}`);
  const [width, height] = [448, 299];
  const bytes = new Uint8Array(width * height * 3);
  const waves = Array.from({ length: 9 }, () => random.uniform(0.005, 0.05));
  for (let i = 0; i < bytes.length; i++) {
    const [x, y, colour] = [Math.floor(i / 3) % width, Math.floor(i / 3 / width), i % 3];
    const [a, b, c] = waves.slice(3 * colour);
    bytes[i] = 127 + 90 * Math.sin(a * x + b * y) * Math.cos(c * (x - y)) + random.uniform(-20, 20);
  }
  await sharp(bytes, { raw: { width, height, channels: 3 } })
    .jpeg({ quality: 88 })
    .toFile(path);
}

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { normalizationTable } from '../../lib/image';
import { sha256 } from './formula_image';

const SIGLIP = {
  rescaleFactor: 0.00392156862745098,
  mean: [0.5, 0.5, 0.5],
  std: [0.5, 0.5, 0.5],
} as const;

describe('normalizationTable', () => {
  // transformers 5.18.0, NumPy path.
  test.each([
    [0, -1],
    [1, -0.9921568632125854],
    [64, -0.498039186000824],
    [127, -0.003921568393707275],
    [128, 0.003921627998352051],
    [200, 0.5686274766921997],
    [254, 0.9921568632125854],
    [255, 1],
  ])('byte %i is %p in every bit', (byte, expected) => {
    const table = normalizationTable(SIGLIP);
    expect(table[byte]).toBe(expected);
    expect(table[512 + byte]).toBe(expected);
  });

  test('colours have their own mean and spread; steps can be turned off', () => {
    const table = normalizationTable({ rescaleFactor: 1, mean: [0, 10, 0], std: [1, 2, 1] });
    expect([table[7], table[256 + 7], table[512 + 255]]).toEqual([7, -1.5, 255]);
  });

  // torch 2.13.0: (float32(byte) - mean · 255) / (std · 255).
  test('torchvision fuses the steps', () => {
    const folder = join(__dirname, '..', 'golden', 'image');
    const { fusedTables } = JSON.parse(readFileSync(join(folder, 'pillow.json'), 'utf8')) as {
      fusedTables: Record<string, string>;
    };
    const hash = (table: Float32Array): string => sha256(new Uint8Array(table.buffer));
    const fused = normalizationTable({ ...SIGLIP, backend: 'torchvision' });
    expect(hash(fused)).toBe(fusedTables.siglip);
    const clip = normalizationTable({
      rescaleFactor: 0.00392156862745098,
      mean: [0.48145466, 0.4578275, 0.40821073],
      std: [0.26862954, 0.26130258, 0.27577711],
      backend: 'torchvision',
    });
    expect(hash(clip)).toBe(fusedTables.clip);
    const steps = normalizationTable({ ...SIGLIP, backend: 'pillow' });
    expect(fused.filter((value, i) => value !== steps[i]).length).toBe(3 * 128);
    const off = { rescaleFactor: 0.1, mean: [0, 0, 0], std: [1, 1, 1] } as const;
    expect(normalizationTable({ ...off, backend: 'torchvision' })[3]).toBe(
      Math.fround(3 * Math.fround(0.1)),
    );
  });
});

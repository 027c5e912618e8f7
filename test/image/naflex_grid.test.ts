import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { naflexGrid } from '../../lib/image';
import { describeGolden } from '../golden_cases/golden';

// Height × width of the image, then rows × columns of patches of 16 pixels. Values of the reference.
const VECTORS: Record<number, string> = {
  256: `224×224→16×16; 480×640→14×18; 427×640→13×19; 640×427→19×13; 1080×1920→12×21;
    1920×1080→21×12; 2160×4096→12×21; 224×1024→7×32; 1000×1000→16×16; 100×300→9×27; 3×39→4×52;
    1×1→7×7; 1×4000→1×256; 4000×1→256×1; 13×4000→1×256`,
  512: `224×224→22×22; 64×64→22×22; 512×512→22×22; 608×608→22×22; 1000×1000→22×22; 120×160→19×26;
    240×320→19×26; 480×640→19×26; 483×640→19×26; 427×640→18×27; 426×640→18×28; 640×425→28×18;
    640×427→27×18; 640×440→27×18; 640×480→26×19; 640×487→25×20; 640×586→23×22; 1080×1920→17×30;
    16×16000→1×512; 16000×16→512×1; 13×4000→1×308`,
  729: '224×224→27×27; 480×640→23×31; 1080×1920→20×36; 100×300→15×45; 2160×4096→19×37',
  1024: '224×224→32×32; 480×640→27×36; 1080×1920→24×42; 427×640→26×39; 13×4000→2×512',
};

describe('naflexGrid', () => {
  const cases = Object.entries(VECTORS).flatMap(([budget, list]) =>
    list.split(';').map((item) => {
      const [height, width, rows, columns] = item.split(/[×→]/u).map(Number);
      return { budget: Number(budget), height, width, rows, columns };
    }),
  );
  test.each(cases)(
    '$height×$width in $budget patches: $rows×$columns',
    ({ budget, height, width, rows, columns }) => {
      expect(naflexGrid(height, width, 16, budget)).toEqual({ rows, columns });
    },
  );

  // The search in Python's float64: extreme aspects, sides at and beside multiples of the patch,
  // budgets from 1 to 4096.
  test('equals the reference where rounding decides', () => {
    const file = join(__dirname, '..', 'golden', 'image', 'naflex_grids.json');
    const grids = JSON.parse(readFileSync(file, 'utf8')) as number[][];
    expect(grids.length).toBeGreaterThan(800);
    for (const [height, width, patch, budget, rows, columns] of grids) {
      expect([height, width, patch, budget, naflexGrid(height, width, patch, budget)]).toEqual([
        height,
        width,
        patch,
        budget,
        { rows, columns },
      ]);
    }
  });

  test('never exceeds the budget', () => {
    for (let height = 1; height < 5000; height = Math.ceil(height * 1.7)) {
      for (let width = 1; width < 5000; width = Math.ceil(width * 1.9)) {
        const { rows, columns } = naflexGrid(height, width, 14, 128);
        expect(rows * columns).toBeLessThanOrEqual(128);
        expect(Math.min(rows, columns)).toBeGreaterThanOrEqual(1);
      }
    }
  });

  test('refuses what cannot fit', () => {
    expect(() => naflexGrid(1, 100_000_000_000, 16, 256)).toThrow('must fit into 256 patches');
    expect(() => naflexGrid(0, 5, 16, 256)).toThrow('height must be a positive integer, got 0');
    expect(() => naflexGrid(5, 5, 16, 0)).toThrow('maxPatches must be a positive integer, got 0');
  });
});

// 310 sizes through the TensorFlow code that trained the models (float32 there, float64 here).
describeGolden('bv_image_ops', (golden) => {
  test('target sizes', () => {
    const inputs = golden.tensor('in/size_hwpL').data;
    const targets = golden.tensor('out/size_target_hw').data;
    expect(inputs.length).toBe(4 * 310);
    for (let i = 0; i < inputs.length / 4; i++) {
      const [height, width, patch, budget] = inputs.subarray(4 * i, 4 * i + 4);
      const { rows, columns } = naflexGrid(height, width, patch, budget);
      const target = [targets[2 * i], targets[2 * i + 1]];
      expect([height, width, rows * patch, columns * patch]).toEqual([height, width, ...target]);
    }
  });
});

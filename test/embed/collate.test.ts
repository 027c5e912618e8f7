// What goes into the tower from images of different grids.
import { batchSpecs, collate } from '../../lib/embed/collate';
import type { PreparedValues } from '../../lib/embed/collate';
import { elements, flatten } from '../../lib/graph';
import { fixedConfig, naflexConfig } from '../nn/towers';

const rowWidth = 3 * naflexConfig.vision.patch ** 2;

function image(rows: number, columns: number, value: number, extra = 0): PreparedValues {
  const count = (rows * columns + extra) * rowWidth;
  return { values: new Float32Array(count).fill(value), grid: [rows, columns] };
}

test('NaFlex patches follow each other without padding, zeros behind the last', () => {
  // The second image comes with padding of its own, which is not taken over.
  const images = [image(2, 3, 1), image(1, 4, 2, 5), image(3, 1, 3)];
  const { input, batch, length } = collate(naflexConfig, images);
  if (!('segments' in input)) throw new Error('must be packed');
  expect([batch, length]).toEqual([3, 16]);
  expect([...input.segments]).toEqual([0, 6, 10, 13]);
  expect([...input.shapes]).toEqual([2, 3, 1, 4, 3, 1]);
  const firsts = Array.from({ length }, (_, row) => input.patches[row * rowWidth]);
  expect(firsts).toEqual([1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 0, 0, 0]);
});

test('images of fixed resolution are not copied', () => {
  const prepared = [1, 2].map((value) => ({
    values: new Float32Array(3 * 13 * 13).fill(value),
    grid: [3, 3] as const,
  }));
  const { input } = collate(fixedConfig, prepared);
  if (!('images' in input)) throw new Error('must be images');
  const { parts } = input.images;
  expect(parts).toHaveLength(2);
  parts.forEach((part, i) => {
    expect(part).toBe(prepared[i].values);
  });
});

test.each([
  ['fixed', fixedConfig, { values: new Float32Array(3 * 13 * 13), grid: [3, 3] as const }],
  ['NaFlex', naflexConfig, image(5, 7, 1)],
])('a %s batch has the specs a program is compiled for', (_, config, prepared) => {
  const { input, batch, length } = collate(config, [prepared, prepared]);
  const specs = flatten(batchSpecs(config, batch, length));
  const given = flatten(input);
  expect(given.map(({ path }) => path)).toEqual(specs.map(({ path }) => path));
  given.forEach(({ leaf }, i) => {
    const spec = specs[i].leaf as Parameters<typeof elements>[0];
    expect((leaf as Float32Array).length).toBe(elements(spec));
  });
});

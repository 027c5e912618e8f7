import type { VariantName } from '../../lib/model';
import { parameterCount, parameterTable, variant } from '../../lib/model';

function counts(
  name: VariantName,
  options: Parameters<typeof variant>[1],
): [number, number, number] {
  const table = parameterTable(variant(name, options));
  const of = (tower: string): number =>
    parameterCount(table.filter(({ path }) => path.startsWith(tower)));
  return [of('vision.'), of('text.'), parameterCount(table)];
}

test('without its MAP head a B/16 vision tower has 85.84 M parameters', () => {
  const [vision] = counts('B/16', { imageSize: 256, visionPool: 'none' });
  expect(vision).toBe(92930304 - 7087104);
  expect(vision / 1e6).toBeCloseTo(85.84, 2);
});

test.each<[VariantName, number, number]>([
  ['B/32', 256, 64],
  ['B/16', 224, 196],
  ['L/16', 512, 1024],
  ['So400m/14', 224, 256],
  ['So400m/14', 384, 729], // 27 × 27: the last 6 pixels of a side are not seen
  ['g-opt/16', 384, 576],
])('%s at %d px sees %d patches', (name, imageSize, tokens) => {
  expect(variant(name, { imageSize }).vision.positions).toBe(tokens);
});

test('the small sizes of the same table', () => {
  expect(variant('mu/16').vision).toMatchObject({ width: 32, depth: 1, mlpWidth: 128, heads: 2 });
  expect(variant('Ti/16').text).toMatchObject({ width: 192, depth: 12, mlpWidth: 768, heads: 3 });
  expect(variant('S/16').embedding).toBe(384);
  expect(variant('M/16').vision).toMatchObject({ width: 512, heads: 8 });
  expect(variant('H/14').vision).toMatchObject({ width: 1280, depth: 32, imageSize: 224 });
});

test('defaults: fixed layout, 16 patches a side, Gemma ids, last token', () => {
  const config = variant('B/16');
  expect(config.vision).toMatchObject({
    layout: 'fixed',
    imageSize: 256,
    positions: 256,
    pool: 'map',
  });
  expect(config.text).toMatchObject({ vocabulary: 256000, length: 64, pool: 'last' });
  expect(variant('B/32').vision).toMatchObject({ imageSize: 256, positions: 64 });
  expect(config.layerNormEps).toBe(1e-6);
});

test('g-opt has the text tower of So400m and embeddings of its own width', () => {
  const config = variant('g-opt/16');
  expect(config.text.width).toBe(1152);
  expect(config.embedding).toBe(1536);
});

test('unknown names and contradicting options are refused', () => {
  expect(() => variant('XL/16' as VariantName)).toThrow(
    'variant: name must be <size>/<patch> with a size of mu, Ti, S, M, B, L, So400m, H, g-opt, got XL/16',
  );
  expect(() => variant('B' as VariantName)).toThrow('got B');
  expect(() => variant('B/0')).toThrow('got B/0');
  expect(() => variant('B/16', { layout: 'naflex', imageSize: 256 })).toThrow(
    'imageSize must be absent in the naflex layout, got 256',
  );
  expect(() => variant('B/16', { imageSize: 8 })).toThrow('at least the patch size 16, got 8');
});

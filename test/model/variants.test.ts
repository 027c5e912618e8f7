import type { VariantName } from '../../lib/model';
import { gridSide, parameterCount, parameterTable, releases, variant } from '../../lib/model';

function counts(
  name: VariantName,
  options: Parameters<typeof variant>[1],
): [number, number, number] {
  const table = parameterTable(variant(name, options));
  const of = (tower: string): number =>
    parameterCount(table.filter(({ path }) => path.startsWith(tower)));
  return [of('vision.'), of('text.'), parameterCount(table)];
}

// Published counts: vision with its MAP head, text with its head, total with t and b.
test.each<[VariantName, number, number, number, number]>([
  ['B/32', 256, 94552320, 282303744, 376856066],
  ['B/16', 224, 92884224, 282303744, 375187970],
  ['B/16', 256, 92930304, 282303744, 375234050],
  ['B/16', 384, 93176064, 282303744, 375479810],
  ['B/16', 512, 93520128, 282303744, 375823874],
  ['L/16', 256, 315956224, 565570560, 881526786],
  ['L/16', 384, 316283904, 565570560, 881854466],
  ['L/16', 512, 316742656, 565570560, 882313218],
  ['So400m/14', 224, 427680704, 707782896, 1135463602],
  ['So400m/14', 384, 428225600, 707782896, 1136008498],
  ['So400m/16', 256, 427888064, 707782896, 1135670962],
  ['So400m/16', 384, 428256704, 707782896, 1136039602],
  ['So400m/16', 512, 428772800, 707782896, 1136555698],
  ['g-opt/16', 256, 1163168256, 708225648, 1871393906],
  ['g-opt/16', 384, 1163659776, 708225648, 1871885426],
])('%s at %d px has the published number of parameters', (name, imageSize, ...expected) => {
  expect(counts(name, { imageSize })).toEqual(expected);
});

test.each<[VariantName, number, number, number]>([
  ['B/16', 92930304, 282303744, 375234050],
  ['So400m/16', 427888064, 707782896, 1135670962],
])('%s NaFlex has the published number of parameters', (name, ...expected) => {
  expect(counts(name, { layout: 'naflex' })).toEqual(expected);
});

test('SigLIP 1 is the same table with another vocabulary and length', () => {
  expect(counts('B/16', { imageSize: 224, vocabulary: 32000 })[2]).toBe(203155970);
  expect(counts('So400m/14', { imageSize: 224, vocabulary: 32000, length: 16 })[2]).toBe(877360306);
});

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

test('the demo model is small and its towers differ', () => {
  const demo = variant('demo/8', { imageSize: 32, vocabulary: 14000, length: 16 });
  expect(demo.vision).toMatchObject({ width: 128, depth: 4, positions: 16 });
  expect(demo.text).toMatchObject({ width: 128, depth: 2, vocabulary: 14000, length: 16 });
});

test('g-opt has the text tower of So400m and embeddings of its own width', () => {
  const config = variant('g-opt/16');
  expect(config.text.width).toBe(1152);
  expect(config.embedding).toBe(1536);
});

test('every release is a variant', () => {
  expect(releases).toHaveLength(17);
  for (const { repository, variant: name, options } of releases) {
    const config = variant(name, options);
    const size = config.vision.layout === 'naflex' ? 'naflex' : String(config.vision.imageSize);
    expect(repository).toMatch(
      new RegExp(`^google/siglip2-[a-z0-9-]+-patch${String(config.vision.patch)}-${size}$`),
    );
    expect(gridSide(config.vision) ** 2).toBe(config.vision.positions);
  }
});

test('unknown names and contradicting options are refused', () => {
  expect(() => variant('XL/16' as VariantName)).toThrow(
    'variant: name must be <size>/<patch> with a size of demo, mu, Ti, S, M, B, L, So400m, H, g-opt, got XL/16',
  );
  expect(() => variant('B' as VariantName)).toThrow('got B');
  expect(() => variant('B/0')).toThrow('got B/0');
  expect(() => variant('B/16', { layout: 'naflex', imageSize: 256 })).toThrow(
    'imageSize must be absent in the naflex layout, got 256',
  );
  expect(() => variant('B/16', { imageSize: 8 })).toThrow('at least the patch size 16, got 8');
});

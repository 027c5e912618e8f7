import { Philox4x32 } from '../../lib/array/random';
import { drawView, viewDefaults } from '../../lib/data';

const size = { width: 640, height: 480 };
const COUNT = 4000;

function draws(kind: 'global' | 'local', options = {}): ReturnType<typeof drawView>[] {
  return Array.from({ length: COUNT }, (_, i) =>
    drawView(new Philox4x32(7, i), kind, size, options),
  );
}

describe.each(['global', 'local'] as const)('%s views', (kind) => {
  const options = viewDefaults[kind];
  const views = draws(kind);

  test('crops lie inside, of the drawn areas and aspects', () => {
    const areas = views.map(({ crop: { left, top, width, height } }) => {
      expect(left >= 0 && top >= 0).toBe(true);
      expect(left + width <= size.width && top + height <= size.height).toBe(true);
      // A whole number of pixels, from 100 on.
      expect(width / height).toBeGreaterThan(options.aspect[0] - 0.02);
      expect(width / height).toBeLessThan(options.aspect[1] + 0.02);
      return (width * height) / (size.width * size.height);
    });
    expect(Math.min(...areas)).toBeGreaterThan(options.scale[0] - 0.005);
    expect(Math.max(...areas)).toBeLessThan(options.scale[1] + 0.005);
  });

  test('parts happen as often as they should', () => {
    const often = (happens: (view: (typeof views)[number]) => boolean): number =>
      views.filter(happens).length / COUNT;
    // Five standard deviations of a share of 4,000.
    expect(Math.abs(often(({ flip }) => flip) - options.flip)).toBeLessThan(0.04);
    expect(Math.abs(often(({ grey }) => grey) - options.grey)).toBeLessThan(0.04);
    const jittered = often(({ jitter }) => jitter !== undefined);
    expect(Math.abs(jittered - options.jitter.probability)).toBeLessThan(0.04);
    const blurred = often(({ blur }) => blur > 0);
    expect(Math.abs(blurred - options.blur.probability)).toBeLessThan(0.04);
  });

  test('colours and blur stay in their ranges', () => {
    for (const { jitter, blur } of views) {
      if (blur > 0) expect(blur >= 0.1 && blur < 2).toBe(true);
      if (jitter === undefined) continue;
      expect(Math.abs(jitter.brightness - 1)).toBeLessThanOrEqual(0.4);
      expect(Math.abs(jitter.contrast - 1)).toBeLessThanOrEqual(0.4);
      expect(Math.abs(jitter.saturation - 1)).toBeLessThanOrEqual(0.2);
      expect(Math.abs(jitter.hue)).toBeLessThanOrEqual(0.1);
      expect([...jitter.order].sort()).toEqual(['brightness', 'contrast', 'hue', 'saturation']);
    }
  });

  test('all orders of the colours occur', () => {
    expect(new Set(views.map(({ jitter }) => jitter?.order.join(' '))).size).toBe(24 + 1);
  });
});

test('the same stream gives the same view and always moves on by as much', () => {
  const random = new Philox4x32(1, 'a');
  const first = drawView(random, 'local', size);
  expect(random.position).toBe(56);
  drawView(random, 'local', { width: 3, height: 900 });
  expect(random.position).toBe(112);
  expect(drawView(new Philox4x32(1, 'a'), 'local', size)).toEqual(first);
});

test('another probability of one part leaves the others as they were', () => {
  const usual = drawView(new Philox4x32(1, 'a'), 'local', size);
  const other = drawView(new Philox4x32(1, 'a'), 'local', size, { grey: 1 });
  expect(other).toEqual({ ...usual, grey: true });
});

test('an image without room for the aspect gives its middle', () => {
  const { crop } = drawView(new Philox4x32(1, 'a'), 'global', { width: 10, height: 1000 });
  expect(crop).toEqual({ left: 0, top: 493, width: 10, height: 13 });
});

test.each([
  [{ scale: [0, 1] }, 'scale must be ordered in (0, 1]'],
  [{ flip: 2 }, 'flip must be in [0, 1]'],
  [{ blur: { probability: 1, sigma: [2, 1] } }, 'blur.sigma must be ordered'],
])('%j is refused', (options, message) => {
  expect(() => drawView(new Philox4x32(1), 'local', size, options as object)).toThrow(message);
});

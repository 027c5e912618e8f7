import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Siglip2 } from '../../lib';
import {
  configForImageSize,
  loadCheckpoint,
  resizePositionGrid,
  saveCheckpoint,
} from '../../lib/weights';
import { disposeArrays } from '../../lib/graph';
import { temporaryFolder } from './files';
import { smallConfig, smallParameters } from './small_model';

const { cases } = JSON.parse(
  readFileSync(join(__dirname, '..', 'golden', 'weights', 'position_grid.json'), 'utf8'),
) as { cases: { n: number; m: number; grid: number[]; result: number[] }[] };

describe('resizePositionGrid', () => {
  test.each(cases)('$n × $n to $m × $m as torch does', ({ m, grid, result }) => {
    const resized = resizePositionGrid(Float32Array.from(grid), 2, m);
    expect(resized).toHaveLength(result.length);
    const difference = Math.max(...result.map((value, i) => Math.abs(value - resized[i])));
    expect(difference).toBeLessThan(1e-6);
  });

  // The cubic kernel with a = −0.75 at distances 0.25, 0.75, 1.25 and 1.75.
  test('one to two, written out', () => {
    const line = [1, 10, 100, 1000];
    const grid = Float32Array.from({ length: 16 }, (_, i) => line[i % 4]);
    const resized = resizePositionGrid(grid, 1, 8);
    const [a, b, c, d] = [-0.0351562, 0.2617188, 0.8789062, -0.1054688];
    expect(resized[3]).toBeCloseTo(d * 1 + c * 10 + b * 100 + a * 1000, 3);
    expect(resized[4]).toBeCloseTo(a * 1 + b * 10 + c * 100 + d * 1000, 3);
  });

  test('the same size changes nothing', () => {
    const grid = Float32Array.of(1, 2, 3, 4);
    expect(resizePositionGrid(grid, 1, 2)).toBe(grid);
  });
});

describe('imageSize', () => {
  const folder = temporaryFolder();
  const config = smallConfig('fixed');

  test('positions, config and preprocessor follow; all else stays', async () => {
    const parameters = smallParameters(config);
    await saveCheckpoint(folder(), { config, parameters });
    const loaded = await loadCheckpoint(folder(), { imageSize: 22 });
    expect(loaded.config).toEqual({
      ...config,
      vision: { ...config.vision, imageSize: 22, positions: 25 },
    });
    expect(loaded.preprocessor).toMatchObject({ layout: 'fixed', height: 22, width: 22 });
    expect(await loaded.parameters.vision.positions.read()).toEqual(
      resizePositionGrid(parameters.vision.positions, 12, 5),
    );
    expect(await loaded.parameters.text.positions.read()).toEqual(parameters.text.positions);
    disposeArrays(loaded.parameters);
  });

  test('the model takes images of that size, and gives the same for its own', async () => {
    await saveCheckpoint(folder(), { config, parameters: smallParameters(config) });
    using larger = await Siglip2.load(folder(), { imageSize: 20 });
    const pixelValues = (side: number): Float32Array =>
      Float32Array.from({ length: 3 * side * side }, (_, i) => Math.sin(i));
    const [embedding] = await larger.embedImages([{ pixelValues: pixelValues(20) }]);
    expect(Math.hypot(...embedding)).toBeCloseTo(1, 5);
    await expect(larger.embedImages([{ pixelValues: pixelValues(14) }])).rejects.toThrow(
      'must hold [3, 20, 20] values',
    );
    using own = await Siglip2.load(folder());
    using same = await Siglip2.load(folder(), { imageSize: 14 });
    const input = [{ pixelValues: pixelValues(14) }];
    expect(await same.embedImages(input)).toEqual(await own.embedImages(input));
  });

  test.each([
    [3, 'load: imageSize must be an integer from 4 (one patch) to 16384, got 3'],
    [20.5, 'got 20.5'],
    [1e6, 'got 1000000'],
    [NaN, 'got NaN'],
  ])('%d is refused', async (imageSize, message) => {
    await saveCheckpoint(folder(), { config, parameters: smallParameters(config) });
    await expect(loadCheckpoint(folder(), { imageSize })).rejects.toThrow(message);
  });

  test('a NaFlex model takes any size as it is', () => {
    expect(() => configForImageSize(smallConfig('naflex'), 20)).toThrow(
      'imageSize must be absent for a NaFlex model, got 20',
    );
  });
});

import { Siglip2 } from '../../lib';
import { disposeArrays } from '../../lib/graph';
import { resizePositions } from '../../lib/model';
import { imageSizeAdaptation, loadCheckpoint, saveCheckpoint } from '../../lib/weights';
import { temporaryFolder } from './files';
import { smallConfig, smallParameters } from './small_model';

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
      resizePositions(parameters.vision.positions, 12, 5, 'cubic'),
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
    expect(() => imageSizeAdaptation(smallConfig('naflex'), 20)).toThrow(
      'imageSize must be absent for a NaFlex model, got 20',
    );
  });
});

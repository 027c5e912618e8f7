// Images that the device resizes and normalises: the same numbers, on the CPU too, where it is not the default.
import { Siglip2 } from '../../lib/embed';
import type { PreparedImage } from '../../lib/embed/collate';
import { ImageInputs } from '../../lib/embed/image_input';
import { Stages } from '../../lib/embed/stages';
import { TextInputs } from '../../lib/embed/text_input';
import { Towers } from '../../lib/embed/towers';
import { createProcessor } from '../../lib/image';
import { openCheckpoint } from '../../lib/weights';
import { IMAGE_SIZE, modelFolder, picture } from './random_model';

const folder = modelFolder('fixed');

async function load(mostDecoded?: number): Promise<Stages> {
  const checkpoint = await openCheckpoint(folder());
  const { config, preprocessor } = checkpoint;
  return new Stages({
    towers: new Towers(checkpoint, 'float32'),
    images: new ImageInputs(config, createProcessor(preprocessor), 'cpu', mostDecoded),
    texts: new TextInputs(config, undefined),
  });
}

test('pixels and values give the same embeddings, also in one call', async () => {
  const stages = await load();
  using model = await Siglip2.load(folder(), { device: 'cpu' });
  const images = [picture(1), picture(2), picture(3)];
  const expected = await model.embedImages(images);
  const prepared = await Promise.all(images.map((one) => stages.prepareImage('test', one, {})));
  expect(prepared.every((one) => 'pixels' in one)).toBe(true);
  expect(await stages.embedImages(prepared, true)).toEqual(expected);

  const values = await model.stages.prepareImage('test', images[1], {});
  expect('values' in values).toBe(true);
  const mixed = [prepared[0], values, prepared[2]];
  expect(await stages.embedImages(mixed, true)).toEqual(expected);

  const { tokens } = await model.imageTokens(images[0]);
  expect(await stages.imageTokens(prepared[0])).toEqual(tokens);
  stages.dispose();
});

test('decoded images beyond the budget wait in their final size, to the same embedding', async () => {
  const first = picture(1);
  const bytes = first.data.byteLength;
  const stages = await load(bytes);
  const all: PreparedImage[] = [];
  const sizeOf = async (): Promise<number> => {
    const prepared = await stages.prepareImage('test', first, {});
    if (!('pixels' in prepared)) throw new Error('it must be pixels');
    all.push(prepared);
    return prepared.pixels.width * prepared.pixels.height;
  };
  const size = first.width * first.height;
  expect([await sizeOf(), await sizeOf()]).toEqual([size, IMAGE_SIZE ** 2]);
  const [decoded, shrunk] = await stages.embedImages(all, true);
  expect(shrunk).toEqual(decoded);
  // The batch has given the room back.
  expect(await sizeOf()).toBe(size);
  stages.dispose();
});

test('memory of the caller may change once an image is prepared', async () => {
  const stages = await load();
  const { data, ...rest } = picture(2);
  const given = { ...rest, data: Uint8Array.from(data) };
  const prepared = await stages.prepareImage('test', given, {});
  given.data.fill(0);
  const [expected] = await stages.embedImages(
    [await stages.prepareImage('test', { ...rest, data }, {})],
    true,
  );
  expect(await stages.embedImages([prepared], true)).toEqual([expected]);
  stages.dispose();
});

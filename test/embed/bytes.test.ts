// Images that the device normalises: the same numbers, on the CPU too, where it is not the default.
import { Siglip2 } from '../../lib/embed';
import { ImageInputs } from '../../lib/embed/image_input';
import { Stages } from '../../lib/embed/stages';
import { TextInputs } from '../../lib/embed/text_input';
import { Towers } from '../../lib/embed/towers';
import { createProcessor } from '../../lib/image';
import { openCheckpoint } from '../../lib/weights';
import { modelFolder, picture } from './random_model';

const folder = modelFolder('fixed');

async function load(): Promise<Stages> {
  const checkpoint = await openCheckpoint(folder());
  const { config, preprocessor } = checkpoint;
  return new Stages({
    towers: new Towers(checkpoint, 'float32'),
    images: new ImageInputs(config, createProcessor(preprocessor), 'bytes'),
    texts: new TextInputs(config, undefined),
  });
}

test('bytes and values give the same embeddings, also in one call', async () => {
  const stages = await load();
  using model = await Siglip2.load(folder(), { device: 'cpu' });
  const images = [picture(1), picture(2), picture(3)];
  const expected = await model.embedImages(images);
  const prepared = await Promise.all(images.map((one) => stages.prepareImage('test', one, {})));
  expect(prepared.map(({ values }) => values instanceof Uint8Array)).toEqual([true, true, true]);
  expect(await stages.embedImages(prepared, true)).toEqual(expected);

  const { values } = await model.stages.prepareImage('test', images[1], {});
  const mixed = [prepared[0], { ...prepared[1], values }, prepared[2]];
  expect(await stages.embedImages(mixed, true)).toEqual(expected);

  const { tokens } = await model.imageTokens(images[0]);
  expect(await stages.imageTokens(prepared[0])).toEqual(tokens);
  stages.dispose();
});

// Captions and boxes from a folder that holds a model and a decoder.
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Captioner, Siglip2 } from '../../lib/embed';
import {
  captionVocabulary,
  decoderConfig,
  decoderParameters,
  defaultCaptionFormat,
} from '../../lib/model';
import { loadTokenizer } from '../../lib/text';
import { saveDecoder } from '../../lib/weights';
import { randomParameter } from '../nn/evaluate';
import { image, modelFolder, patches, randomConfig, TEXT_LENGTH } from './random_model';

const format = { ...defaultCaptionFormat, boxes: 'loc' } as const;

async function writeDecoder(folder: string, layout: 'fixed' | 'naflex'): Promise<void> {
  const { vocabulary = 0 } = (await loadTokenizer(folder)) ?? {};
  const config = decoderConfig(randomConfig(layout), {
    vocabulary: captionVocabulary(vocabulary, format),
  });
  const parameters = decoderParameters(
    config,
    (spec) => randomParameter(spec).data as Float32Array,
  );
  await saveDecoder(folder, { config, parameters, format });
}

describe.each(['fixed', 'naflex'] as const)('%s', (layout) => {
  const folder = modelFolder(layout);
  const picture = layout === 'fixed' ? image(1) : patches(5, 3, 1);
  let captioner: Captioner;

  beforeAll(async () => {
    await writeDecoder(folder(), layout);
    captioner = await Captioner.load(folder(), { device: 'cpu' });
  });
  afterAll(() => {
    captioner.dispose();
  });

  test('writes the same caption each time, with its probability', async () => {
    const first = await captioner.caption(picture, { beams: 2 });
    expect(first.logProbability).toBeLessThan(0);
    expect(await captioner.caption(picture, { beams: 2 })).toEqual(first);
    const other = layout === 'fixed' ? image(2) : patches(4, 4, 2);
    expect(await captioner.caption(other, { beams: 2 })).not.toEqual(first);
  });

  test('a caption depends on the seed where it is drawn', async () => {
    const drawn = await Promise.all(
      [1, 2].map((seed) => captioner.caption(picture, { temperature: 1, seed })),
    );
    expect(drawn[0]).not.toEqual(drawn[1]);
  });

  test('gives a box, or what was written instead', async () => {
    const { box, text, logProbability } = await captioner.ground(picture, 'cat');
    expect(logProbability).toBeLessThan(0);
    expect(typeof text).toBe('string');
    for (const value of box ?? []) {
      expect(value).toBeGreaterThanOrEqual(0);
      expect(value).toBeLessThanOrEqual(1);
    }
  });

  test('scores captions', async () => {
    const scores = await captioner.scoreCaptions(picture, ['cat', 'cat cat', 'at']);
    expect(scores).toHaveLength(3);
    expect(scores.every((score) => score < 0)).toBe(true);
    const [alone] = await captioner.scoreCaptions(picture, ['cat cat']);
    expect(scores[1]).toBeCloseTo(alone, 3);
  });

  test.each([
    [{ beams: 0 }, /beams must be a positive integer, got 0/],
    [{ temperature: -1 }, /temperature must be/],
    [{ topP: 0 }, /topP must be/],
    [{ beams: 2, temperature: 1 }, /beams must be 1 with a temperature/],
  ])('refuses %j', async (options, message) => {
    await expect(captioner.caption(picture, options)).rejects.toThrow(message);
  });

  test('refuses a text that leaves no room', async () => {
    const text = Array<string>(TEXT_LENGTH).fill('cat').join(' ');
    await expect(captioner.ground(picture, text)).rejects.toThrow(
      /prompt must have fewer than 16 ids/,
    );
  });
});

describe('folders', () => {
  const folder = modelFolder('fixed', 'each');

  test('without a decoder are refused with what to do', async () => {
    await expect(Captioner.load(folder())).rejects.toThrow(
      /must have decoder_config.json and decoder.safetensors, got none\nto do: train a model with its captioning decoder/,
    );
  });

  test('with the decoder of another tokenizer are refused', async () => {
    const config = decoderConfig(randomConfig('fixed'), { vocabulary: 77 });
    const parameters = decoderParameters(
      config,
      (spec) => randomParameter(spec).data as Float32Array,
    );
    await saveDecoder(folder(), { config, parameters });
    await expect(Captioner.load(folder(), { device: 'cpu' })).rejects.toThrow(
      /vocabulary of the decoder must be \d+ as its model and tokenizer say, got 77/,
    );
  });

  test('with half a decoder are refused', async () => {
    await writeDecoder(folder(), 'fixed');
    rmSync(join(folder(), 'decoder.safetensors'));
    await expect(Captioner.load(folder())).rejects.toMatchObject({ code: 'ERR_FILE' });
  });

  test('with a decoder embed as without', async () => {
    await writeDecoder(folder(), 'fixed');
    const model = await Siglip2.load(folder(), { device: 'cpu' });
    expect(await model.embedImages([image(1)])).toHaveLength(1);
    model.dispose();
  });

  test('with a damaged config say which field', async () => {
    await writeDecoder(folder(), 'fixed');
    writeFileSync(join(folder(), 'decoder_config.json'), '{"width": 0}');
    await expect(Captioner.load(folder())).rejects.toThrow(
      /width must be a positive integer, got 0/,
    );
  });
});

// `siglip2 caption` and `siglip2 ground` as a user runs them.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import sharp from 'sharp';
import {
  captionVocabulary,
  decoderConfig,
  decoderParameters,
  defaultCaptionFormat,
} from '../../lib/model';
import { loadTokenizer } from '../../lib/text';
import { saveDecoder } from '../../lib/weights';
import { modelFolder, randomConfig } from '../embed/random_model';
import { randomParameter } from '../nn/evaluate';

const root = join(__dirname, '..', '..');
const folder = modelFolder('fixed');

function siglip2(...args: readonly string[]): { status: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['-r', join(root, 'test', 'typescript.js'), join(root, 'lib', 'cli', 'main.ts'), ...args],
    { cwd: root, encoding: 'utf8' },
  );
  return { status, out: stdout, err: stderr };
}

test('a folder without a decoder is refused; with one, captions and boxes are written', async () => {
  const image = join(folder(), 'red.png');
  await sharp({ create: { width: 40, height: 30, channels: 3, background: '#f00' } })
    .png()
    .toFile(image);
  const refused = siglip2('caption', folder(), image);
  expect([refused.status, refused.err]).toEqual([
    1,
    expect.stringContaining('decoder_config.json'),
  ]);

  const format = { ...defaultCaptionFormat, boxes: 'loc' } as const;
  const { vocabulary = 0 } = (await loadTokenizer(folder())) ?? {};
  const config = decoderConfig(randomConfig('fixed'), {
    vocabulary: captionVocabulary(vocabulary, format),
  });
  const parameters = decoderParameters(
    config,
    (spec) => randomParameter(spec).data as Float32Array,
  );
  await saveDecoder(folder(), { config, parameters, format });

  const written = siglip2('caption', folder(), image, image, '--beams', '2', '--json');
  expect(written.status).toBe(0);
  const lines = written.out.trim().split('\n');
  expect(lines).toHaveLength(2);
  expect(lines[0]).toBe(lines[1]);
  expect(JSON.parse(lines[0])).toEqual({
    image,
    caption: expect.any(String) as string,
    logProbability: expect.any(Number) as number,
  });
  const found = siglip2('ground', folder(), image, 'cat', '--json');
  expect([found.status, found.err]).toEqual([0, '']);
  expect(JSON.parse(found.out)).toMatchObject({ image, text: 'cat' });
  const wrong = siglip2('caption', folder(), image, '--beams', 'many');
  expect([wrong.status, wrong.err]).toEqual([
    1,
    expect.stringContaining('beams must be a positive integer, got NaN'),
  ]);
}, 60_000);

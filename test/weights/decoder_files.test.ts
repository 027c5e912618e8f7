import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DeviceArray } from '../../lib/array';
import { flatten } from '../../lib/graph';
import type { ConstantSource } from '../../lib/graph';
import type { DecoderConfig } from '../../lib/model';
import { decoderParameters, defaultCaptionFormat } from '../../lib/model';
import { hasDecoder, openDecoder, saveDecoder } from '../../lib/weights';
import { randomParameter } from '../nn/evaluate';

const config: DecoderConfig = {
  width: 8,
  depth: 2,
  heads: 2,
  mlpWidth: 12,
  vocabulary: 10,
  length: 5,
  memoryWidth: 6,
  attentionBias: true,
  blockBias: false,
  layerNormEps: 1e-6,
};
const parameters = decoderParameters(config, (spec) => randomParameter(spec).data as Float32Array);

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-decoder-'));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

test('a decoder comes back as it was saved', async () => {
  expect(hasDecoder(folder)).toBe(false);
  await saveDecoder(folder, { config, parameters });
  expect(hasDecoder(folder)).toBe(true);
  expect(readdirSync(folder).sort()).toEqual(['decoder.safetensors', 'decoder_config.json']);
  const opened = await openDecoder(folder);
  expect(opened.config).toEqual(config);
  expect(opened.format).toEqual(defaultCaptionFormat);
  const sources = flatten(opened.parameters);
  expect(sources.map(({ path }) => path)).toEqual(flatten(parameters).map(({ path }) => path));
  for (const [i, { leaf }] of sources.entries()) {
    const array: DeviceArray = await (leaf as ConstantSource).open();
    expect(await array.read()).toEqual(flatten(parameters)[i].leaf);
    array.dispose();
  }
  opened.dispose();
});

test('tensors that are not those of the config are refused', async () => {
  await saveDecoder(folder, { config, parameters });
  const other = mkdtempSync(join(tmpdir(), 'siglip2-decoder-'));
  const wider = { ...config, vocabulary: 11 };
  await saveDecoder(other, {
    config: wider,
    parameters: decoderParameters(wider, (spec) => randomParameter(spec).data as Float32Array),
  });
  const { copyFileSync } = await import('node:fs');
  copyFileSync(join(other, 'decoder_config.json'), join(folder, 'decoder_config.json'));
  rmSync(other, { recursive: true, force: true });
  await expect(openDecoder(folder)).rejects.toThrow(
    /decoder.tokens must have shape \[12, 8\], got \[11, 8\]/,
  );
});

test('an incomplete tree is not saved', async () => {
  const { head, ...rest } = parameters;
  expect(head.weight).toHaveLength(80);
  await expect(
    saveDecoder(folder, { config, parameters: rest as typeof parameters }),
  ).rejects.toThrow(/parameters must have decoder.head.weight/);
  expect(readdirSync(folder)).toEqual([]);
});

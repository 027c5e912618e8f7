// One tower of a model without the other.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Embedder, Siglip2 } from '../../lib';
import { loadAddon } from '../../lib/native/load';
import type { StoredTensor } from '../../lib/weights';
import { openSafetensors, writeSafetensors } from '../../lib/weights';
import { failure } from '../failure';
import { ids, image, modelFolder } from './random_model';
import { expectGivenBack } from '../memory';

const folder = modelFolder('fixed', 'each');

// Leaves only those tensors of the weights whose name does not begin with `tower`.
async function removeTower(tower: 'vision' | 'text'): Promise<void> {
  const path = join(folder(), 'model.safetensors');
  const kept = new Map<string, StoredTensor>();
  const file = openSafetensors(path);
  for (const [name, { shape }] of file.tensors) {
    if (name.startsWith(tower)) continue;
    kept.set(name, { dtype: 'F32', shape, data: await file.read(name) });
  }
  file.dispose();
  await writeSafetensors(path, kept);
}

test('vision alone: its weights only, no tokenizer, the same bits', async () => {
  const both = await Siglip2.load(folder());
  const expected = await both.embedImages([image(1)]);
  const { logitScale, logitBias } = both;
  both.dispose();
  writeFileSync(join(folder(), 'tokenizer.json'), 'damaged');
  await removeTower('text');
  expect((await failure(Siglip2.load(folder()))).code).toBe('ERR_WEIGHTS');
  using model = await Siglip2.load(folder(), { towers: 'vision' });
  expect(await model.embedImages([image(1)])).toEqual(expected);
  expect([model.logitScale, model.logitBias]).toEqual([logitScale, logitBias]);
  const error = await failure(model.embedTexts([ids(1)]));
  expect(error.code).toBe('ERR_ARGUMENT');
  expect(error.message).toMatch(/embedTexts: .*text tower.*towers: 'vision'\nto do: /u);
  expect((await failure(model.classify(image(1), ['cat']))).code).toBe('ERR_ARGUMENT');
  const embedder = new Embedder(model);
  expect((await failure(embedder.embedText(ids(1)))).code).toBe('ERR_ARGUMENT');
  expect(await embedder.embedImage(image(1))).toEqual(expected[0]);
  await embedder.close();
});

test('text alone: its weights only, no preprocessor, the same bits', async () => {
  const both = await Siglip2.load(folder());
  const expected = await both.embedTexts(['cat', ids(3)]);
  both.dispose();
  writeFileSync(join(folder(), 'preprocessor_config.json'), 'damaged');
  await removeTower('vision');
  using model = await Siglip2.load(folder(), { towers: 'text' });
  expect(await model.embedTexts(['cat', ids(3)])).toEqual(expected);
  for (const call of [model.embedImages([image(1)]), model.imageTokens(image(1))]) {
    expect((await failure(call)).message).toMatch(/vision tower.*towers: 'text'/u);
  }
});

test('what is loaded alone is freed as well', async () => {
  const before = loadAddon().memory();
  for (const towers of ['vision', 'text'] as const) {
    const model = await Siglip2.load(folder(), { towers });
    model.dispose();
  }
  expectGivenBack(before);
});

test('options are checked before anything is read', async () => {
  const bad = async (options: object): Promise<string> =>
    (await failure(Siglip2.load(folder(), options))).code;
  expect(await bad({ towers: 'image' })).toBe('ERR_ARGUMENT');
  expect(await bad({ device: 'gpu' })).toBe('ERR_ARGUMENT');
  expect(await bad({ device: 'cuda:99' })).toBe('ERR_DEVICE');
  expect(await bad({ device: 'cuda', precision: 'int8' })).toBe('ERR_ARGUMENT');
  expect(await bad({ lowercase: 'no' })).toBe('ERR_ARGUMENT');
  expect(await bad({ signal: 5 })).toBe('ERR_ARGUMENT');
  expect(await bad({ signal: AbortSignal.abort() })).toBe('ERR_ABORTED');
  expect((await failure(Siglip2.load(5 as never))).code).toBe('ERR_ARGUMENT');
  using model = await Siglip2.load(folder());
  const call = async (options: object): Promise<string> =>
    (await failure(model.embedImages([image(1)], options))).code;
  expect(await call({ batchSize: 0 })).toBe('ERR_ARGUMENT');
  expect(await call({ normalize: 'yes' })).toBe('ERR_ARGUMENT');
  expect(await call({ maxPatches: -1 })).toBe('ERR_ARGUMENT');
  expect(await call({ signal: 'x' })).toBe('ERR_ARGUMENT');
  expect((await failure(model.embedTexts('cat' as never))).message).toMatch(/must be an array/u);
});

test('several models at once', async () => {
  using one = await Siglip2.load(folder());
  using two = await Siglip2.load(folder());
  const [a, b] = await Promise.all([one.embedImages([image(1)]), two.embedImages([image(1)])]);
  expect(a).toEqual(b);
  one.dispose();
  expect(await two.embedImages([image(1)])).toEqual(a);
});

test('dispose during a call: what runs arrives, what has not begun says so', async () => {
  const before = loadAddon().memory();
  const model = await Siglip2.load(folder());
  const short = model.embedImages([image(1)]);
  const long = failure(
    model.embedImages(
      Array.from({ length: 64 }, (_, i) => image(i)),
      { batchSize: 2 },
    ),
  );
  // Both have a batch on the device after a turn of the loop.
  await new Promise((resolve) => setImmediate(resolve));
  model.dispose();
  expect(await short).toHaveLength(1);
  expect((await long).code).toBe('ERR_DISPOSED');
  expectGivenBack(before);
});

test('a model tells where it runs and why', async () => {
  using model = await Siglip2.load(folder(), { device: 'cpu' });
  expect([model.device, model.deviceReason]).toEqual(['cpu', expect.any(String)]);
  // int8 is of the CPU, whatever else there is.
  using narrow = await Siglip2.load(folder(), { precision: 'int8' });
  expect(narrow.device).toBe('cpu');
});

import { readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { StoredTensor } from '../../lib/weights';
import { openWeights, publishTogether, writeSafetensors } from '../../lib/weights';
import { stageWeights } from '../../lib/weights/shards';
import { put, temporaryFolder } from './files';

const folder = temporaryFolder();
const tensor = (...values: number[]): StoredTensor => ({
  dtype: 'F32',
  shape: [values.length],
  data: Float32Array.from(values),
});
const TENSORS = new Map([
  ['b', tensor(4, 5, 6)],
  ['a', tensor(1, 2, 3)],
  ['big', tensor(...Array<number>(20).fill(7))],
  ['c', tensor(8)],
]);
const INDEX = 'model.safetensors.index.json';
const SECOND = 'model-00002-of-00003.safetensors';

async function write(maxShardBytes: number): Promise<void> {
  await publishTogether(folder(), async (files) => {
    await stageWeights(files, TENSORS, {}, maxShardBytes);
    return [];
  });
}

function index(): { metadata: { total_size: number }; weight_map: Record<string, string> } {
  return JSON.parse(readFileSync(join(folder(), INDEX), 'utf8')) as ReturnType<typeof index>;
}

test('shards fill up in the order of names; a large tensor has one of its own', async () => {
  await write(24);
  expect(index()).toEqual({
    metadata: { total_size: 4 * 27 },
    weight_map: {
      a: 'model-00001-of-00003.safetensors',
      b: 'model-00001-of-00003.safetensors',
      big: SECOND,
      c: 'model-00003-of-00003.safetensors',
    },
  });
  const weights = openWeights(folder());
  expect([...weights.tensors.keys()].sort()).toEqual(['a', 'b', 'big', 'c']);
  expect(await weights.read('b')).toEqual(Float32Array.of(4, 5, 6));
  expect(await weights.read('c')).toEqual(Float32Array.of(8));
  await expect(weights.load('d')).rejects.toThrow('tensors must include d, got 4 others');
  weights.dispose();
  await expect(weights.load('a')).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
});

test('one file when everything fits', async () => {
  await write(1000);
  const weights = openWeights(folder());
  expect(weights.source).toBe(join(folder(), 'model.safetensors'));
  weights.dispose();
});

test('a missing shard', async () => {
  await write(24);
  rmSync(join(folder(), SECOND));
  expect(() => openWeights(folder())).toThrow(
    `all 3 shards must lie beside it, got 1 missing: ${SECOND}`,
  );
});

test('a tensor in another shard than the index says', async () => {
  await write(24);
  const { weight_map } = index();
  put(folder(), INDEX, JSON.stringify({ weight_map: { ...weight_map, b: SECOND } }));
  expect(() => openWeights(folder())).toThrow(
    `b must be in ${SECOND}, got model-00001-of-00003.safetensors`,
  );
});

test('a tensor in no shard, and one that no index lists', async () => {
  await write(24);
  const { weight_map } = index();
  put(folder(), INDEX, JSON.stringify({ weight_map: { ...weight_map, d: SECOND } }));
  expect(() => openWeights(folder())).toThrow(`d must be in ${SECOND}, got no shard that has it`);
  put(folder(), INDEX, JSON.stringify({ weight_map: { ...weight_map, a: undefined } }));
  expect(() => openWeights(folder())).toThrow('a, which is in model-00001-of-00003.safetensors');
});

test('shards of two saves', async () => {
  await write(24);
  await writeSafetensors(join(folder(), 'x.safetensors'), new Map([['a', tensor(1)]]));
  renameSync(join(folder(), 'x.safetensors'), join(folder(), SECOND));
  expect(() => openWeights(folder())).toThrow('index and shards are of different versions');
});

test.each([
  ['no JSON', '{'],
  ['no map', '{}'],
  ['an empty map', '{"weight_map": {}}'],
  ['a name that is none', '{"weight_map": {"a": 1}}'],
  ['a path', '{"weight_map": {"a": "../model.safetensors"}}'],
  ['an absolute path', '{"weight_map": {"a": "/tmp/model.safetensors"}}'],
  ['a Windows path', '{"weight_map": {"a": "..\\\\model.safetensors"}}'],
  ['another kind of file', '{"weight_map": {"a": "pytorch_model.bin"}}'],
])('an index with %s', (_, content) => {
  const path = put(folder(), INDEX, content);
  const open = (): unknown => openWeights(path);
  expect(open).toThrow(expect.objectContaining({ code: 'ERR_WEIGHTS' }) as Error);
  expect(open).toThrow(path);
});

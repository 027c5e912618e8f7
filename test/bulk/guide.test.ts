// The commands of docs/guides/bulk.md, run as they stand.
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeModel } from '../embed/random_model';
import { folderForAll, golden, picture, put, putPictures, putTar } from '../corpus/corpus_files';

const root = join(__dirname, '..', '..');
const folder = folderForAll();
const at = (...names: string[]): string => join(folder(), ...names);

beforeAll(async () => {
  await writeModel(at('model'), 'fixed');
  await putPictures(at('photos'), 20);
  put(at('photos', 'torn.jpg'), 'torn');
  for (const i of [0, 1, 2]) {
    await putTar(at('shards', `train-00${String(i)}.tar`), [['0.png', await picture(i)]]);
  }
  put(at('images', 'a.png'), await picture(1));
  put(at('pairs.jsonl'), '{"file":"images/a.png","caption":"a cat"}\n');
  cpSync(join(golden, 'hugging_face_zstd.parquet'), at('data.parquet'));
});

test('every command of the guide runs and leaves what it says', () => {
  const guide = readFileSync(join(root, 'docs', 'guides', 'bulk.md'), 'utf8');
  const commands = [...guide.matchAll(/^```sh\n([^]*?)^```$/gmu)].map((match) => match[1]);
  expect(commands.length).toBeGreaterThan(4);
  const main = `'${process.execPath}' -r '${root}/test/typescript.js' '${root}/lib/cli/main.ts'`;
  const script = `set -euo pipefail\nsiglip2() { ${main} "$@"; }\n${commands.join('')}`;
  const { status, stderr } = spawnSync('bash', ['-c', script], { cwd: folder(), encoding: 'utf8' });
  expect([status, stderr]).toEqual([0, expect.not.stringMatching(/\n\s+at /)]);
  for (const name of [
    'photos.npy',
    'photos.ids.jsonl',
    'photos.failures.jsonl',
    'photos.npy.manifest.json',
    'photos.parquet',
    'train.npy',
    'pairs.parquet',
    'captions.npy',
    'half.safetensors',
    'all.npy',
    'k8s.npy.shard-1-of-2',
  ]) {
    expect([name, existsSync(at(name))]).toEqual([name, true]);
  }
  // Three shards and one process: the parts were of another size, the vectors are the same.
  expect(readFileSync(at('all.npy')).length).toBe(readFileSync(at('photos.npy')).length);
}, 240_000);

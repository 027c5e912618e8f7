// Where a model is found: folders, the shared cache, the hub.
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createHash } from 'node:crypto';
import { dirname, join } from 'node:path';
import type { SiglipError } from '../../../lib';
import { resolveCheckpoint, Siglip2 } from '../../../lib';
import { failure } from '../../failure';
import { temporaryFolder } from '../files';
import { HUB_ID, modelFiles, withoutHubVariables } from './hub_models';
import { HubServer } from './hub_server';

const folder = temporaryFolder();
withoutHubVariables();

let files: Map<string, Buffer>;

beforeAll(async () => {
  files = await modelFiles();
});

beforeEach(() => {
  process.env['HF_HOME'] = join(folder(), 'home');
  process.env['HF_HUB_CACHE'] = join(folder(), 'cache');
  // Nothing of these tests may reach a network.
  process.env['HF_ENDPOINT'] = 'http://127.0.0.1:1';
});

const COMMIT = '0123456789abcdef0123456789abcdef01234567';

/** Lays a cache out by the documented rules of huggingface_hub. */
function layOut(names: readonly string[], revision = 'main', commit = COMMIT): string {
  const repository = join(folder(), 'cache', `models--${HUB_ID.replace('/', '--')}`);
  const snapshot = join(repository, 'snapshots', commit);
  for (const made of [snapshot, join(repository, 'blobs'), join(repository, 'refs')]) {
    mkdirSync(made, { recursive: true });
  }
  for (const name of names) {
    const data = files.get(name) ?? Buffer.alloc(0);
    const oid = name.endsWith('.safetensors')
      ? createHash('sha256').update(data).digest('hex')
      : createHash('sha1')
          .update(`blob ${String(data.length)}\0`)
          .update(data)
          .digest('hex');
    writeFileSync(join(repository, 'blobs', oid), data);
    symlinkSync(join('..', '..', 'blobs', oid), join(snapshot, name));
  }
  const ref = join(repository, 'refs', revision);
  mkdirSync(dirname(ref), { recursive: true });
  writeFileSync(ref, commit);
  return snapshot;
}

const ESSENTIAL = ['config.json', 'preprocessor_config.json', 'model.safetensors'];

test('a folder wins, also one that is named like a hub id', async () => {
  const before = process.cwd();
  process.chdir(folder());
  try {
    mkdirSync(HUB_ID, { recursive: true });
    for (const [name, data] of files) writeFileSync(join(HUB_ID, name), data);
    using model = await Siglip2.load(HUB_ID);
    expect(model.source).toEqual({ path: HUB_ID });
  } finally {
    process.chdir(before);
  }
});

test('a snapshot given as a folder says its commit', async () => {
  const path = layOut(ESSENTIAL);
  expect(await resolveCheckpoint(path)).toEqual({ path, revision: COMMIT });
});

test('a cache of Python: by branch, by slashed reference, by commit; without a network', async () => {
  files.set('tokenizer.json', Buffer.from('{}'));
  const path = layOut([...ESSENTIAL, 'tokenizer.json']);
  const expected = { path, revision: COMMIT };
  expect(await resolveCheckpoint(HUB_ID)).toEqual(expected);
  expect(await resolveCheckpoint(HUB_ID, { offline: true })).toEqual(expected);
  expect(await resolveCheckpoint(`${HUB_ID}@${COMMIT}`)).toEqual(expected);
  rmSync(join(folder(), 'cache'), { recursive: true });
  layOut([...ESSENTIAL, 'tokenizer.json'], 'refs/pr/1');
  expect(await resolveCheckpoint(HUB_ID, { revision: 'refs/pr/1' })).toEqual(expected);
  expect((await failure(resolveCheckpoint(HUB_ID))).code).toBe('ERR_NETWORK');
  files.delete('tokenizer.json');
});

test('a read-only cache serves', async () => {
  files.set('tokenizer.json', Buffer.from('{}'));
  const path = layOut([...ESSENTIAL, 'tokenizer.json']);
  files.delete('tokenizer.json');
  const folders = readdirSync(join(folder(), 'cache'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name));
  for (const each of folders) chmodSync(each, 0o500);
  try {
    expect(await resolveCheckpoint(HUB_ID)).toEqual({ path, revision: COMMIT });
  } finally {
    for (const each of folders) chmodSync(each, 0o700);
  }
});

test('what a snapshot lacks is fetched; nobody there, and it is taken as it is', async () => {
  const path = layOut(ESSENTIAL);
  // Whether the repository has a tokenizer is not known.
  expect(await resolveCheckpoint(HUB_ID)).toEqual({ path, revision: COMMIT });
  const server = await HubServer.start();
  try {
    const commit = server.commit(HUB_ID, files);
    process.env['HF_ENDPOINT'] = server.endpoint;
    const found = await resolveCheckpoint(HUB_ID);
    expect(found.revision).toBe(commit);
    // The weights were in the cache, under another commit.
    expect(server.bodiesOf('model.safetensors')).toEqual([]);
    server.seen.length = 0;
    expect(await resolveCheckpoint(HUB_ID)).toEqual(found);
    expect(server.seen).toEqual([]);
  } finally {
    await server.stop();
  }
});

test.each(['config.json', 'preprocessor_config.json', 'model.safetensors'])(
  'a snapshot without %s, or with a dead link in its place, does not do',
  async (missing) => {
    const path = layOut(ESSENTIAL.filter((name) => name !== missing));
    const find = (): Promise<SiglipError> => failure(resolveCheckpoint(HUB_ID, { offline: true }));
    const error = await find();
    expect(error.code).toBe('ERR_NETWORK');
    expect(error.message).toMatch(`one without ${missing}`);
    symlinkSync('../../blobs/gone', join(path, missing));
    expect((await find()).message).toMatch(`one without ${missing}`);
  },
);

test('offline and nothing here: what was tried, and how to bring the files by hand', async () => {
  process.env['HF_HUB_OFFLINE'] = '1';
  const error = await failure(Siglip2.load(HUB_ID));
  expect(error.code).toBe('ERR_NETWORK');
  expect(error.message).toMatch(
    /Siglip2\.load: google.* must be in the cache .*HF_HUB_OFFLINE is set/u,
  );
  expect(error.message).toMatch(/\ntried: .*models--google--siglip2-tiny-patch4-14\n/u);
  expect(error.message).toMatch(/\nto do: .*siglip2 download google[^]*by hand/u);
  expect(existsSync(join(folder(), 'cache'))).toBe(false);
});

test('a branch that is here keeps its commit until it is downloaded again', async () => {
  const server = await HubServer.start();
  try {
    process.env['HF_ENDPOINT'] = server.endpoint;
    const old = server.commit(HUB_ID, files);
    using model = await Siglip2.load(HUB_ID);
    expect(model.source.revision).toBe(old);
    const young = server.commit(HUB_ID, new Map(files).set('README.md', Buffer.from('new')));
    expect((await resolveCheckpoint(HUB_ID)).revision).toBe(old);
    expect((await resolveCheckpoint(HUB_ID, { revision: young })).revision).toBe(young);
  } finally {
    await server.stop();
  }
});

test('a file is not a model', async () => {
  const path = join(folder(), 'model.safetensors');
  writeFileSync(path, '');
  const error = await failure(Siglip2.load(path));
  expect([error.code, error.message]).toEqual(['ERR_FILE', expect.stringMatching(/is a file/u)]);
});

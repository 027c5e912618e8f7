// Downloading from a hub that is on this machine, on good lines and bad ones.
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { DownloadProgress, HubOptions } from '../../../lib';
import { downloadCheckpoint, Siglip2 } from '../../../lib';
import { failure } from '../../failure';
import { temporaryFolder } from '../files';
import { HUB_ID, modelFiles, withoutHubVariables } from './hub_models';
import type { Fault, Seen } from './hub_server';
import { HubServer } from './hub_server';

const root = join(__dirname, '..', '..', '..');
const cacheDir = temporaryFolder();
withoutHubVariables();

let server: HubServer;
let files: Map<string, Buffer>;
let commit = '';

beforeAll(async () => {
  files = await modelFiles();
});

beforeEach(async () => {
  process.env['HF_HOME'] = cacheDir();
  server = await HubServer.start();
  commit = server.commit(HUB_ID, files);
});

afterEach(() => server.stop());

const WEIGHTS = 'model.safetensors';
const options = (more: HubOptions = {}): HubOptions => ({
  cacheDir: cacheDir(),
  endpoint: server.endpoint,
  ...more,
});
const repository = (): string => join(cacheDir(), `models--${HUB_ID.replace('/', '--')}`);
const snapshot = (): string => join(repository(), 'snapshots', commit);
const blobs = (): string[] => readdirSync(join(repository(), 'blobs'));
const weightsSize = (): number => files.get(WEIGHTS)?.length ?? 0;
const isWeights = ({ server: where, method }: Seen): boolean => where === 'cdn' && method === 'GET';

/** Waits for something that happens while work is under way; the work ending first is a failure. */
async function during(work: Promise<unknown>, happened: () => boolean): Promise<void> {
  let ended = false;
  const end = (): void => {
    ended = true;
  };
  work.then(end, end);
  while (!happened()) {
    if (ended) throw new Error('the work ended first');
    await sleep(5);
  }
}

/** The first answers that fit go wrong, one fault each. */
function faults(fits: (request: Seen) => boolean, ...list: readonly Fault[]): void {
  const left = [...list];
  server.fault = (request) => (fits(request) ? left.shift() : undefined);
}

function expectSnapshot(names = [...files.keys()].filter((name) => isNeeded(name))): void {
  expect(readdirSync(snapshot()).sort()).toEqual(names.sort());
  for (const name of names) {
    expect(readFileSync(join(snapshot(), name)).equals(files.get(name) ?? Buffer.alloc(0))).toBe(
      true,
    );
  }
  expect(blobs().filter((name) => name.includes('incomplete'))).toEqual([]);
  expect(locks()).toEqual([]);
}

function isNeeded(name: string): boolean {
  return /\.json$|\.safetensors$/u.test(name);
}

function locks(): string[] {
  const folder = join(cacheDir(), '.locks');
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.includes('siglip2'))
    .filter((name) => statSync(join(folder, name)).isFile());
}

describe('a good line', () => {
  test('exactly the files a model needs, laid out as Python does', async () => {
    const result = await downloadCheckpoint(HUB_ID, options());
    expect(result).toMatchObject({ path: snapshot(), revision: commit });
    expectSnapshot();
    for (const name of readdirSync(snapshot())) {
      const link = readlinkSync(join(snapshot(), name));
      expect(link).toMatch(/^\.\.\/\.\.\/blobs\/(?:[0-9a-f]{40}|[0-9a-f]{64})$/u);
    }
    expect(readFileSync(join(repository(), 'refs', 'main'), 'utf8')).toBe(commit);
    expect(existsSync(join(repository(), '.no_exist', commit, 'tokenizer.json'))).toBe(true);
    expect(result.files.map(({ name, fetched }) => [name, fetched])).toEqual(
      expect.arrayContaining([[WEIGHTS, true]]),
    );
    expect(server.seen.some(({ path }) => path.includes('pytorch_model.bin'))).toBe(false);
  });

  test('asked again, it fetches nothing', async () => {
    await downloadCheckpoint(HUB_ID, options());
    server.seen.length = 0;
    const { files: again } = await downloadCheckpoint(HUB_ID, options());
    expect(again.some(({ fetched }) => fetched)).toBe(false);
    expect(server.seen.filter(({ path }) => path.includes('/resolve/'))).toEqual([]);
  });

  test('a new commit: only what changed, and the old snapshot stays', async () => {
    await downloadCheckpoint(HUB_ID, options());
    const old = snapshot();
    const changed = new Map(files).set('tokenizer_config.json', Buffer.from('{ "a": 1 }'));
    commit = server.commit(HUB_ID, changed);
    const result = await downloadCheckpoint(HUB_ID, options());
    expect(result.files.filter(({ fetched }) => fetched).map(({ name }) => name)).toEqual([
      'tokenizer_config.json',
    ]);
    expect(readFileSync(join(repository(), 'refs', 'main'), 'utf8')).toBe(commit);
    expect(readFileSync(join(old, 'tokenizer_config.json'), 'utf8')).toBe('{}\n');
  });

  test('shards by their index', async () => {
    const sharded = await modelFiles({ maxShardBytes: 10_000 });
    const shards = [...sharded.keys()].filter((name) => /model-\d/u.test(name));
    expect(shards.length).toBeGreaterThan(1);
    sharded.set('model-00009-of-00009.safetensors', Buffer.from('of another model'));
    commit = server.commit(HUB_ID, sharded);
    const { files: listed, path } = await downloadCheckpoint(HUB_ID, options());
    expect(listed.map(({ name }) => name)).toEqual(expect.arrayContaining(shards));
    expect(existsSync(join(path, 'model-00009-of-00009.safetensors'))).toBe(false);
    (await Siglip2.load(path)).dispose();
  });

  test('an index that lists what is not there, or what is elsewhere', async () => {
    const sharded = await modelFiles({ maxShardBytes: 10_000 });
    sharded.delete([...sharded.keys()].find((name) => name.startsWith('model-00002')) ?? '');
    server.commit(HUB_ID, sharded);
    expect(await failure(downloadCheckpoint(HUB_ID, options()))).toMatchObject({
      code: 'ERR_WEIGHTS',
      message: expect.stringMatching(/must hold model-00002/u) as string,
    });
    const index = Buffer.from('{"weight_map":{"a":"../../x.safetensors"}}');
    server.commit(HUB_ID, new Map(sharded).set('model.safetensors.index.json', index));
    const error = await failure(downloadCheckpoint(HUB_ID, options()));
    expect([error.code, error.message]).toEqual([
      'ERR_WEIGHTS',
      expect.stringMatching(/beside the index/u),
    ]);
  });

  test('progress counts every byte once and ends at the total', async () => {
    const seen: DownloadProgress[] = [];
    faults(isWeights, { slowMs: 20 });
    await downloadCheckpoint(HUB_ID, options({ onProgress: (progress) => seen.push(progress) }));
    const total = [...files].reduce(
      (n, [name, { length }]) => n + (isNeeded(name) ? length : 0),
      0,
    );
    expect(new Set(seen.map((progress) => progress.total))).toEqual(new Set([total]));
    const bytes = seen.map((progress) => progress.bytes);
    expect(bytes).toEqual([...bytes].sort((a, b) => a - b));
    expect(bytes.at(-1)).toBe(total);
    expect(seen.filter(({ file }) => file === WEIGHTS).length).toBeGreaterThan(2);
    expect(Math.max(...seen.map(({ rate }) => rate))).toBeGreaterThan(0);
  });

  test('a renamed repository is followed', async () => {
    server.rename('google/old-name', HUB_ID);
    const { revision } = await downloadCheckpoint('google/old-name', options());
    expect(revision).toBe(commit);
  });

  test('a file system without links gets files', async () => {
    process.env['HF_HUB_DISABLE_SYMLINKS'] = '1';
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
    expect(lstatSync(join(snapshot(), WEIGHTS)).isSymbolicLink()).toBe(false);
    (await Siglip2.load(HUB_ID, options({ offline: true }))).dispose();
  });
});

describe('the token', () => {
  test('goes to the endpoint and never to where it redirects', async () => {
    server.restrict(HUB_ID, 'private');
    await downloadCheckpoint(HUB_ID, options({ token: server.token }));
    const [hub, cdn] = ['hub', 'cdn'].map((name) => server.seen.filter((s) => s.server === name));
    expect(hub.length).toBeGreaterThan(3);
    expect(cdn.length).toBe(1);
    expect(new Set(hub.map(({ headers }) => headers.authorization))).toEqual(
      new Set([`Bearer ${server.token}`]),
    );
    expect(cdn.map(({ headers }) => headers.authorization)).toEqual([undefined]);
  });

  test('is not sent to the next page on another origin', async () => {
    server.fault = ({ path }) =>
      path.includes('/tree/') && path.includes('cursor=3')
        ? { status: 302, headers: { location: `${server.cdnEndpoint}/elsewhere` } }
        : undefined;
    await failure(downloadCheckpoint(HUB_ID, options({ token: server.token })));
    const cdn = server.seen.filter((seen) => seen.server === 'cdn');
    expect(cdn.map(({ path, headers }) => [path, headers.authorization])).toEqual([
      ['/elsewhere', undefined],
    ]);
  });
});

describe('a bad line', () => {
  test('a connection that closes in the middle is continued', async () => {
    faults(isWeights, { cutAfter: 5000 }, { cutAfter: 3000 });
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
    expect(server.bodiesOf(WEIGHTS).map(({ headers }) => headers.range)).toEqual([
      undefined,
      'bytes=5000-',
      'bytes=8000-',
    ]);
  });

  test('silence is given up and continued', async () => {
    process.env['HF_HUB_DOWNLOAD_TIMEOUT'] = '0.5';
    faults(isWeights, { stallAfter: 4096 });
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
    expect(server.bodiesOf(WEIGHTS).at(-1)?.headers.range).toBe('bytes=4096-');
  });

  test.each<[string, Fault]>([
    ['the whole file in answer to a range', { ignoreRange: true }],
    ['another range', { shiftRange: true }],
    ['status 416', { status: 416 }],
  ])('%s starts anew', async (_, fault) => {
    faults(isWeights, { cutAfter: 5000 }, fault);
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
  });

  test.each([
    [429, '0'],
    [503, '0'],
    [503, 'Thu, 01 Jan 1970 00:00:00 GMT'],
    [500, undefined],
  ])('status %d with Retry-After %s is repeated', async (status, after) => {
    const headers: Record<string, string> = after === undefined ? {} : { 'retry-after': after };
    faults(isWeights, { status, headers });
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
    faults(({ path }) => path.includes('/revision/'), { status, headers });
    await downloadCheckpoint(HUB_ID, options());
  });

  test('a server that never recovers', async () => {
    server.fault = () => ({ status: 429, headers: { 'retry-after': '0' } });
    expect(await failure(downloadCheckpoint(HUB_ID, options()))).toMatchObject({
      code: 'ERR_NETWORK',
      message: expect.stringMatching(/status 429 again and again\n.*HF_TOKEN/u) as string,
    });
    expect(server.seen).toHaveLength(5);
    server.fault = () => ({ status: 503, headers: { 'retry-after': '100000' } });
    server.seen.length = 0;
    await failure(downloadCheckpoint(HUB_ID, options()));
    expect(server.seen).toHaveLength(1);
  });

  test('a body that always ends at the same byte', async () => {
    server.fault = (request) => (isWeights(request) ? { cutAfter: 2000, ignoreRange: true } : {});
    expect(await failure(downloadCheckpoint(HUB_ID, options()))).toMatchObject({
      code: 'ERR_NETWORK',
      message: expect.stringMatching(
        /must arrive whole, got [^]*what was fetched is kept/u,
      ) as string,
    });
    expect(existsSync(join(snapshot(), WEIGHTS))).toBe(false);
    expect(existsSync(join(repository(), 'refs', 'main'))).toBe(false);
    expect(locks()).toEqual([]);
  });

  test('a body whose length is a lie is cut off too', async () => {
    faults(isWeights, { shorter: 100 });
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
    expect(server.bodiesOf(WEIGHTS)[1].headers.range).toBe(`bytes=${String(weightsSize() - 100)}-`);
  });

  test('too many bytes', async () => {
    server.fault = (request) => (isWeights(request) ? { longer: 10 } : {});
    expect(await failure(downloadCheckpoint(HUB_ID, options()))).toMatchObject({
      code: 'ERR_NETWORK',
      message: expect.stringMatching(/must have \d+ bytes, got more/u) as string,
    });
  });

  test.each([
    [WEIGHTS, /SHA-256/u],
    ['config.json', /git hash/u],
  ])('a damaged %s is refused and removed', async (name, kind) => {
    server.fault = (request) =>
      request.path.endsWith(`/${name}`) || (name === WEIGHTS && isWeights(request))
        ? { damaged: true }
        : undefined;
    const error = await failure(downloadCheckpoint(HUB_ID, options()));
    expect(error).toMatchObject({ code: 'ERR_NETWORK' });
    expect(error.message).toMatch(kind);
    expect(existsSync(join(snapshot(), name))).toBe(false);
    expect(blobs().filter((blob) => blob.includes('incomplete') && blob.length > 90)).toEqual([]);
    server.fault = () => undefined;
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
  });

  test('the beginning of an earlier attempt is damaged: fetched anew, once', async () => {
    faults(isWeights, { cutAfter: 5000 }, { status: 404 });
    await failure(downloadCheckpoint(HUB_ID, options()));
    const [partial] = blobs().filter((name) => name.endsWith('.siglip2.incomplete'));
    const path = join(repository(), 'blobs', partial);
    expect(statSync(path).size).toBe(5000);
    writeFileSync(path, Buffer.alloc(5000, 7));
    server.seen.length = 0;
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
    expect(server.bodiesOf(WEIGHTS).map(({ headers }) => headers.range)).toEqual([
      'bytes=5000-',
      undefined,
    ]);
  });

  test('a partial file that is longer than the file', async () => {
    faults(isWeights, { cutAfter: 5000 }, { status: 404 });
    await failure(downloadCheckpoint(HUB_ID, options()));
    const [partial] = blobs().filter((name) => name.endsWith('.siglip2.incomplete'));
    writeFileSync(join(repository(), 'blobs', partial), Buffer.alloc(weightsSize() + 1));
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
  });

  test('the hub names other content than it listed', async () => {
    faults(({ path }) => path.endsWith('/config.json'), {
      status: 200,
      headers: { etag: `"${'0'.repeat(40)}"` },
    });
    expect((await failure(downloadCheckpoint(HUB_ID, options()))).message).toMatch(
      /content must be [0-9a-f]{40} as listed, got 0{40}/u,
    );
  });

  test('redirects without end', async () => {
    server.fault = () => ({ status: 302, headers: { location: '/api/models/a/b/revision/main' } });
    expect((await failure(downloadCheckpoint(HUB_ID, options()))).message).toMatch(/10 redirects/u);
  });

  test('a login page in the place of the hub', async () => {
    faults(() => true, { status: 200, headers: { 'content-type': 'text/html' } });
    expect(await failure(downloadCheckpoint(HUB_ID, options()))).toMatchObject({
      code: 'ERR_NETWORK',
      message: expect.stringMatching(/answer about .* as the hub does/u) as string,
    });
  });
});

describe('stopping', () => {
  test('a signal ends it, the next call continues', async () => {
    const stop = new AbortController();
    faults(isWeights, { slowMs: 20 });
    const work = failure(downloadCheckpoint(HUB_ID, options({ signal: stop.signal })));
    await during(work, () => server.bodiesOf(WEIGHTS).length > 0);
    await sleep(100);
    stop.abort();
    expect((await work).code).toBe('ERR_ABORTED');
    expect(locks()).toEqual([]);
    await downloadCheckpoint(HUB_ID, options());
    expectSnapshot();
    expect(server.bodiesOf(WEIGHTS).at(-1)?.headers.range).toMatch(/^bytes=[1-9]\d*-$/u);
    const error = await failure(
      downloadCheckpoint(HUB_ID, options({ signal: AbortSignal.abort() })),
    );
    expect(error.code).toBe('ERR_ABORTED');
  });

  test('a process killed in the middle: the next one continues, and the model loads', async () => {
    faults(isWeights, { slowMs: 30 });
    const child = spawn(process.execPath, childArguments(), {
      env: childEnvironment(),
      stdio: 'inherit',
    });
    const exited = once(child, 'exit');
    const partial = (): number =>
      existsSync(join(repository(), 'blobs'))
        ? blobs()
            .filter((name) => name.length > 64 && name.endsWith('.siglip2.incomplete'))
            .reduce((n, name) => n + statSync(join(repository(), 'blobs', name)).size, 0)
        : 0;
    await during(exited, () => partial() >= 3000);
    child.kill('SIGKILL');
    await exited;
    const here = partial();
    expect(here).toBeLessThan(weightsSize());
    // Of the weights; under load also of smaller files that were under way.
    expect(locks().length).toBeGreaterThan(0);
    server.seen.length = 0;
    const model = await Siglip2.load(HUB_ID, options());
    expect(server.bodiesOf(WEIGHTS).map(({ headers }) => headers.range)).toEqual([
      `bytes=${String(here)}-`,
    ]);
    expect(model.source).toEqual({ path: snapshot(), revision: commit });
    expect(await model.embedTexts([{ inputIds: Int32Array.of(1, 2, 3, 4, 5) }])).toHaveLength(1);
    model.dispose();
    expectSnapshot();
  });

  test('three processes at once fetch every file once', async () => {
    server.fault = (request) => (isWeights(request) ? { slowMs: 30 } : undefined);
    const run = promisify(execFile);
    const outputs = await Promise.all(
      [1, 2, 3].map(() => run(process.execPath, childArguments(), { env: childEnvironment() })),
    );
    for (const { stdout } of outputs) {
      expect(JSON.parse(stdout)).toEqual({ path: snapshot(), revision: commit });
    }
    expectSnapshot();
    expect(server.bodiesOf(WEIGHTS)).toHaveLength(1);
  });

  test('three calls of one process fetch every file once', async () => {
    await Promise.all([1, 2, 3].map(() => downloadCheckpoint(HUB_ID, options())));
    expectSnapshot();
    expect(server.bodiesOf(WEIGHTS)).toHaveLength(1);
  });

  test('a lock nobody keeps alive is taken over; a living one is waited for', async () => {
    const lock = lockOfWeights();
    mkdirSync(dirname(lock), { recursive: true });
    writeFileSync(lock, JSON.stringify({ pid: 1, host: 'elsewhere', nonce: 'x' }));
    let done = false;
    const work = downloadCheckpoint(HUB_ID, options()).then(() => (done = true));
    await during(work, () => server.bodiesOf('config.json').length > 0);
    await sleep(600);
    expect(done).toBe(false);
    expect(server.bodiesOf(WEIGHTS)).toEqual([]);
    const longAgo = new Date(Date.now() - 60_000);
    utimesSync(lock, longAgo, longAgo);
    await work;
    expectSnapshot();
  });

  test('a lock taken away in the middle: the file is read again before it gets its name', async () => {
    const lock = lockOfWeights();
    faults(isWeights, { slowMs: 20 });
    const work = downloadCheckpoint(HUB_ID, options());
    await during(work, () => server.sent > 6000);
    // Somebody else wrote something else: the bytes that came over the line were right.
    writeFileSync(lock, JSON.stringify({ pid: process.pid, host: hostname(), nonce: 'other' }));
    const partial = join(repository(), 'blobs', `${oidOfWeights()}.siglip2.incomplete`);
    const bytes = readFileSync(partial);
    writeFileSync(partial, Buffer.concat([Buffer.alloc(100, 1), bytes.subarray(100)]), {
      flag: 'r+',
    });
    expect(await failure(work)).toMatchObject({
      code: 'ERR_NETWORK',
      message: expect.stringMatching(/SHA-256 of the \d+ bytes must be/u) as string,
    });
    expect(existsSync(join(snapshot(), WEIGHTS))).toBe(false);
  });
});

describe('refusals', () => {
  const cases: [string, () => string, string, RegExp][] = [
    [
      'a repository that does not exist',
      () => 'google/siglip9',
      'ERR_NETWORK',
      /google\/siglip9 must be a repository you can read, got status 401 .*not found or no access\nto do: check the name; .*set HF_TOKEN/u,
    ],
    [
      'a private one without a token',
      () => (server.restrict(HUB_ID, 'private'), HUB_ID),
      'ERR_NETWORK',
      /not found or no access\n.*HF_TOKEN/u,
    ],
    [
      'a gated one',
      () => (server.restrict(HUB_ID, 'gated'), HUB_ID),
      'ERR_NETWORK',
      /status 403\nto do: the repository is gated: accept its conditions on http/u,
    ],
    [
      'a revision that does not exist',
      () => `${HUB_ID}@v9`,
      'ERR_NETWORK',
      /revision of .* must exist/u,
    ],
    [
      'weights in other formats only',
      () => {
        const others = new Map(files);
        others.delete(WEIGHTS);
        server.commit(HUB_ID, others);
        return HUB_ID;
      },
      'ERR_WEIGHTS',
      /must hold model\.safetensors or .*got pytorch_model\.bin\nto do: .*convert/u,
    ],
    [
      'weights of big_vision',
      () => {
        server.commit(HUB_ID, new Map([['siglip2_b16.npz', Buffer.from('npz')]]));
        return HUB_ID;
      },
      'ERR_WEIGHTS',
      /got siglip2_b16\.npz\nto do: .*-jax/u,
    ],
    [
      'no config',
      () => {
        server.commit(HUB_ID, new Map([[WEIGHTS, Buffer.from('x')]]));
        return HUB_ID;
      },
      'ERR_CONFIG',
      /must hold config\.json/u,
    ],
  ];
  test.each(cases)('%s', async (_, prepare, code, message) => {
    const error = await failure(downloadCheckpoint(prepare(), options()));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
  });

  test('a wrong token is said to be one, and is not shown', async () => {
    server.restrict(HUB_ID, 'private');
    const error = await failure(downloadCheckpoint(HUB_ID, options({ token: 'hf_wrong' })));
    expect(error.message).toMatch(/that the token from the option token is valid/u);
    expect(error.message).not.toMatch(/hf_wrong/u);
  });

  test('nobody at the endpoint: named at once, with the way by hand', async () => {
    const { endpoint } = server;
    await server.stop();
    const error = await failure(downloadCheckpoint(HUB_ID, { endpoint, cacheDir: cacheDir() }));
    expect(error.code).toBe('ERR_NETWORK');
    expect(error.message).toMatch(/must be reachable, got .*ECONNREFUSED.*\n.*\n.*by hand/u);
    server = await HubServer.start();
  });

  test('a name that no DNS knows', async () => {
    const endpoint = 'http://hub.invalid';
    const error = await failure(downloadCheckpoint(HUB_ID, options({ endpoint })));
    expect(error.code).toBe('ERR_NETWORK');
    expect(error.message).toMatch(/hub\.invalid.*must be reachable[^]*name of the endpoint/u);
  });

  test('a disk without room', async () => {
    const huge = new Map(files);
    server.commit(HUB_ID, huge);
    server.sizes.set(WEIGHTS, 2 ** 52);
    const error = await failure(downloadCheckpoint(HUB_ID, options()));
    expect(error.code).toBe('ERR_FILE');
    expect(error.message).toMatch(/disk must have \d+ bytes free, got \d+\nto do: free space/u);
    expect(server.bodiesOf(WEIGHTS)).toEqual([]);
  });

  // Root writes everywhere.
  const asUser = process.getuid?.() === 0 ? test.skip : test;
  asUser('a cache that cannot be written', async () => {
    const closed = join(cacheDir(), 'closed');
    mkdirSync(closed);
    chmodSync(closed, 0o500);
    const error = await failure(downloadCheckpoint(HUB_ID, options({ cacheDir: closed })));
    expect(error.code).toBe('ERR_FILE');
    expect(error.message).toMatch(/writable[^]*HF_HUB_CACHE/u);
  });

  test('a cache that is a file', async () => {
    const path = join(cacheDir(), 'file');
    writeFileSync(path, '');
    const error = await failure(downloadCheckpoint(HUB_ID, options({ cacheDir: path })));
    expect(error.code).toBe('ERR_FILE');
    expect(error.message).toMatch(/must be writable[^]*HF_HUB_CACHE/u);
  });
});

function lockOfWeights(): string {
  const repository = `models--${HUB_ID.replace('/', '--')}`;
  return join(cacheDir(), '.locks', repository, `${oidOfWeights()}.siglip2`);
}

function oidOfWeights(): string {
  return server.oidOf(files.get(WEIGHTS) ?? Buffer.alloc(0));
}

function childArguments(): string[] {
  return ['-r', join(root, 'test', 'typescript.js'), join(__dirname, 'download_child.ts'), HUB_ID];
}

function childEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env, HF_ENDPOINT: server.endpoint, HF_HUB_CACHE: cacheDir() };
}

// `siglip2 download`, and the other commands on a hub id, against a hub on this machine.
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import sharp from 'sharp';
import { bytesText } from '../../lib/cli/bytes';
import { downloadLine } from '../../lib/cli/download_line';
import { PassThrough } from 'node:stream';
import { temporaryFolder } from '../weights/files';
import { HUB_ID, modelFiles } from '../weights/hub/hub_models';
import { HubServer } from '../weights/hub/hub_server';

const root = join(__dirname, '..', '..');
const folder = temporaryFolder();
let server: HubServer;
let commit = '';

beforeEach(async () => {
  server = await HubServer.start();
  commit = server.commit(HUB_ID, await modelFiles());
});

afterEach(() => server.stop());

interface Outcome {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

function siglip2(
  args: readonly string[],
  variables: Record<string, string> = {},
): Promise<Outcome> {
  const env = {
    ...process.env,
    HF_HOME: folder(),
    HF_HUB_CACHE: join(folder(), 'cache'),
    HF_ENDPOINT: server.endpoint,
    ...variables,
  };
  const main = [join(root, 'test', 'typescript.js'), join(root, 'lib', 'cli', 'main.ts')];
  return new Promise((done) => {
    execFile(process.execPath, ['-r', ...main, ...args], { env }, (error, stdout, stderr) => {
      done({ status: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

test('download, then every command works offline on the id', async () => {
  const { status, stdout, stderr } = await siglip2(['download', HUB_ID]);
  expect([status, stdout]).toEqual([0, expect.stringMatching(`commit: ${commit}\nfolder: `)]);
  expect(stdout).toMatch(/kB {2}fetched {3}model\.safetensors\n/u);
  expect(stderr).toMatch(/100% .*kB\/.*kB .*\/s {2}took/u);
  const again = await siglip2(['download', HUB_ID, '--json', '--revision', 'main']);
  expect(JSON.parse(again.stdout)).toMatchObject({
    id: HUB_ID,
    revision: commit,
    path: join(folder(), 'cache', 'models--google--siglip2-tiny-patch4-14', 'snapshots', commit),
    files: expect.arrayContaining([
      { name: 'config.json', bytes: expect.any(Number) as number, fetched: false },
    ]) as unknown,
  });

  const offline = { HF_HUB_OFFLINE: '1' };
  const image = join(folder(), 'red.png');
  await sharp({ create: { width: 40, height: 30, channels: 3, background: '#f00' } })
    .png()
    .toFile(image);
  server.seen.length = 0;
  const embedded = await siglip2(['embed', '-m', HUB_ID, image], offline);
  expect([embedded.status, JSON.parse(embedded.stdout)]).toEqual([
    0,
    expect.objectContaining({ image }),
  ]);
  const info = await siglip2(['info', '-m', `${HUB_ID}@${commit}`, '--json'], offline);
  expect(JSON.parse(info.stdout)).toMatchObject({
    cache: join(folder(), 'cache'),
    model: { revision: commit, embedding: 12 },
  });
  const output = join(folder(), 'red.npy');
  const stored = await siglip2(['embed', '-m', HUB_ID, image, '-o', output, '--json'], offline);
  expect(JSON.parse(stored.stdout)).toMatchObject({ rows: 1, processed: 1 });
  // Whatever names it, it is the same model: there is nothing to do.
  const pinned = ['embed', '-m', `${HUB_ID}@${commit}`, image, '-o', output, '--json'];
  expect(JSON.parse((await siglip2(pinned, offline)).stdout)).toMatchObject({ processed: 0 });
  expect(server.seen).toEqual([]);
});

test('a command on an id that is not here downloads it', async () => {
  const image = join(folder(), 'red.png');
  await sharp({ create: { width: 40, height: 30, channels: 3, background: '#f00' } })
    .png()
    .toFile(image);
  const found = await siglip2(['search', folder(), image, '-m', HUB_ID, '--json']);
  expect([found.status, JSON.parse(found.stdout)]).toEqual([0, expect.objectContaining({ image })]);
  expect(found.stderr).toMatch(/100% /u);
});

test.each([
  [['download', 'siglip2-base'], /did you mean google\/siglip2-base/],
  [['download', 'google/nothing'], /not found or no access/],
  [['info', '-m', HUB_ID], /must be in the cache/],
])('%j fails and says why', async (args, message) => {
  const { status, stdout, stderr } = await siglip2(args);
  expect([status, stdout]).toEqual([1, '']);
  expect(stderr).toMatch(message);
  expect(stderr).not.toMatch(/\n\s+at /u);
});

test.each([
  [0, '0 B'],
  [999, '999 B'],
  [1000, '1.00 kB'],
  [34_363_039, '34.4 MB'],
  [1_500_800_904, '1.50 GB'],
])('%d bytes are %s', (bytes, text) => {
  expect(bytesText(bytes)).toBe(text);
});

test('a live line is redrawn in place and ended once', () => {
  const stream = new PassThrough({ encoding: 'utf8' });
  const show = downloadLine(Object.assign(stream, { isTTY: true }));
  show({ file: 'a', bytes: 0, total: 2000, rate: 0 });
  show({ file: 'a', bytes: 2000, total: 2000, rate: 10 });
  show({ file: 'a', bytes: 2000, total: 2000, rate: 10 });
  const text = String(stream.read());
  expect(text.match(/\r/gu)).toHaveLength(2);
  expect(text.match(/\n/gu)).toHaveLength(1);
  expect(text).toMatch(/100% 2\.00 kB\/2\.00 kB {2}.*\/s {2}took 0:00 {2}a *\n$/u);
});

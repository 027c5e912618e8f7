// The server of the guide, started and asked as a client would.
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join, resolve } from 'node:path';
import sharp from 'sharp';
import { Siglip2 } from '../../lib';
import { modelFolder, picture } from '../embed/random_model';

const folder = modelFolder('fixed');

async function start(): Promise<{ server: ChildProcess; address: string }> {
  const server = spawn(
    process.execPath,
    [
      '-r',
      resolve(__dirname, '../typescript.js'),
      '-r',
      join(__dirname, 'resolve_package.js'),
      resolve(__dirname, '../../docs/examples/http_server.js'),
      folder(),
      '0',
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const [line] = (await once(server.stdout, 'data')) as [Buffer];
  return { server, address: line.toString().trim() };
}

test('it embeds, refuses, reports and ends in order', async () => {
  const { server, address } = await start();
  const exited = once(server, 'exit');
  const { data, ...raw } = picture(1);
  const png = await sharp(data, { raw }).png().toBuffer();
  const post = (path: string, body: string | Uint8Array<ArrayBuffer>): Promise<Response> =>
    fetch(address + path, { method: 'POST', body });

  const answers = await Promise.all([
    ...Array.from({ length: 10 }, () => post('/image', new Uint8Array(png))),
    ...Array.from({ length: 10 }, () => post('/text', 'cat')),
  ]);
  expect(answers.map(({ status }) => status)).toEqual(Array(20).fill(200));
  const bodies = (await Promise.all(answers.map((answer) => answer.json()))) as {
    embedding: number[];
  }[];
  using model = await Siglip2.load(folder());
  const [image] = await model.embedImages([png]);
  const [text] = await model.embedTexts(['cat']);
  bodies.forEach(({ embedding }, i) => {
    expect(Float32Array.from(embedding)).toEqual(i < 10 ? image : text);
  });

  const bad = await post('/image', 'not an image');
  expect([bad.status, ((await bad.json()) as { code: string }).code]).toEqual([422, 'ERR_IMAGE']);
  expect((await fetch(`${address}/nothing`)).status).toBe(404);
  const stats = (await (await fetch(`${address}/stats`)).json()) as Record<string, object>;
  expect(stats['images']).toMatchObject({ completed: 10, failed: 1, queued: 0 });
  expect(stats['texts']).toMatchObject({ completed: 11 });

  server.kill('SIGTERM');
  expect(await exited).toEqual([0, null]);
});

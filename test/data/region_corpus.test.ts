// The two commands around a detector, as a user runs them.
import { spawnSync } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { PairStream } from '../../lib/data/pair_stream';
import { folderForAll, picture, put, putTar } from '../corpus/corpus_files';

const root = join(__dirname, '..', '..');
const folder = folderForAll();
const at = (...names: string[]): string => join(folder(), ...names);

function siglip2(...args: string[]): { status: number | null; stderr: string } {
  const { status, stderr } = spawnSync(
    process.execPath,
    ['-r', join(root, 'test', 'typescript.js'), join(root, 'lib', 'cli', 'main.ts'), ...args],
    { cwd: folder(), encoding: 'utf8' },
  );
  return { status, stderr };
}

const linesOf = (name: string): unknown[] =>
  readFileSync(at(name), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as unknown);

beforeAll(async () => {
  put(at('images', 'a.png'), await picture(1));
  const rows = [
    { id: 'a', image: 'images/a.png', text: 'Photo of a red car', language: 'en' },
    { id: 'b', image: 'images/a.png', text: ['a cat', 'one cat'] },
    { id: 'bad', text: 'no image' },
  ];
  put(at('pairs.jsonl'), rows.map((row) => JSON.stringify(row)).join('\n'));
  put(at('labels.txt'), 'Car\ncars\ncat\n');
  await putTar(at('pairs.tar'), [
    ['t.png', await picture(2)],
    ['t.txt', 'a dog'],
  ]);
  put(
    at('mixture.json'),
    JSON.stringify({
      corpora: { lines: { inputs: ['pairs.jsonl'] }, tar: { inputs: ['pairs.tar'] } },
      streams: [{ name: 'all', weight: 1, corpus: 'lines' }],
    }),
  );
  const detections = [
    { image: 'a', query: 'car', boxes: [[0, 0, 0.5, 0.5]], scores: [0.5], space: 'labels' },
    { image: 'a', query: 'red car', boxes: [[0, 0, 0.5, 0.5]], scores: [0.4] },
    { image: 't', query: 'dog', boxes: [[0, 0, 1, 1]], scores: [0.8] },
  ];
  put(at('found.jsonl'), detections.map((line) => JSON.stringify(line)).join('\n'));
});

test('queries of a corpus, and the label space beside them', () => {
  const { status, stderr } = siglip2(
    'regions',
    'queries',
    'pairs.jsonl',
    '-o',
    'queries.jsonl',
    '--labels',
    'labels.txt',
  );
  expect([status, stderr]).toEqual([
    0,
    'siglip2: 11 queries of 2 rows in queries.jsonl; 1 rows are no pairs and left out\n',
  ]);
  expect(linesOf('queries.jsonl')).toEqual([
    {
      image: 'a',
      queries: ['of a red', 'of a red car', 'a red', 'a red car', 'red', 'red car', 'car'],
    },
    { image: 'b', queries: ['a cat', 'cat', 'one', 'one cat'] },
  ]);
  expect(readFileSync(at('queries.jsonl.labels.txt'), 'utf8')).toBe('car\ncat\n');
});

test('a corpus joined with detections is one to train on', async () => {
  expect(
    siglip2('regions', 'join', 'mixture.json', 'found.jsonl', '-o', 'joined.jsonl').status,
  ).toBe(0);
  expect(linesOf('joined.jsonl')).toMatchObject([
    { id: 'a', image: 'images/a.png', regions: [{ box: [0, 0, 0.5, 0.5], text: 'red car' }] },
    { id: 'b', text: ['a cat', 'one cat'], regions: [] },
    { id: 't', text: 'a dog', regions: [{ box: [0, 0, 1, 1], text: 'dog' }] },
  ]);
  const mixture = {
    corpora: { joined: { inputs: [at('joined.jsonl')] } },
    streams: [{ name: 'all', weight: 1, corpus: 'joined' }],
  };
  const stream = await PairStream.open({ mixture });
  const drawn = [await stream.next(), await stream.next(), await stream.next()];
  await stream.close();
  const tar = drawn.find(({ id }) => id === 't')?.pair?.image;
  expect(tar !== undefined && 'bytes' in tar && Buffer.from(tar.bytes)).toEqual(await picture(2));
  const options = ['--only-with-regions', '--min-image-score', '0.5'];
  expect(
    siglip2('regions', 'join', 'mixture.json', 'found.jsonl', '-o', 'few.jsonl', ...options),
  ).toEqual({
    status: 0,
    stderr: 'siglip2: 1 regions of 1 rows in few.jsonl; 1 rows are no pairs and left out\n',
  });
});

test('whole numbers of 64 bits of a Parquet file stay numbers', async () => {
  const { parquetWriteBuffer } = await import('hyparquet-writer');
  const columnData = [
    { name: 'image', data: [new Uint8Array(await picture(3))], type: 'BYTE_ARRAY' as const },
    { name: 'text', data: ['a hat'] },
    { name: 'id', data: ['h'] },
    { name: 'attributes', data: [5n], type: 'INT64' as const },
  ];
  put(at('pairs.parquet'), new Uint8Array(parquetWriteBuffer({ columnData })));
  const { status } = siglip2('regions', 'join', 'pairs.parquet', 'found.jsonl', '-o', 'h.jsonl');
  expect([status, linesOf('h.jsonl')]).toMatchObject([0, [{ id: 'h', attributes: 5 }]]);
});

test('what fails leaves no file behind', () => {
  put(at('torn.jsonl'), '{"image":"a","query":"x","boxes":[[0,0,1,1]],"scores":[]}\n');
  const { status, stderr } = siglip2(
    'regions',
    'join',
    'pairs.jsonl',
    'torn.jsonl',
    '-o',
    'out.jsonl',
  );
  expect([status, stderr]).toEqual([
    1,
    'siglip2: torn.jsonl, line 1: scores must be 1, one per box, got 0 (ERR_DATA)\n',
  ]);
  expect(siglip2('regions', 'queries', 'nothing.tar', '-o', 'out.jsonl').status).toBe(1);
  expect(siglip2('regions', 'queries', 'pairs.jsonl').status).toBe(2);
  expect(readdirSync(folder()).filter((name) => /^\.?out/u.test(name))).toEqual([]);
});

// Readers, against files that Python wrote and against hostile ones.
import { readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import { join } from 'node:path';
import type { Row, Source, What } from '../../lib/corpus';
import { openCorpus } from '../../lib/corpus';
import { jsonLinesSource } from '../../lib/corpus/json_lines';
import { memberName, webDatasetSource } from '../../lib/corpus/web_dataset';
import { failure } from '../failure';
import { folderForAll, golden, picture, put, putTar, rowsOf } from './corpus_files';

const folder = folderForAll();

async function source(path: string, what: What = 'image', rest: object = {}): Promise<Source> {
  const [found] = await openCorpus({ inputs: [path], what, ...rest });
  return found;
}

function bytesOf({ image }: Row): Buffer {
  if (image === undefined || !('bytes' in image)) throw new Error('row must hold bytes');
  return Buffer.from(image.bytes);
}

const reasons = (rows: readonly Row[]): (string | undefined)[] =>
  rows.map((row) => row.failure?.reason);

describe('what Python wrote', () => {
  const long = `${'a_folder_with_a_long_name_'.repeat(5)}/ü000`;

  test.each(['gnu.tar', 'pax.tar'])('%s: names too long for a plain header', async (name) => {
    const rows = await rowsOf(await source(join(golden, name), 'both'));
    expect(rows.map(({ id, text }) => [id, text])).toEqual(
      [0, 1, 2, 3, 4].map((i) => [`${long}${String(i)}`, `cat ${String(i)}`]),
    );
    for (const row of rows) expect(bytesOf(row).subarray(1, 4).toString()).toBe('PNG');
  });

  test('fields of the .json member of a tar file', async () => {
    const fields = { text: 'caption', id: 'id' };
    const rows = await rowsOf(await source(join(golden, 'gnu.tar'), 'text', { fields }));
    expect(rows.map(({ id, text }) => [id, text])).toEqual(
      [0, 1, 2, 3, 4].map((i) => [String(10 + i), `caption ${String(i)}`]),
    );
  });

  test.each(['hugging_face_zstd.parquet', 'hugging_face_v2.parquet'])(
    '%s: structs, bytes and columns by name',
    async (name) => {
      const tar = await rowsOf(await source(join(golden, 'gnu.tar')));
      const fields = { text: 'caption', id: 'key' };
      const structs = await source(join(golden, name), 'both', { fields });
      const plain = await source(join(golden, name), 'image', { fields: { image: 'raw' } });
      expect(structs.length).toBe(5);
      const rows = await rowsOf(structs);
      expect(rows.map(({ index, id, text }) => [index, id, text])).toEqual(
        [0, 1, 2, 3, 4].map((i) => [i, String(10 + i), `cat ${String(i)}`]),
      );
      expect(rows.map(bytesOf)).toEqual(tar.map(bytesOf));
      const second = await rowsOf(plain);
      expect(second.map(bytesOf)).toEqual(tar.map(bytesOf));
      // Without an id column a row is called by its place.
      expect(second[3].id).toBe(`${join(golden, name)}#3`);
      // Some rows of some row groups.
      const some = await rowsOf(structs, (index) => index % 2 === 1);
      expect(some.map(({ index }) => index)).toEqual([1, 3]);
      expect(some.map(bytesOf)).toEqual([bytesOf(tar[1]), bytesOf(tar[3])]);
    },
  );
});

describe('JSON lines', () => {
  test('fields by name, blank lines, a byte order mark, carriage returns, gzip', async () => {
    const lines = '\uFEFF{"u":"a.png","t":"x","k":7}\r\n\r\n  \n{"u":"b/c.png","t":"y","k":"z"}';
    const fields = { image: 'u', text: 't', id: 'k' };
    for (const [name, content] of [
      ['a.jsonl', Buffer.from(lines)],
      ['a.jsonl.gz', gzipSync(lines)],
    ] as const) {
      const rows = await rowsOf(
        await source(put(join(folder(), name), content), 'both', { fields }),
      );
      expect(rows).toMatchObject([
        { index: 0, id: '7', text: 'x', image: { path: join(folder(), 'a.png') } },
        { index: 1, id: 'z', text: 'y', image: { path: join(folder(), 'b/c.png') } },
      ]);
    }
  });

  test('a bad line is a failed row and the next one is read', async () => {
    const lines = ['{"text":"a"}', '{', '[1]', '{"text":5}', '{"text":null}', '{"text":"b"}'];
    const path = put(join(folder(), 'bad.jsonl'), lines.join('\n'));
    const rows = await rowsOf(await source(path, 'text'));
    expect(rows.map(({ index, text }) => [index, text])).toEqual([
      [0, 'a'],
      [1, undefined],
      [2, undefined],
      [3, '5'],
      [4, undefined],
      [5, 'b'],
    ]);
    expect(reasons(rows)[1]).toMatch(/must be JSON/);
    expect(reasons(rows)[2]).toMatch(/must be an object/);
    expect(reasons(rows)[4]).toMatch(/field "text" must hold a text, got nothing/);
  });

  test('a line without end is not held', async () => {
    const path = put(join(folder(), 'long.jsonl'), `{"text":"${'x'.repeat(5000)}"}\n{"text":"b"}`);
    const limited = jsonLinesSource({
      path,
      source: path,
      bytes: 5000,
      fingerprint: '',
      what: 'text',
      fields: {},
      images: { root: '/', strings: 'path' },
      maxLineBytes: 1000,
    });
    const rows = await rowsOf(limited);
    expect(reasons(rows)).toEqual(['line must have at most 1000 bytes, got more', undefined]);
    expect(rows[1].text).toBe('b');
  });

  test('a packed file that is cut says so behind what it held', async () => {
    const lines = Array.from({ length: 3000 }, (_, i) => `{"text":"${String(i * 7919)}"}`);
    const packed = gzipSync(lines.join('\n'));
    const path = put(join(folder(), 'cut.jsonl.gz'), packed.subarray(0, packed.length - 10));
    const rows = await rowsOf(await source(path, 'text'));
    expect(reasons(rows).at(-1)).toMatch(/whole JSON lines.*the rest of it is lost/);
    rows.slice(0, -1).forEach((row, i) => {
      expect(row.text).toBe(String(i * 7919));
    });
  });

  test('a file that the system does not give ends the run, which may go on later', async () => {
    const path = put(join(folder(), 'gone.jsonl'), '{"text":"a"}');
    const tar = await putTar(join(folder(), 'gone.tar'), [['a.txt', 'a']]);
    for (const name of [path, tar]) {
      const found = await source(name, 'text');
      rmSync(name);
      expect(await failure(rowsOf(found))).toMatchObject({ code: 'ERR_FILE' });
    }
  });

  test('paths that leave the folder are refused, others are not; ids may repeat', async () => {
    const lines = ['../x.png', '/etc/passwd', 'x.png', 'x.png'];
    const content = lines.map((image) => JSON.stringify({ image, id: 'same' })).join('\n');
    const path = put(join(folder(), 'outside.jsonl'), content);
    const rows = await rowsOf(await source(path));
    expect(rows.map(({ failure: f }) => f?.code)).toEqual([
      'ERR_DATA',
      'ERR_DATA',
      undefined,
      undefined,
    ]);
    expect(rows.map(({ id }) => id)).toEqual(['same', 'same', 'same', 'same']);
    const open = await rowsOf(await source(path, 'image', { imageRoot: '/' }));
    expect(open[1].image).toEqual({ path: '/etc/passwd' });
  });
});

describe('tar', () => {
  test.each([
    ['a/b/0001.jpg', { key: 'a/b/0001', extension: 'jpg' }],
    ['./0001.left.JPG', { key: '0001', extension: 'left.jpg' }],
    ['v1.2/0001.txt', { key: 'v1.2/0001', extension: 'txt' }],
    ['no_extension', undefined],
    ['a/.DS_Store', undefined],
    ['a/._0001.jpg', undefined],
    ['ends.', undefined],
  ])('the key of %s', (name, expected) => {
    expect(memberName(name)).toEqual(expected);
  });

  test('rows lack a member, have one twice, or repeat a key', async () => {
    const png = await picture(1);
    const path = await putTar(join(folder(), 'odd.tar'), [
      ['README', 'no row'],
      ['a.png', png],
      ['a.txt', ' A \n'],
      ['b.txt', 'B'],
      ['c.png', png],
      ['c.png', png],
      ['c.txt', 'C'],
      ['a.png', png],
      ['a.json', '{'],
    ]);
    const rows = await rowsOf(await source(path, 'both'));
    expect(rows.map(({ index, id, text }) => [index, id, text])).toEqual([
      [0, 'a', 'A'],
      [1, 'b', undefined],
      [2, 'c', undefined],
      [3, 'a', undefined],
    ]);
    expect(reasons(rows)[1]).toMatch(/must have a member \.jpg/);
    expect(reasons(rows)[2]).toMatch(/\.png is there twice/);
    expect(reasons(rows)[3]).toMatch(/\.json must be JSON/);
    const wanted = await rowsOf(await source(path), (index) => index === 2);
    expect(wanted.map(({ id }) => id)).toEqual(['c']);
  });

  test('a member beyond the limit is passed over', async () => {
    const path = await putTar(join(folder(), 'large.tar'), [
      ['a.png', Buffer.alloc(5000)],
      ['b.png', Buffer.alloc(10)],
    ]);
    const limited = webDatasetSource({
      path,
      source: path,
      bytes: 0,
      fingerprint: '',
      what: 'image',
      fields: {},
      maxMemberBytes: 1000,
    });
    expect(reasons(await rowsOf(limited))).toEqual([
      'member .png must have at most 1000 bytes, got 5000',
      undefined,
    ]);
  });

  test('a file cut anywhere gives the rows before the cut, then says so', async () => {
    const whole = readFileSync(join(golden, 'gnu.tar'));
    const expected = await rowsOf(await source(join(golden, 'gnu.tar')));
    for (const cut of [100, 700, 3000, 12_000, 20_000, whole.length - 3000]) {
      const path = put(join(folder(), `cut_${String(cut)}.tar`), whole.subarray(0, cut));
      const rows = await rowsOf(await source(path));
      const good = rows.filter((row) => row.failure === undefined);
      expect(good.map(bytesOf)).toEqual(expected.slice(0, good.length).map(bytesOf));
      expect(rows.length - good.length).toBeLessThanOrEqual(1);
      if (cut % 512 !== 0) expect(reasons(rows).at(-1)).toMatch(/the rest of it is lost/);
    }
  });

  test('headers that lie about a size are refused without memory for it', async () => {
    const whole = Buffer.from(readFileSync(join(golden, 'pax.tar')));
    const lying = Buffer.from(whole);
    // The size field of the first header, in octal, and its sum.
    lying.write('77777777777\0', 124, 'latin1');
    lying.fill(' ', 148, 156);
    const sum = lying.subarray(0, 512).reduce((total, byte) => total + byte, 0);
    lying.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
    const rows = await rowsOf(await source(put(join(folder(), 'lying.tar'), lying)));
    expect(rows).toHaveLength(1);
    expect(rows[0].failure?.code).toBe('ERR_DATA');
    const noise = put(join(folder(), 'noise.tar'), Buffer.alloc(4096, 'noise'));
    expect((await rowsOf(await source(noise)))[0].failure?.code).toBe('ERR_DATA');
  });
});

describe('Parquet', () => {
  const original = join(golden, 'hugging_face_zstd.parquet');

  test.each([0, 3, 11, 2000, 5700])('a file cut at %d bytes is refused at once', async (size) => {
    const path = put(join(folder(), 'cut.parquet'), readFileSync(original));
    truncateSync(path, size);
    expect(await failure(source(path))).toMatchObject({
      code: 'ERR_DATA',
      message: expect.stringMatching(/must be a whole Parquet file/) as string,
    });
  });

  test('a footer longer than the file', async () => {
    const bytes = readFileSync(original);
    bytes.writeUInt32LE(0xfffffff0, bytes.length - 8);
    const path = put(join(folder(), 'footer.parquet'), bytes);
    expect(await failure(source(path))).toMatchObject({ code: 'ERR_DATA' });
  });

  test('a damaged row group fails its rows alone', async () => {
    const bytes = readFileSync(original);
    // The first pages lie behind the magic number.
    bytes.fill(0xff, 4, 200);
    const path = put(join(folder(), 'pages.parquet'), bytes);
    const rows = await rowsOf(await source(path));
    expect(rows.map((row) => row.failure?.code)).toEqual([
      'ERR_DATA',
      'ERR_DATA',
      undefined,
      undefined,
      undefined,
    ]);
  });

  test('any byte may be wrong: an error or a row, never a crash', async () => {
    const bytes = readFileSync(original);
    for (let at = 0; at < bytes.length; at += 61) {
      const broken = Buffer.from(bytes);
      broken[at] ^= 0x55;
      const path = put(join(folder(), 'broken.parquet'), broken);
      const result = await source(path).then(rowsOf, (error: unknown) => error);
      if (!Array.isArray(result)) expect(result).toMatchObject({ code: 'ERR_DATA' });
    }
  });

  test('a column that is not there is named with those that are', async () => {
    const fields = { image: 'picture' };
    const error = await failure(source(original, 'image', { fields }));
    expect(error.message).toMatch(/columns must include picture, got image, caption, key, raw/);
  });
});

describe('folders and lists', () => {
  test('order is that of names, whatever the disk says; filters; links to folders', async () => {
    const base = join(folder(), 'pictures');
    for (const name of ['b.png', 'B.jpg', 'a/z.webp', 'a/.hidden.png', 'note.txt', 'c.gif/x.png']) {
      put(join(base, name), 'x');
    }
    symlinkSync(base, join(base, 'circle'));
    const ids = async (options: object = {}): Promise<string[]> => {
      const [found] = await openCorpus({ inputs: [base], ...options });
      return (await rowsOf(found)).map(({ id }) => id.slice(base.length + 1));
    };
    expect(await ids()).toEqual(['B.jpg', 'a/.hidden.png', 'a/z.webp', 'b.png', 'c.gif/x.png']);
    expect(await ids({ include: ['*.png'], exclude: ['a/**'] })).toEqual(['b.png', 'c.gif/x.png']);
    expect(await ids({ include: ['*.txt'] })).toEqual(['note.txt']);
  });

  test('a list is relative to itself', async () => {
    const list = put(join(folder(), 'lists', 'all.txt'), 'x.png\n\n/abs/y.png\r\n');
    const [found] = await openCorpus({ lists: [list] });
    expect((await rowsOf(found)).map(({ id }) => id)).toEqual([
      join(folder(), 'lists', 'x.png'),
      '/abs/y.png',
    ]);
  });

  test('neighbours are one source, records are one each, texts come last', async () => {
    const jsonl = put(join(folder(), 'n.jsonl'), '{}');
    const image = put(join(folder(), 'n.png'), 'x');
    const sources = await openCorpus({ inputs: [image, image, jsonl, image], texts: ['a'] });
    expect(sources.map(({ idKey, length }) => [idKey, length])).toEqual([
      ['image', 2],
      ['id', undefined],
      ['image', 1],
      ['text', 1],
    ]);
  });

  test.each([
    ['nothing', {}, 'ERR_ARGUMENT'],
    ['an empty folder', { inputs: ['test/golden/tokenizer'] }, 'ERR_FILE'],
    ['a path that is not there', { inputs: ['/nonexistent/a.png'] }, 'ERR_FILE'],
    ['a record file that is not there', { inputs: ['/nonexistent/a.parquet'] }, 'ERR_FILE'],
    ['texts of a folder', { inputs: ['test/golden/image'], what: 'both' as const }, 'ERR_ARGUMENT'],
  ])('%s is refused', async (_, options, code) => {
    expect(await failure(openCorpus(options))).toMatchObject({ code });
  });

  test('a fingerprint changes with the content and not with the place', async () => {
    const one = put(join(folder(), 'f', 'a.jsonl'), '{"text":"one"}');
    const other = put(join(folder(), 'g', 'a.jsonl'), '{"text":"one"}');
    const [a, b] = [await source(one), await source(other)];
    expect(a.fingerprint).toBe(b.fingerprint);
    writeFileSync(other, '{"text":"two"}');
    expect((await source(other)).fingerprint).not.toBe(a.fingerprint);
  });
});

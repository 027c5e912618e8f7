// Whole runs in this process: what is written, how it is continued, shards.
import {
  cpSync,
  existsSync,
  readFileSync,
  readdirSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { Siglip2 } from '../../lib';
import type {
  BulkModel,
  BulkProgress,
  EmbedCorpusOptions,
  OutputFormat,
  VectorDtype,
} from '../../lib/bulk';
import {
  bulkModel,
  embedCorpus,
  journalFolder,
  mergeShards,
  modelFingerprint,
  outputFormats,
  towersOf,
} from '../../lib/bulk';
import type { CorpusOptions } from '../../lib/corpus';
import { openCorpus } from '../../lib/corpus';
import { npyHeader } from '../../lib/bulk/npy';
import { openSafetensors } from '../../lib/weights';
import { failure } from '../failure';
import { writeModel } from '../embed/random_model';
import { folderForAll, picture, put, putPictures, putTar } from '../corpus/corpus_files';

const folder = folderForAll();
const at = (...names: string[]): string => join(folder(), ...names);
let model: Siglip2;
let fingerprint = '';

/** Rows that the model has been given. */
const given = { images: 0, texts: 0 };

function counting(inner: BulkModel): BulkModel {
  return {
    ...inner,
    embedImages: (images) => {
      given.images += images.length;
      return inner.embedImages(images);
    },
    embedTexts: (texts) => {
      given.texts += texts.length;
      return inner.embedTexts(texts);
    },
  };
}

beforeAll(async () => {
  const path = at('model');
  await writeModel(path, 'fixed');
  model = await Siglip2.load(path);
  fingerprint = await modelFingerprint(path);
  await putPictures(at('photos'), 37);
  put(at('photos', '010x.png'), 'not a picture');
  const members: [string, string | Buffer][] = [];
  const lines: string[] = [];
  for (let i = 0; i < 23; i++) {
    const name = String(i).padStart(3, '0');
    const png = await picture(i + 50);
    if (i !== 5) members.push([`${name}.png`, png]);
    members.push([`${name}.txt`, `a cat ${'at '.repeat(i % 3)}`]);
    const image = `data:image/png;base64,${png.toString('base64')}`;
    lines.push(JSON.stringify({ id: i, image, text: i === 7 ? null : `cat ${'a'.repeat(i)}` }));
  }
  await putTar(at('a.tar'), members);
  await putTar(at('b.tar'), members.slice(0, 20));
  put(at('a.jsonl'), lines.join('\n'));
});

afterAll(() => {
  model.dispose();
});

beforeEach(() => {
  given.images = 0;
  given.texts = 0;
});

type Rest = Partial<EmbedCorpusOptions> & { readonly output: string };

async function run(
  corpus: Parameters<typeof openCorpus>[0],
  rest: Rest,
): ReturnType<typeof embedCorpus> {
  return embedCorpus({
    sources: await openCorpus(corpus),
    model: () => Promise.resolve(counting(bulkModel(model))),
    modelFingerprint: fingerprint,
    format: 'npy',
    batch: 4,
    partRows: 8,
    ...rest,
  });
}

const photos = {
  get inputs(): string[] {
    return [at('photos')];
  },
};
const mixed = {
  get inputs(): string[] {
    return [at('photos'), at('a.tar'), at('b.tar'), at('a.jsonl')];
  },
  texts: ['cat', 'a cat', 'at'],
};

interface Written {
  readonly ids: string[];
  readonly columns: Record<string, number[][]>;
}

function npyRows(path: string): number[][] {
  const bytes = readFileSync(path);
  const start = 10 + bytes.readUInt16LE(8);
  const header = bytes.subarray(10, start).toString('latin1');
  const shape = /'shape': \((\d+), (\d+)\)/u.exec(header);
  expect(header).toMatch(/'descr': '<f4', 'fortran_order': False/);
  const [rows, width] = [Number(shape?.[1]), Number(shape?.[2])];
  expect(bytes.length).toBe(start + rows * width * 4);
  return Array.from({ length: rows }, (_, i) =>
    Array.from({ length: width }, (__, k) => bytes.readFloatLE(start + 4 * (i * width + k))),
  );
}

const jsonLines = (path: string): Record<string, unknown>[] =>
  readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, unknown>);

async function written(path: string, format: OutputFormat, columns: string[]): Promise<Written> {
  const stem = path.replace(/\.[a-z]+$/u, '');
  const single = columns.length === 1;
  const named = (column: string): string => (single ? column : `${column}_embedding`);
  const result: Record<string, number[][]> = {};
  let ids: string[] = [];
  if (format === 'npy' || format === 'safetensors') {
    ids = jsonLines(`${stem}.ids.jsonl`).map(({ id }) => String(id));
  }
  switch (format) {
    case 'npy':
      for (const c of columns) result[c] = npyRows(single ? path : `${stem}.${c}.npy`);
      break;
    case 'safetensors': {
      using file = openSafetensors(path);
      for (const c of columns) {
        const values = [...(await file.read(c))];
        const [rows, width] = file.tensors.get(c)?.shape ?? [];
        result[c] = Array.from({ length: rows }, (_, i) =>
          values.slice(i * width, (i + 1) * width),
        );
      }
      break;
    }
    case 'jsonl': {
      const lines = jsonLines(path);
      ids = lines.map(({ image, text, id }) => String(image ?? text ?? id));
      for (const c of columns) result[c] = lines.map((line) => line[named(c)] as number[]);
      break;
    }
    case 'parquet': {
      const { asyncBufferFromFile, parquetReadObjects } = await import('hyparquet');
      const rows = await parquetReadObjects({ file: await asyncBufferFromFile(path) });
      ids = rows.map((row) => String(row['id']));
      for (const c of columns) result[c] = rows.map((row) => row[named(c)] as number[]);
      break;
    }
  }
  return { ids, columns: result };
}

function isResult(name: string, prefix: string): boolean {
  return name.startsWith(`${prefix}.`) && !name.endsWith('.manifest.json');
}

/** Every file of an output, by name, but the manifest: it names the others. */
function filesOf(prefix: string): Record<string, string> {
  return Object.fromEntries(
    readdirSync(at(), { withFileTypes: true })
      .filter((entry) => isResult(entry.name, prefix) && entry.isFile())
      .map(({ name }) => [name.slice(prefix.length), readFileSync(at(name)).toString('base64')]),
  );
}

describe('what is written', () => {
  test('the header of an npy file, byte for byte what NumPy 2.4 writes', () => {
    const dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 12), }";
    const expected = Buffer.concat([
      Buffer.from('934e554d5059010076 00'.replace(' ', ''), 'hex'),
      Buffer.from(`${dict.padEnd(117)}\n`),
    ]);
    expect(npyHeader('float32', [3, 12])).toEqual(expected);
    expect(npyHeader('float16', [0, 1]).length % 64).toBe(0);
  });

  test.each(outputFormats)('%s holds what the model says, in order', async (format) => {
    const output = at(`plain.${format}`);
    const summary = await run(photos, { output, format });
    expect(summary).toMatchObject({ finished: true, rows: 37, failures: 1, processed: 38 });
    const { ids, columns } = await written(output, format, ['embedding']);
    expect(ids).toEqual([...ids].sort());
    expect(ids).toHaveLength(37);
    const direct = await model.embedImages(ids, { batchSize: 4 });
    columns['embedding'].forEach((row, i) => {
      row.forEach((value, k) => {
        expect(value).toBeCloseTo(direct[i][k], 6);
      });
    });
    expect(jsonLines(at('plain.failures.jsonl'))).toEqual([
      {
        source: at('photos'),
        row: 6,
        id: at('photos', '010x.png'),
        code: 'ERR_IMAGE',
        reason: expect.stringMatching(/undamaged/) as string,
      },
    ]);
    expect(existsSync(journalFolder(output))).toBe(false);
  });

  test('formats agree to the bit, on images and texts of one row', async () => {
    const all: Written[] = [];
    for (const format of outputFormats) {
      const output = at(`both.${format}`);
      const corpus = { inputs: [at('a.jsonl'), at('a.tar')], what: 'both' as const };
      expect(await run(corpus, { output, format })).toMatchObject({ rows: 44, failures: 2 });
      all.push(await written(output, format, ['image', 'text']));
    }
    for (const each of all) expect(each).toEqual(all[0]);
    expect(all[0].columns['text'][3]).not.toEqual(all[0].columns['image'][3]);
  });

  test.each(outputFormats)('float16 in %s is float32 rounded', async (format) => {
    const widths: Record<VectorDtype, Written> = {} as Record<VectorDtype, Written>;
    for (const dtype of ['float32', 'float16'] as const) {
      const output = at(`${dtype}_${format}.${format}`);
      await run({ texts: ['cat', 'at'] }, { output, format, dtype });
      if (format === 'npy' && dtype === 'float16') {
        const bytes = readFileSync(output);
        expect(bytes.toString('latin1')).toMatch(/'descr': '<f2'/);
        expect(bytes.length).toBe(128 + 2 * 64 * 2);
        return;
      }
      widths[dtype] = await written(output, format, ['embedding']);
    }
    widths.float16.columns['embedding'].flat().forEach((value, i) => {
      const exact = widths.float32.columns['embedding'].flat()[i];
      expect(Math.abs(value - exact)).toBeLessThanOrEqual(Math.abs(exact) * 2 ** -11 + 2 ** -25);
    });
  });

  test('no row at all: an empty matrix of the right width', async () => {
    const empty = put(at('empty.jsonl'), '\n');
    const output = at('nothing.npy');
    expect(await run({ inputs: [empty] }, { output })).toMatchObject({ finished: true, rows: 0 });
    expect(readFileSync(output).toString('latin1')).toMatch(/'shape': \(0, 64\)/);
  });

  test('rows that all fail leave an output without rows', async () => {
    const path = put(at('none.jsonl'), '{"image":"x.png"}\n{"image":"../y.png"}');
    const summary = await run(
      { inputs: [path] },
      { output: at('none.parquet'), format: 'parquet' },
    );
    expect(summary).toMatchObject({ finished: true, rows: 0, failures: 2 });
    expect(jsonLines(at('none.failures.jsonl')).map(({ code }) => code)).toEqual([
      'ERR_FILE',
      'ERR_DATA',
    ]);
  });
});

describe('a run goes on where it was', () => {
  let whole: Record<string, string>;

  beforeAll(async () => {
    await run(mixed, { output: at('whole.npy') });
    whole = filesOf('whole');
  });

  test('the output does not depend on how much is decoded at once', async () => {
    for (const concurrency of [1, 2, 9]) {
      const name = `at_once_${String(concurrency)}`;
      await run(mixed, { output: at(`${name}.npy`), concurrency });
      expect(filesOf(name)).toEqual(whole);
    }
  });

  test('stopped after every batch: same bytes, no row embedded twice', async () => {
    const output = at('stopped.npy');
    let starts = 0;
    for (let finished = false; !finished; starts++) {
      const stopping = new AbortController();
      const summary = await run(mixed, {
        output,
        signal: stopping.signal,
        onProgress: () => {
          stopping.abort();
        },
      });
      finished = summary.finished;
      if (!finished) {
        expect(summary.stopped).toBe('signal');
        expect(existsSync(output)).toBe(false);
      }
    }
    expect(starts).toBeGreaterThan(20);
    expect(given).toEqual({ images: 37 + 22 + 10 + 23, texts: 3 });
    expect(filesOf('stopped')).toEqual(whole);
  });

  test('a finished run is not done again; other options are', async () => {
    const output = at('again.npy');
    await run(photos, { output });
    const before = { ...given };
    const again = await run(photos, { output });
    expect(again).toMatchObject({ finished: true, processed: 0, rows: 37, failures: 1 });
    expect(given).toEqual(before);
    await run(photos, { output, batch: 5 });
    expect(given.images).toBe(2 * 37);
  });

  test('another input or option is refused, and named, until the run is begun anew', async () => {
    const path = put(at('changing.jsonl'), '{"text":"cat"}\n{"text":"a cat"}');
    const corpus = { inputs: [path], what: 'text' as const };
    const output = at('changing.npy');
    const stopping = new AbortController();
    const stop = (): void => {
      stopping.abort();
    };
    await run(corpus, { output, batch: 1, signal: stopping.signal, onProgress: stop });
    const error = await failure(run(corpus, { output, batch: 2 }));
    expect(error.code).toBe('ERR_CONFIG');
    expect(error.message).toMatch(/batch: was 1, is 2/);
    writeFileSync(path, '{"text":"cat"}\n{"text":"a dog"}');
    const changed = await failure(run(corpus, { output, batch: 1 }));
    expect(changed.message).toMatch(/input 1, .*changing\.jsonl, text: was/);
    const anew = await run(corpus, { output, batch: 1, restart: true });
    expect(anew).toMatchObject({ finished: true, processed: 2 });
  });

  test('a part that the disk has damaged is computed again; remains are swept', async () => {
    const output = at('damaged.npy');
    const stopping = new AbortController();
    let steps = 0;
    const partial = await run(mixed, {
      output,
      signal: stopping.signal,
      onProgress: () => {
        if (++steps === 8) stopping.abort();
      },
    });
    const names = readdirSync(partial.journal).filter((name) => name.startsWith('part-'));
    truncateSync(join(partial.journal, names[1]), 100);
    put(join(partial.journal, '.part-00000-00000009.safetensors.abc.tmp'), 'torn');
    expect(await run(mixed, { output })).toMatchObject({ finished: true });
    expect(readFileSync(output)).toEqual(readFileSync(at('whole.npy')));
  });

  test('a journal that a living process works on is left alone', async () => {
    const output = at('locked.npy');
    const lock = join(journalFolder(output), 'lock.json');
    put(lock, JSON.stringify({ pid: process.ppid, host: hostname() }));
    expect((await failure(run(photos, { output }))).message).toMatch(/worked on by one process/);
    // A process that is gone, or one of another machine, holds nothing.
    put(lock, JSON.stringify({ pid: 2 ** 30, host: hostname() }));
    expect(await run(photos, { output })).toMatchObject({ finished: true });
  });
});

describe('the model', () => {
  test.each([
    ['images', { inputs: ['photos'] }, 'vision'],
    ['texts', { texts: ['cat'] }, 'text'],
    ['images and texts', { inputs: ['photos'], texts: ['cat'] }, 'both'],
    ['texts of records', { inputs: ['a.jsonl'], texts: ['cat'], what: 'text' }, 'text'],
    ['records with both', { inputs: ['a.jsonl'], what: 'both' }, 'both'],
  ] as const)('%s: its towers', async (_, { inputs = [], ...corpus }: CorpusOptions, towers) => {
    const sources = await openCorpus({ ...corpus, inputs: inputs.map((name) => at(name)) });
    expect(towersOf(sources)).toBe(towers);
  });

  test('one tower is enough for its inputs, the bytes are those of both', async () => {
    await run(photos, { output: at('towers_both.npy') });
    using vision = await Siglip2.load(at('model'), { towers: 'vision' });
    const lone = { model: () => Promise.resolve(bulkModel(vision)) };
    await run(photos, { output: at('towers_vision.npy'), ...lone });
    expect(filesOf('towers_vision')).toEqual(filesOf('towers_both'));
    const error = await failure(run({ texts: ['cat'] }, { output: at('towers.npy'), ...lone }));
    expect([error.code, error.message]).toEqual([
      'ERR_ARGUMENT',
      expect.stringMatching(/must have its text tower/),
    ]);
  });

  test('options are held to their domain', () => {
    expect(() => bulkModel(model, { maxPatches: 0 })).toThrow(/maxPatches must be a positive/);
  });

  test('its fingerprint is that of its files, whatever else lies beside them', async () => {
    cpSync(at('model'), at('copy'), { recursive: true });
    put(at('copy', 'README.md'), 'a model');
    expect(await modelFingerprint(at('copy'))).toBe(fingerprint);
    put(at('copy', 'tokenizer.json'), '{}');
    expect(await modelFingerprint(at('copy'))).not.toBe(fingerprint);
    expect((await failure(modelFingerprint(at('nowhere')))).code).toBe('ERR_FILE');
  });

  test('NaFlex: images of many shapes packed, interrupted, the same bytes', async () => {
    await writeModel(at('naflex'), 'naflex');
    using naflex = await Siglip2.load(at('naflex'));
    const options = { model: () => Promise.resolve(bulkModel(naflex, { maxPatches: 12 })) };
    await run(photos, { output: at('naflex_whole.npy'), ...options });
    const rows = npyRows(at('naflex_whole.npy'));
    const ids = jsonLines(at('naflex_whole.ids.jsonl')).map(({ id }) => String(id));
    const direct = await naflex.embedImages(ids, { batchSize: 1, maxPatches: 12 });
    rows.forEach((row, i) => {
      row.forEach((value, k) => {
        expect(value).toBeCloseTo(direct[i][k], 6);
      });
    });
    for (let finished = false; !finished;) {
      const stopping = new AbortController();
      const summary = await run(photos, {
        output: at('naflex_stopped.npy'),
        ...options,
        signal: stopping.signal,
        onProgress: ({ done, before }) => {
          if (done - before > 8) stopping.abort();
        },
      });
      ({ finished } = summary);
    }
    expect(filesOf('naflex_stopped')).toEqual(filesOf('naflex_whole'));
  });

  test('progress is told when it is loaded and after every batch', async () => {
    const output = at('told.npy');
    const seen: BulkProgress[] = [];
    const onProgress = (progress: BulkProgress): void => void seen.push(progress);
    await run({ texts: ['cat', 'a cat', 'at'] }, { output, batch: 2, onProgress });
    const constant = { before: 0, total: 3, estimated: false, failures: 0 };
    expect(seen).toEqual([0, 2, 3].map((done) => ({ done, ...constant })));
  });
});

describe('failures', () => {
  test('more than accepted stop the run; repaired, it goes on', async () => {
    const names = ['a.png', 'missing.png', 'b.png', 'torn.png', 'c.png'];
    const path = put(
      at('some', 'list.jsonl'),
      names.map((image) => JSON.stringify({ image, id: image })).join('\n'),
    );
    for (const name of ['a.png', 'b.png', 'c.png']) put(at('some', name), await picture(3));
    put(at('some', 'torn.png'), 'torn');
    const corpus = { inputs: [path] };
    const output = at('some.npy');
    const seen: string[] = [];
    const options = {
      output,
      batch: 1,
      onFailure: ({ id }: { id: string }): void => {
        seen.push(id);
      },
    };
    const stopped = await run(corpus, { ...options, maxFailures: 1 });
    expect(stopped).toMatchObject({ finished: false, stopped: 'failures', failures: 2 });
    expect(seen).toEqual(['missing.png', 'torn.png']);
    expect(jsonLines(at('some.failures.jsonl')).map(({ id }) => id)).toEqual(seen);
    expect(existsSync(output)).toBe(false);
    for (const name of ['missing.png', 'torn.png']) put(at('some', name), await picture(4));
    // What failed is remembered ...
    expect(await run(corpus, { ...options, maxFailures: 1 })).toMatchObject({ finished: false });
    // ... unless it is to be tried again.
    const repaired = await run(corpus, { ...options, maxFailures: 1, retry: true });
    expect(repaired).toMatchObject({ finished: true, rows: 5, failures: 0 });
    expect(existsSync(at('some.failures.jsonl'))).toBe(false);
  });

  test('what is wrong with the model ends the run and keeps what is done', async () => {
    const output = at('broken.npy');
    let calls = 0;
    const sources = await openCorpus(photos);
    const options = {
      sources,
      modelFingerprint: fingerprint,
      output,
      format: 'npy' as const,
      batch: 4,
      partRows: 8,
    };
    const inner = bulkModel(model);
    const breaking: BulkModel = {
      ...inner,
      embedImages: (images) =>
        ++calls === 5 ? Promise.reject(new Error('device lost')) : inner.embedImages(images),
    };
    await expect(
      embedCorpus({ ...options, model: () => Promise.resolve(breaking) }),
    ).rejects.toThrow('device lost');
    const rest = await embedCorpus({
      ...options,
      model: () => Promise.resolve(counting(inner)),
    });
    expect(rest.finished).toBe(true);
    expect(rest.processed).toBe(38 - 16);
    expect(given.images).toBe(37 - 15);
  });
});

describe('shards', () => {
  test.each([
    [3, 'more sources than shards', mixed],
    [7, 'more shards than sources', mixed],
    [3, 'one source', photos],
  ])('%d shards, %s: merged, the bytes of one process', async (count, name, corpus) => {
    const stem = `shards_${String(count)}_${name.replaceAll(' ', '_')}`;
    for (const format of outputFormats) {
      const alone = at(`${stem}_alone.${format}`);
      await run(corpus, { output: alone, format });
      const output = at(`${stem}.${format}`);
      const folders: string[] = [];
      let rows = 0;
      for (let index = count - 1; index >= 0; index--) {
        const summary = await run(corpus, { output, format, shard: { index, count } });
        expect(summary).toMatchObject({ finished: true });
        rows += summary.rows;
        folders.push(...summary.outputs);
        expect(summary.outputs[0]).toMatch(`.shard-${String(index + 1)}-of-${String(count)}`);
      }
      const merged = await mergeShards({ folders, output, format });
      expect(merged.rows).toBe(rows);
      expect(existsSync(`${output}.merge`)).toBe(false);
      const [a, b] = [filesOf(stem), filesOf(`${stem}_alone`)];
      for (const suffix of [`.${format}`, '.ids.jsonl', '.failures.jsonl']) {
        expect(a[suffix]).toBe(b[suffix]);
      }
    }
  });

  test('the shards of a finished run are not done again', async () => {
    const options = { output: at('twice.npy'), shard: { index: 1, count: 2 } };
    await run(photos, options);
    const before = { ...given };
    expect(await run(photos, options)).toMatchObject({ finished: true, processed: 0 });
    expect(given).toEqual(before);
  });

  test('what does not make a whole is refused', async () => {
    const output = at('partial.npy');
    const folders = await Promise.all(
      [0, 1, 2].map(async (index) => {
        return (await run(photos, { output, shard: { index, count: 3 } })).journal;
      }),
    );
    const merge = (names: readonly string[]): Promise<unknown> =>
      mergeShards({ folders: names, output, format: 'npy' });
    const [a, b, c] = folders;
    expect((await failure(merge([]))).message).toMatch(/at least one folder/);
    expect((await failure(merge([a, b]))).message).toMatch(/got no 3\/3/);
    expect((await failure(merge([a, b, b, c]))).message).toMatch(/got 2\/3 twice/);
    expect(await failure(merge([at('photos')]))).toMatchObject({ code: 'ERR_FILE' });
    const other = await run(photos, {
      output: at('o.npy'),
      batch: 3,
      shard: { index: 2, count: 3 },
    });
    expect((await failure(merge([a, b, other.journal]))).message).toMatch(/different inputs/);
    const stopping = new AbortController();
    const unfinished = await run(photos, {
      output: at('u.npy'),
      shard: { index: 2, count: 3 },
      signal: stopping.signal,
      onProgress: () => {
        stopping.abort();
      },
    });
    expect((await failure(merge([a, b, unfinished.journal]))).message).toMatch(/unfinished/);
    expect(existsSync(output)).toBe(false);
  });
});

const open = join(
  process.env['SIGLIP2_DATA'] ?? join(__dirname, '..', '..', '..', 'shared', 'data'),
  'photos',
  'open',
);
(existsSync(open) ? test : test.skip)('photographs of a camera', async () => {
  const output = at('open.parquet');
  const include = ['*00*[02468].jpg'];
  const summary = await run({ inputs: [open], include }, { output, format: 'parquet' });
  expect(summary).toMatchObject({ finished: true, failures: 0 });
  const { ids, columns } = await written(output, 'parquet', ['embedding']);
  expect(ids.length).toBeGreaterThan(5);
  for (const row of columns['embedding']) expect(Math.hypot(...row)).toBeCloseTo(1, 5);
});

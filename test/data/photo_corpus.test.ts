// Photographs with captions and masks: a small made-up set always, the shared one where it is.
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import sharp from 'sharp';
import { pageLanguageMixture } from '../../lib/data/mixture';
import { PairStream } from '../../lib/data/pair_stream';
import { labelledRegions, writePhotoCorpus } from '../../lib/data/photo_corpus';
import { decodeImage } from '../../lib/image';
import { folderForAll, picture, put } from '../corpus/corpus_files';

const shared = process.env['SIGLIP2_DATA'] ?? join(__dirname, '..', '..', '..', 'shared', 'data');
const folder = folderForAll();

test('connected parts of a label image have boxes', () => {
  const rows = ['1100.', '0010.', '22..1', '22..1'];
  const labels = Uint8Array.from(rows.join('').replaceAll('.', '0'), Number);
  expect(labelledRegions(labels, 5, 4, 0)).toEqual([
    { label: 1, box: [0, 0, 0.5, 0.6] },
    { label: 2, box: [0.5, 0, 1, 0.4] },
    { label: 1, box: [0.5, 0.8, 1, 1] },
  ]);
  expect(labelledRegions(labels, 5, 4, 0.15).map(({ label }) => label)).toEqual([1, 2]);
  expect(labelledRegions(Uint8Array.of(0, 255), 2, 1, 0)).toEqual([]);
});

test('photographs become rows with all captions and the boxes of their masks', async () => {
  const at = (...names: string[]): string => join(folder(), ...names);
  put(at('photos', 'open', '7.png'), await picture(7));
  put(
    at('photos', 'photos.jsonl'),
    [
      { id: 7, file: 'open/7.png', tier: 'open', captions: ['a cat', 'a mat'] },
      { id: 8, file: 'nc/8.png', tier: 'nc', captions: ['a dog'] },
    ]
      .map((line) => JSON.stringify(line))
      .join('\n'),
  );
  put(at('masks', 'classes.json'), JSON.stringify([{ label: 17, name: 'cat' }]));
  put(at('masks', 'segmentation.jsonl'), JSON.stringify({ id: 7, mask: '7.png' }));
  const mask = Uint8Array.from([0, 0, 17, 17, 0, 0, 17, 17]);
  mkdirSync(at('masks'), { recursive: true });
  await sharp(mask, { raw: { width: 4, height: 2, channels: 1 } })
    .png()
    .toFile(at('masks', '7.png'));
  const corpus = await writePhotoCorpus({
    photos: at('photos'),
    masks: at('masks'),
    output: at('corpus', 'photos.jsonl'),
    tiers: ['open'],
  });
  const [line, end] = readFileSync(at('corpus', 'photos.jsonl'), 'utf8').split('\n');
  expect([JSON.parse(line), end]).toEqual([
    {
      id: '7',
      image: 'open/7.png',
      text: ['a cat', 'a mat'],
      language: 'en',
      regions: [{ box: [0, 0.5, 1, 1], text: 'cat' }],
    },
    '',
  ]);
  expect(corpus.imageRoot).toBe(at('photos'));
  rmSync(at('corpus'), { recursive: true });
});

(existsSync(join(shared, 'photos')) ? test : test.skip)(
  'every photograph of the shared set decodes and has sound regions',
  async () => {
    const corpus = await writePhotoCorpus({
      photos: join(shared, 'photos'),
      masks: join(shared, 'segmentation'),
      output: join(folder(), 'photos.jsonl'),
    });
    const { streams, corpora } = pageLanguageMixture(corpus);
    const stream = await PairStream.open({ mixture: { corpora, streams: [streams[0]] } });
    const seen = new Set<string>();
    let regions = 0;
    for (let i = 0; i < 247; i++) {
      const { id, pair } = await stream.next();
      if (pair === undefined || !('path' in pair.image)) throw new Error(`${id} must be a pair`);
      seen.add(id);
      expect(pair.texts.length).toBe(5);
      regions += pair.regions.length;
      if (i % 16 === 0) expect((await decodeImage(pair.image.path)).width).toBeGreaterThan(100);
    }
    await stream.close();
    expect(seen.size).toBe(247);
    expect(regions).toBeGreaterThan(171);
  },
);

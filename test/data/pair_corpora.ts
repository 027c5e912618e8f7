// Small corpora of pairs of every kind, with rows that are wrong.
import { dirname, join } from 'node:path';
import type { PairCorpus } from '../../lib/data/mixture';
import { picture, put, putTar } from '../corpus/corpus_files';

/** A row of a corpus of `count`: an image, a text that names it, the language of its page, a region. */
export function rowOf(number: number): {
  id: string;
  text: string;
  language: string;
  regions: { box: number[]; text: string }[];
} {
  return {
    id: `row ${String(number)}`,
    text: `text ${String(number)}`,
    language: number % 3 === 0 ? 'sw' : 'en',
    regions: number % 2 === 0 ? [{ box: [0, 0.25, 0.5, 1], text: `part ${String(number)}` }] : [],
  };
}

export const kinds = ['jsonl', 'tar', 'parquet'] as const;

/** `files` files of `rows` rows each; number `torn` of all rows has a torn image. */
export async function putCorpus(
  folder: string,
  kind: (typeof kinds)[number],
  files: number,
  rows: number,
  torn = -1,
): Promise<PairCorpus> {
  for (let file = 0; file < files; file++) {
    const numbers = Array.from({ length: rows }, (_, i) => file * rows + i);
    const images = await Promise.all(
      numbers.map(async (number) => (number === torn ? Buffer.from('torn') : picture(number))),
    );
    const path = join(folder, `${String(file)}.${kind}`);
    if (kind === 'jsonl') {
      numbers.forEach((number, i) => put(join(folder, `${String(number)}.png`), images[i]));
      const lines = numbers.map((number) => ({ image: `${String(number)}.png`, ...rowOf(number) }));
      put(path, lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
    } else if (kind === 'tar') {
      const members = numbers.flatMap((number, i): [string, string | Buffer][] => [
        [`${String(number)}.png`, images[i]],
        [`${String(number)}.txt`, rowOf(number).text],
        [`${String(number)}.json`, JSON.stringify(rowOf(number))],
      ]);
      await putTar(path, members);
    } else {
      const { parquetWriteBuffer } = await import('hyparquet-writer');
      const records = numbers.map(rowOf);
      const column = (name: 'id' | 'text' | 'language'): { name: string; data: string[] } => ({
        name,
        data: records.map((record) => record[name]),
      });
      const buffer = parquetWriteBuffer({
        columnData: [
          { name: 'image', data: images.map((image) => new Uint8Array(image)), type: 'BYTE_ARRAY' },
          ...(['id', 'text', 'language'] as const).map(column),
          { name: 'regions', data: records.map(({ regions }) => JSON.stringify(regions)) },
        ],
        rowGroupSize: 4,
      });
      put(path, new Uint8Array(buffer));
    }
  }
  return {
    inputs: [join(folder, `*.${kind}`)],
    fields: { id: 'id' },
    imageRoot: kind === 'jsonl' ? folder : dirname(folder),
  };
}

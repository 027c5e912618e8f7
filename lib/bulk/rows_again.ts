// Some rows of a corpus once more, after it is known which.
import { basename, dirname, isAbsolute, relative, resolve, sep } from 'node:path';
import type { ImageReference, Row, Source } from '../corpus';
import { publishTogether } from '../weights';
import type { RowPlace } from './candidates';

/** Reads these rows, in the order of the corpus; sources without any are left alone. */
export async function* rowsAgain(
  sources: readonly Source[],
  places: Iterable<RowPlace>,
): AsyncGenerator<{ readonly source: number; readonly row: Row }, void, undefined> {
  const wanted = sources.map(() => new Set<number>());
  for (const { source, row } of places) wanted[source].add(row);
  for (const [source, rows] of wanted.entries()) {
    let left = rows.size;
    if (left === 0) continue;
    for await (const row of sources[source].rows((index) => rows.has(index))) {
      yield { source, row };
      if (--left === 0) break;
    }
  }
}

/**
 * Writes these rows as JSON lines of id, image, text and the fields that they carry along: a data set
 * again. The path of an image is relative where it lies below the folder of the copy, which is where
 * readers look for it, else whole; one without a path is a data URI.
 *
 * @throws ERR_FILE
 */
export async function copyRows(
  path: string,
  sources: readonly Source[],
  places: Iterable<RowPlace>,
): Promise<void> {
  const folder = resolve(dirname(path));
  await publishTogether(dirname(path), async (files) => {
    await files.write(basename(path), async (file) => {
      for await (const { row } of rowsAgain(sources, places)) {
        const { id, text, fields } = row;
        const image = row.image === undefined ? undefined : imageValue(row.image, folder);
        await file.write(`${JSON.stringify({ ...fields, id, image, text }, plain)}\n`);
      }
    });
    return [];
  });
}

function imageValue(image: ImageReference, folder: string): string {
  if ('path' in image) {
    const inside = relative(folder, resolve(image.path));
    const leaves = inside === '..' || inside.startsWith(`..${sep}`) || isAbsolute(inside);
    return leaves ? resolve(image.path) : inside;
  }
  return `data:application/octet-stream;base64,${Buffer.from(image.bytes).toString('base64')}`;
}

// Parquet has integers that JSON has no form for.
function plain(_: string, value: unknown): unknown {
  return typeof value === 'bigint' ? Number(value) : value;
}

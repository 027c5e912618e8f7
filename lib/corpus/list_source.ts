// Sources that are lists in memory: image files, and texts.
import { SiglipError } from '../errors';
import { digest } from './fingerprint';
import type { Row, Source } from './row';

/** An image file of a list. */
export interface ListedImage {
  readonly path: string;
  readonly bytes: number;
}

/** Image files in the order given; the id of a row is its path. */
export function imageListSource(name: string, images: readonly ListedImage[]): Source {
  const fingerprint = digest(images.flatMap(({ path, bytes }) => [path, String(bytes)]));
  return listSource(name, 'image', images, fingerprint, (index, { path }) => ({
    index,
    id: path,
    image: { path },
  }));
}

/** Texts in the order given; the id of a row is the text itself. */
export function textListSource(name: string, texts: readonly string[]): Source {
  const items = texts.map((text) => ({ text, bytes: text.length }));
  return listSource(name, 'text', items, digest(texts), (index, { text }) => ({
    index,
    id: text,
    text,
  }));
}

function listSource<T extends { readonly bytes: number }>(
  name: string,
  what: 'image' | 'text',
  items: readonly T[],
  fingerprint: string,
  row: (index: number, item: T) => Row,
): Source {
  if (items.length === 0) {
    throw new SiglipError('ERR_FILE', `corpus: ${name} must hold ${what}s, got none`);
  }
  return {
    name,
    idKey: what,
    what,
    bytes: items.reduce((sum, { bytes }) => sum + bytes, 0),
    length: items.length,
    fingerprint,
    // A list is at hand, but readers of rows know one kind of sequence.
    // eslint-disable-next-line @typescript-eslint/require-await
    async *rows(wanted): AsyncGenerator<Row> {
      for (const [index, item] of items.entries()) if (wanted(index)) yield row(index, item);
    },
  };
}

// What a corpus is made of: sources in a fixed order, each a sequence of rows.
import type { SiglipErrorCode } from '../errors';

/** Where the encoded bytes of an image are. */
export type ImageReference = { readonly path: string } | { readonly bytes: Uint8Array };

/** Why a row has no embedding. */
export interface RowFailure {
  readonly code: SiglipErrorCode;
  readonly reason: string;
}

/** One row of a source: what to embed, or why it cannot be. */
export interface Row {
  /** Position in its source, from 0; together with the source it is what a restart goes by. */
  readonly index: number;
  /** A label, not a key: it may repeat. */
  readonly id: string;
  readonly image?: ImageReference | undefined;
  readonly text?: string | undefined;
  /** Values of the further fields that were asked for and are there, as the file has them. */
  readonly fields?: Readonly<Record<string, unknown>> | undefined;
  readonly failure?: RowFailure | undefined;
  /** Share of the source's bytes read so far, where its length is not known. */
  readonly through?: number | undefined;
}

/** What is embedded of a row; `'both'` gives two vectors. */
export type What = 'image' | 'text' | 'both';

/** A finite, repeatable sequence of rows: a folder, a list, a JSON lines, tar or Parquet file. */
export interface Source {
  /** As it was given; errors and reports call it so. */
  readonly name: string;
  /** What the id of a row is called in JSON lines. */
  readonly idKey: 'image' | 'text' | 'id';
  readonly what: What;
  /** For the estimate of the time left. */
  readonly bytes: number;
  /** Rows, where that is known without reading all of it. */
  readonly length: number | undefined;
  /** Changes when the content does (see fingerprint.ts). */
  readonly fingerprint: string;
  /**
   * The rows that are wanted, by ascending index.
   *
   * @throws SiglipError ERR_FILE, ERR_DATA when the source as a whole cannot be read
   */
  rows(wanted: (index: number) => boolean): AsyncIterable<Row>;
}

/** Whether rows need an image and a text. */
export function needsOf(what: What): { readonly image: boolean; readonly text: boolean } {
  return { image: what !== 'text', text: what !== 'image' };
}

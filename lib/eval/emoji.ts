// What a model trained on emoji can do with drawings, emoji and languages it has not seen.
import type { EmojiStyle } from '../data/emoji';
import type { EmojiData, EmojiImages, EmojiPart } from '../data/emoji_data';
import { pixelNeighbour, type PixelNeighbourResult } from './pixel_neighbour';
import { meanProportion, type Proportion } from './proportion';
import { retrieval, type RetrievalResult } from './retrieval';
import type { Rows } from './scores';
import { zeroShot, type Confusion } from './zero_shot';

/** The model as evaluation sees it. */
export interface EmojiEmbedder {
  /** Embeddings of unit length of images (N, size, size, 3): (N, width). */
  images(pixels: Uint8Array, size: number): Promise<Rows>;
  /** Embeddings of unit length of texts: (M, width). */
  texts(texts: readonly string[]): Promise<Rows>;
}

/** How much training told about a language. */
export type EmojiLanguageKind = 'trained' | 'near' | 'far' | 'ownScript';

/** N-way classification in one language. */
export interface EmojiLanguageResult {
  readonly locale: string;
  readonly top1: Proportion;
  readonly top5: Proportion;
}

/** N-way classification of one style in the languages of one kind. */
export interface EmojiTask {
  readonly style: EmojiStyle;
  /** False for the style that training never saw. */
  readonly seenStyle: boolean;
  /** Emoji that training saw, or those it did not; each part is classified among itself. */
  readonly part: EmojiPart;
  readonly kind: EmojiLanguageKind;
  /** Number of classes. */
  readonly classes: number;
  /** Share that guessing gets right, 1 / classes. */
  readonly chance: number;
  readonly locales: readonly EmojiLanguageResult[];
  /** Mean over the languages, with an interval over the images. */
  readonly top1: Pick<Proportion, 'value' | 'low' | 'high'>;
  /** Mean over the languages. */
  readonly top5: number;
}

/** A mistake, spelt out. */
export interface EmojiConfusion {
  readonly emoji: string;
  readonly predicted: string;
}

/** Outcome of {@link evaluateEmoji}. */
export interface EmojiReport {
  readonly tasks: readonly EmojiTask[];
  /** Retrieval among the trained emoji in the unseen style, per trained language. */
  readonly retrieval: readonly ({ readonly locale: string } & RetrievalResult)[];
  /** Retrieval in the first language with every training style: several images per text. */
  readonly retrievalAllStyles: RetrievalResult;
  /** The baseline on the unseen style, labels of all training styles known, 32 × 32 pixels. */
  readonly pixels: PixelNeighbourResult;
  /** Mistakes on the unseen style in the first language. */
  readonly confusions: readonly EmojiConfusion[];
}

const BASELINE_SIZE = 32;

/**
 * Measures a model on an emoji preset: the unseen style and the training styles, emoji seen and
 * held out, languages trained and not. Nothing of it may be used to choose how to train.
 *
 * @example
 * const report = await evaluateEmoji(data, embedder);
 * const unseen = report.tasks.find((t) => !t.seenStyle && t.part === 'train' && t.kind === 'trained');
 */
export async function evaluateEmoji(
  data: EmojiData,
  embedder: EmojiEmbedder,
): Promise<EmojiReport> {
  const { size, testStyle, trainStyles, locales, unseenLocales } = data.preset;
  const kinds: Readonly<Record<EmojiLanguageKind, readonly string[]>> = {
    trained: locales,
    ...unseenLocales,
  };
  const tasks: EmojiTask[] = [];
  const recalls: ({ readonly locale: string } & RetrievalResult)[] = [];
  const confusions: EmojiConfusion[] = [];
  let retrievalAllStyles: RetrievalResult | undefined;
  for (const part of ['train', 'heldOut'] as const) {
    const count = data.emoji[part].length;
    if (count === 0) continue;
    const images = new Map<EmojiStyle, { readonly rows: Int32Array; readonly embeddings: Rows }>();
    for (const style of [testStyle, ...trainStyles]) {
      const { rows, pixels } = await data.images(style, part);
      if (rows.length === 0) continue; // a partial style may draw none of a small part
      images.set(style, { rows, embeddings: await embedder.images(pixels, size) });
    }
    const texts = new Map<string, { readonly rows: Int32Array; readonly embeddings: Rows }>();
    for (const locale of data.locales) {
      const { rows, texts: names } = data.names(locale, part);
      texts.set(locale, { rows, embeddings: await embedder.texts(names) });
    }
    for (const [style, { rows, embeddings }] of images) {
      for (const [kind, wanted] of Object.entries(kinds)) {
        if (wanted.length === 0) continue;
        const results: EmojiLanguageResult[] = [];
        const hits: Int8Array[] = [];
        for (const locale of wanted) {
          const named = texts.get(locale);
          if (named === undefined) continue;
          const labelOf = new Map([...named.rows].map((row, label) => [row, label]));
          const labels = rows.map((row) => labelOf.get(row) ?? -1);
          const result = zeroShot(embeddings, named.embeddings, labels);
          results.push({ locale, top1: result.top1, top5: result.top5 });
          hits.push(result.hits);
          if (style === testStyle && part === 'train' && locale === locales[0]) {
            confusions.push(...spellOut(result.confusions, data.names(locale, part).texts));
          }
        }
        tasks.push({
          style,
          seenStyle: style !== testStyle,
          part,
          kind: kind as EmojiLanguageKind,
          classes: count,
          chance: 1 / count,
          locales: results,
          top1: meanProportion(hits),
          top5: results.reduce((sum, { top5 }) => sum + top5.value, 0) / results.length,
        });
      }
    }
    if (part === 'heldOut') continue;
    for (const locale of locales) {
      const [unseen, named] = [images.get(testStyle), texts.get(locale)];
      if (unseen === undefined || named === undefined) continue;
      recalls.push({
        locale,
        ...retrieval(unseen.embeddings, named.embeddings, unseen.rows, named.rows),
      });
      if (retrievalAllStyles !== undefined) continue;
      const seen = trainStyles.flatMap((style) => images.get(style) ?? []);
      const concepts = Int32Array.from(seen.flatMap(({ rows }) => [...rows]));
      const embeddings = stack(seen.map((one) => one.embeddings));
      retrievalAllStyles = retrieval(embeddings, named.embeddings, concepts, named.rows);
    }
  }
  return {
    tasks,
    retrieval: recalls,
    retrievalAllStyles: retrievalAllStyles ?? emptyRetrieval(),
    pixels: await pixelBaseline(data),
    confusions,
  };
}

/** The baseline of a preset: unseen style against all training styles, 32 × 32 pixels. */
export async function pixelBaseline(data: EmojiData): Promise<PixelNeighbourResult> {
  const { testStyle, trainStyles } = data.preset;
  const known: EmojiImages[] = [];
  for (const style of trainStyles) known.push(await data.images(style, 'train', BASELINE_SIZE));
  const test = await data.images(testStyle, 'train', BASELINE_SIZE);
  const gallery = Buffer.concat(known.map(({ pixels }) => pixels));
  const galleryLabels = Int32Array.from(known.flatMap(({ rows }) => [...rows]));
  return pixelNeighbour(test.pixels, test.rows, gallery, galleryLabels, BASELINE_SIZE);
}

function spellOut(confusions: readonly Confusion[], names: readonly string[]): EmojiConfusion[] {
  return confusions.map(({ label, predicted }) => ({
    emoji: names[label],
    predicted: names[predicted],
  }));
}

function stack(parts: readonly Rows[]): Rows {
  const width = parts[0]?.width ?? 1;
  const data = new Float32Array(parts.reduce((sum, part) => sum + part.data.length, 0));
  let at = 0;
  for (const part of parts) {
    data.set(part.data, at);
    at += part.data.length;
  }
  return { data, width };
}

function emptyRetrieval(): RetrievalResult {
  const none = { data: new Float32Array(0), width: 1 };
  return retrieval(none, none, new Int32Array(0), new Int32Array(0));
}

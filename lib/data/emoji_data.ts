// A preset turned into data: what to train on, and what to measure on.
import { readEmoji, readEmojiNames, type Emoji, type EmojiNames, type EmojiStyle } from './emoji';
import { emojiDrawings, type DrawingOptions } from './emoji_drawings';
import { drawnRows } from './emoji_icons';
import type { EmojiPreset } from './emoji_presets';
import { splitEmoji } from './emoji_split';
import { pairTable, type PairTable, type WeightedText } from './pair_table';

/** The emoji that training sees, or those that it never sees. */
export type EmojiPart = 'train' | 'heldOut';

/** What one language calls the emoji of a part. */
export interface EmojiTexts {
  /** Rows of the part's emoji that have a name here, ascending. */
  readonly rows: Int32Array;
  /** The names, one per row of `rows`. */
  readonly texts: readonly string[];
}

/** What one style draws of a part. */
export interface EmojiImages {
  /** Rows of the part's emoji that are drawn here, ascending; all of them in a complete style. */
  readonly rows: Int32Array;
  /** The drawings, one per row of `rows`: (N, S, S, 3). */
  readonly pixels: Uint8Array;
}

/**
 * The emoji of a preset with their drawings and names.
 *
 * @example
 * const data = new EmojiData(emojiPreset('animals-food'));
 * const table = await data.trainingTable((texts) => tokenizer.encode(texts));
 * const { pixels } = await data.images('twemoji', 'train');    // (259, 32, 32, 3)
 * const { texts } = data.names('en', 'train');                  // 259 names
 */
export class EmojiData {
  /** Emoji of each part, in Unicode's order. */
  readonly emoji: Readonly<Record<EmojiPart, readonly Emoji[]>>;
  private readonly namesOf = new Map<string, EmojiNames>();

  /**
   * @param options where packages and the cache of drawings are
   * @throws ERR_FILE when a package is missing
   */
  constructor(
    readonly preset: EmojiPreset,
    private readonly options: DrawingOptions = {},
  ) {
    const { groups, heldOut, splitSeed } = preset;
    this.emoji = splitEmoji(readEmoji({ ...options, groups }), heldOut, splitSeed);
  }

  /**
   * Drawings of a part in one style; drawn once, then cached.
   *
   * @param size S, default that of the preset
   */
  async images(style: EmojiStyle, part: EmojiPart, size = this.preset.size): Promise<EmojiImages> {
    const emoji = this.emoji[part];
    const rows = drawnRows(emoji, style, this.options);
    const drawn = [...rows].map((row) => emoji[row]);
    return { rows, pixels: await emojiDrawings(drawn, style, size, this.options) };
  }

  /** Names of a part in one language. */
  names(locale: string, part: EmojiPart): EmojiTexts {
    const { names } = this.annotations(locale, part);
    const rows = Int32Array.from(names.keys()).filter((row) => names[row] !== undefined);
    return { rows, texts: names.filter((name) => name !== undefined) };
  }

  /** Every language of the preset: trained ones first, then the unseen ones. */
  get locales(): readonly string[] {
    const { near, far, ownScript } = this.preset.unseenLocales;
    return [...this.preset.locales, ...near, ...far, ...ownScript];
  }

  /**
   * Every text that training or evaluation may use: what a tokenizer restricted to the used pieces
   * has to know.
   */
  texts(): string[] {
    const texts = new Set<string>();
    for (const locale of this.locales) {
      for (const part of ['train', 'heldOut'] as const) {
        const { names, keywords } = this.annotations(locale, part);
        for (const name of names) if (name !== undefined) texts.add(name);
        if (this.preset.keywordShare > 0) for (const word of keywords.flat()) texts.add(word);
      }
    }
    return [...texts];
  }

  /**
   * The training pairs: every trained emoji in every training style that draws it, with its names (and keywords,
   * where the preset has a share for them) in the trained languages, each language equally likely.
   *
   * @param tokenize gives (M, T) token ids for M texts; left out, batches carry texts only
   * @param size pixels per side of the drawings, default that of the preset
   */
  async trainingTable(
    tokenize?: (texts: readonly string[]) => Int32Array,
    size = this.preset.size,
  ): Promise<PairTable> {
    const { name, trainStyles, locales, keywordShare } = this.preset;
    const drawn: EmojiImages[] = [];
    for (const style of trainStyles) drawn.push(await this.images(style, 'train', size));
    const pixels = Buffer.concat(drawn.map((style) => style.pixels));
    const concepts = drawn.flatMap(({ rows }) => [...rows]);
    const annotations = locales.map((locale) => this.annotations(locale, 'train'));
    const texts = this.emoji.train.map((_, row) =>
      annotations.flatMap((one): WeightedText[] => textsOf(one, row, keywordShare)),
    );
    return pairTable({ name, size, pixels, concepts, texts, tokenize });
  }

  private annotations(locale: string, part: EmojiPart): EmojiNames {
    const key = `${part} ${locale}`;
    let found = this.namesOf.get(key);
    if (found === undefined) {
      found = readEmojiNames(this.emoji[part], locale, this.options);
      this.namesOf.set(key, found);
    }
    return found;
  }
}

/** Texts of one emoji in one language, of weight 1 in all. */
function textsOf({ names, keywords }: EmojiNames, row: number, share: number): WeightedText[] {
  const name = names[row];
  if (name === undefined) return [];
  const words = share > 0 ? keywords[row] : [];
  if (words.length === 0) return [{ text: name, weight: 1 }];
  const named = share < 1 ? [{ text: name, weight: 1 - share }] : [];
  return [...named, ...words.map((text) => ({ text, weight: share / words.length }))];
}

// Emoji as a source of rows: every drawing that training sees with its name in every language.
import sharp from 'sharp';
import { Philox4x32 } from '../array/random';
import type { Row, Source } from '../corpus';
import { digest } from '../corpus';
import type { EmojiStyle } from './emoji';
import type { EmojiImages } from './emoji_data';
import { EmojiData } from './emoji_data';
import type { DrawingOptions } from './emoji_drawings';
import type { EmojiPreset } from './emoji_presets';
import { shuffle } from './shuffle';

/**
 * The training pairs of a preset in an order of no meaning, always the same. An id is
 * `<style>/<code points>/<language>`; images are PNG of the preset's size.
 *
 * @throws ERR_FILE when a package is missing
 */
export async function emojiSource(
  preset: EmojiPreset,
  options: DrawingOptions = {},
): Promise<Source> {
  const data = new EmojiData(preset, options);
  const emoji = data.emoji.train;
  const drawings = new Map<EmojiStyle, EmojiImages>();
  for (const style of preset.trainStyles) drawings.set(style, await data.images(style, 'train'));
  const pairs = [...drawings].flatMap(([style, { rows: drawn, pixels }]) => {
    const places = new Map(Array.from(drawn, (row, place) => [row, place]));
    return preset.locales.flatMap((locale) => {
      const { rows, texts } = data.names(locale, 'train');
      return Array.from(rows).flatMap((row, i) => {
        const place = places.get(row);
        if (place === undefined) return [];
        return [{ id: `${style}/${emoji[row].key}/${locale}`, text: texts[i], pixels, place }];
      });
    });
  });
  shuffle(pairs, new Philox4x32(preset.splitSeed, `order of ${preset.name}`));
  const { size } = preset;
  const bytes = 3 * size * size;
  const png = (pixels: Uint8Array, place: number): Promise<Buffer> =>
    sharp(pixels.subarray(place * bytes, (place + 1) * bytes), {
      raw: { width: size, height: size, channels: 3 },
    })
      .png()
      .toBuffer();
  return {
    name: `emoji ${preset.name}`,
    idKey: 'id',
    what: 'both',
    bytes: pairs.length * bytes,
    length: pairs.length,
    fingerprint: digest([String(size), ...pairs.flatMap(({ id, text }) => [id, text])]),
    async *rows(wanted): AsyncGenerator<Row, void, undefined> {
      for (const [index, { id, text, pixels, place }] of pairs.entries()) {
        if (!wanted(index)) continue;
        yield { index, id, text, image: { bytes: await png(pixels, place) } };
      }
    },
  };
}

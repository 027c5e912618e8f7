// Emoji as a source of rows: every drawing that training sees with its name in every language.
import sharp from 'sharp';
import { Philox4x32 } from '../array/random';
import type { Row, Source } from '../corpus';
import { digest } from '../corpus';
import type { EmojiStyle } from './emoji';
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
  const drawings = new Map<EmojiStyle, Uint8Array>();
  for (const style of preset.trainStyles) drawings.set(style, await data.images(style, 'train'));
  const pairs = [...drawings].flatMap(([style, pixels]) =>
    preset.locales.flatMap((locale) => {
      const { rows, texts } = data.names(locale, 'train');
      return Array.from(rows, (row, i) => ({
        id: `${style}/${emoji[row].key}/${locale}`,
        text: texts[i],
        pixels,
        row,
      }));
    }),
  );
  shuffle(pairs, new Philox4x32(preset.splitSeed, `order of ${preset.name}`));
  const { size } = preset;
  const bytes = 3 * size * size;
  const png = (pixels: Uint8Array, row: number): Promise<Buffer> =>
    sharp(pixels.subarray(row * bytes, (row + 1) * bytes), {
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
      for (const [index, { id, text, pixels, row }] of pairs.entries()) {
        if (!wanted(index)) continue;
        yield { index, id, text, image: { bytes: await png(pixels, row) } };
      }
    },
  };
}

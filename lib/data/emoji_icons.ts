// Which icon of a style draws which emoji.
import {
  completeStyles,
  readEmoji,
  readEmojiJson,
  resolveEmojiPackage,
  type Emoji,
  type EmojiPackageOptions,
  type EmojiStyle,
} from './emoji';

/** A drawing as iconify stores it. */
export interface Icon {
  /** What is inside of the `<svg>`. */
  readonly body: string;
  readonly width?: number;
  readonly height?: number;
}

/** The file `icons.json` of a style. */
export interface IconSet {
  readonly icons: Readonly<Partial<Record<string, Icon>>>;
  readonly aliases?: Readonly<Record<string, { readonly parent: string }>>;
  /** Of icons that name no size of their own. */
  readonly width?: number;
  readonly height?: number;
}

/** All icons of a style. @throws ERR_FILE when its package is missing */
export function readIconSet(style: EmojiStyle, options: EmojiPackageOptions = {}): IconSet {
  const path = resolveEmojiPackage(`@iconify-json/${style}/icons.json`, options);
  return readEmojiJson(path) as IconSet;
}

/**
 * The icon of each emoji that a style draws, by the emoji's key. A complete style lists its
 * characters; in a partial one the icon, or an alias of it, bears Unicode's name of the emoji. What names
 * several (`cricket-game`: the game, and by an alias the insect) counts for none.
 *
 * @throws ERR_FILE when a package is missing
 */
export function iconNames(
  style: EmojiStyle,
  options: EmojiPackageOptions = {},
): ReadonlyMap<string, string> {
  if ((completeStyles as readonly string[]).includes(style)) {
    const path = resolveEmojiPackage(`@iconify-json/${style}/chars.json`, options);
    return new Map(Object.entries(readEmojiJson(path) as Readonly<Record<string, string>>));
  }
  const { icons, aliases = {} } = readIconSet(style, options);
  const byName = new Map<string, string>();
  for (const [alias, { parent }] of Object.entries(aliases)) byName.set(letters(alias), parent);
  for (const icon of Object.keys(icons)) byName.set(letters(icon), icon);
  const claims = new Map<string, string[]>();
  for (const { key, name } of readEmoji(options)) {
    const icon = byName.get(letters(name));
    if (icon !== undefined) claims.set(icon, [...(claims.get(icon) ?? []), key]);
  }
  const certain = [...claims].filter(([, keys]) => keys.length === 1);
  return new Map(certain.map(([icon, [key]]) => [key, icon]));
}

/** Rows of the emoji that a style draws, ascending. @throws ERR_FILE when a package is missing */
export function drawnRows(
  emoji: readonly Emoji[],
  style: EmojiStyle,
  options: EmojiPackageOptions = {},
): Int32Array {
  const names = iconNames(style, options);
  return Int32Array.from(emoji.keys()).filter((row) => names.has(emoji[row].key));
}

/** Letters and digits of a name without accents: spellings differ in hyphens and apostrophes. */
function letters(name: string): string {
  return name
    .normalize('NFD')
    .toLowerCase()
    .replace(/[^a-z0-9]/g, '');
}

// Emoji as training data: which ones there are, what they are called in a hundred languages.
//
// Everything is read from installed npm packages: code points and subgroups from `emoji.json`
// (Unicode's emoji-test.txt), names and keywords from CLDR, and which emoji a complete style draws
// from the style's `chars.json`. The three spell code points differently, so the key of an emoji
// everywhere here is its code points in lower-case hexadecimal joined by '-', without the variation
// selector fe0f.
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { SiglipError } from '../errors';

/** The styles that draw every emoji here: each is the npm package `@iconify-json/<style>`. */
export const completeStyles = ['noto', 'twemoji', 'openmoji', 'fluent-emoji-flat'] as const;

/** Styles that draw some of them: most are older than the rest of the emoji. */
export const partialStyles = [
  'noto-v1',
  'emojione',
  'emojione-v1',
  'fxemoji',
  'streamline-emojis',
] as const;

/** All drawing styles. */
export const emojiStyles = [...completeStyles, ...partialStyles] as const;

/** One of {@link completeStyles}. */
export type CompleteStyle = (typeof completeStyles)[number];

/** One of {@link emojiStyles}. */
export type EmojiStyle = (typeof emojiStyles)[number];

/**
 * Unicode's groups of emoji as they occur among those that all complete styles draw, in
 * Unicode's order.
 */
export const emojiGroups = [
  'Smileys & Emotion',
  'People & Body',
  'Animals & Nature',
  'Food & Drink',
  'Travel & Places',
  'Activities',
  'Objects',
  'Symbols',
  'Flags',
] as const;

/** One of {@link emojiGroups}. */
export type EmojiGroup = (typeof emojiGroups)[number];

/** One emoji: a concept with a drawing in every complete style and a name per language. */
export interface Emoji {
  /** Code points in lower-case hexadecimal, joined by '-', without fe0f: `1f469-200d-1f33e`. */
  readonly key: string;
  /** The character itself, as Unicode writes it when fully qualified. */
  readonly character: string;
  /** Unicode's English name. */
  readonly name: string;
  readonly group: EmojiGroup;
  /** Unicode's subgroup: `animal-mammal`, `food-fruit`, … */
  readonly subgroup: string;
  /**
   * Key of the family: emoji that differ in gender, direction or one colour share it, and so do the
   * clocks. Their drawings are near copies, so a split must keep a family on one side.
   */
  readonly family: string;
}

/** What one language calls a list of emoji. */
export interface EmojiNames {
  /** CLDR's locale: `en`, `zh-Hant`, … */
  readonly locale: string;
  /** Short name of each emoji; undefined where CLDR has none. */
  readonly names: readonly (string | undefined)[];
  /** Keywords of each emoji, most languages have several. */
  readonly keywords: readonly (readonly string[])[];
}

/** Where the packages are looked for. */
export interface EmojiPackageOptions {
  /** Folder from which the packages are resolved first; default: the working directory. */
  root?: string | undefined;
}

/**
 * The two Noto drawings that abort other rasterisers (resvg); left out so that figures stay
 * comparable whoever draws.
 */
const EXCLUDED = new Set(['1f4e6', '1f3f3-200d-1f308']);

/** All that {@link readEmoji} and the drawings need, in the order to install them. */
export const emojiPackages: readonly string[] = [
  ...emojiStyles.map((style) => `@iconify-json/${style}`),
  'cldr-annotations-full',
  'cldr-annotations-derived-full',
  'emoji.json',
];

interface EmojiRecord {
  readonly codes: string;
  readonly char: string;
  readonly name: string;
  readonly group: string;
  readonly subgroup: string;
}

type Annotations = Readonly<
  Record<string, { readonly default?: readonly string[]; readonly tts?: readonly string[] }>
>;

interface AnnotationsFile {
  readonly annotations?: { readonly annotations?: Annotations };
  readonly annotationsDerived?: { readonly annotations?: Annotations };
}

/**
 * Path of a file in an installed package.
 *
 * @throws ERR_FILE when the package is not installed; the message names what to install
 */
export function resolveEmojiPackage(id: string, options: EmojiPackageOptions = {}): string {
  const paths = [options.root ?? process.cwd(), __dirname];
  try {
    return require.resolve(id, { paths });
  } catch (cause) {
    throw new SiglipError(
      'ERR_FILE',
      `emoji: ${id} must be an installed package, got nothing from ${paths.join(' or ')}\n` +
        `install the emoji data: npm install --save-dev ${emojiPackages.join(' ')}`,
      { cause },
    );
  }
}

/** A JSON file of a package; packages are pinned, so callers state its shape. */
export function readEmojiJson(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch (cause) {
    throw new SiglipError('ERR_FILE', `emoji: ${path} must be a readable JSON file, got none`, {
      cause,
    });
  }
}

function keyOf(codes: string): string {
  return codes
    .toLowerCase()
    .split(' ')
    .filter((code) => code !== 'fe0f')
    .join('-');
}

function withoutSelector(character: string): string {
  return character.replaceAll('\ufe0f', '');
}

/**
 * The emoji that all complete styles draw, skin tones aside, in Unicode's order: 1,592 with the
 * package versions this was written for.
 *
 * @param options `groups`: only these groups, default all; `root`: where to resolve packages
 * @throws ERR_FILE when a package is missing, ERR_ARGUMENT when a group is unknown
 *
 * @example
 * const fruit = readEmoji({ groups: ['Food & Drink'] }).filter((e) => e.subgroup === 'food-fruit');
 */
export function readEmoji(
  options: EmojiPackageOptions & { groups?: readonly EmojiGroup[] | undefined } = {},
): Emoji[] {
  for (const group of options.groups ?? []) {
    if (!emojiGroups.includes(group)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `readEmoji: groups must be of ${emojiGroups.join(', ')}, got ${group as string}`,
      );
    }
  }
  const wanted = new Set<string>(options.groups ?? emojiGroups);
  const drawn = completeStyles.map(
    (style) =>
      readEmojiJson(resolveEmojiPackage(`@iconify-json/${style}/chars.json`, options)) as Readonly<
        Partial<Record<string, string>>
      >,
  );
  const records = readEmojiJson(
    resolveEmojiPackage('emoji.json/emoji.json', options),
  ) as readonly EmojiRecord[];
  const emoji = new Map<string, Emoji>();
  for (const record of records) {
    const key = keyOf(record.codes);
    // Unqualified spellings of one emoji follow its full one; the first is kept.
    if (!wanted.has(record.group) || emoji.has(key) || EXCLUDED.has(key)) continue;
    if (record.name.includes('skin tone') || !drawn.every((chars) => key in chars)) continue;
    emoji.set(key, {
      key,
      character: record.char,
      name: record.name,
      group: record.group as EmojiGroup,
      subgroup: record.subgroup,
      family: familyOf(key, record.subgroup),
    });
  }
  return [...emoji.values()];
}

/** Emoji of one family whose code points do not say so, by what joins them. */
const FAMILIES: readonly (readonly string[])[] = [
  ['1f9d1', '1f468', '1f469'], // person, man, woman
  ['1f9d2', '1f466', '1f467'], // child
  ['1f9d3', '1f474', '1f475'], // older person
  ['1fac5', '1f934', '1f478'], // with crown
  ['1f9d1-200d-1f384', '1f385', '1f936'], // Claus
  ['1fac4', '1fac3', '1f930'], // pregnant
  ['1f483', '1f57a'], // dancing
  ['1f91d-pair', '1f46b', '1f46c', '1f46d', '1f9d1-200d-1f91d-200d-1f9d1'], // holding hands
  ['1f48f', '1f9d1-200d-2764-200d-1f48b-200d-1f9d1'], // kiss
  ['1f491', '1f9d1-200d-2764-200d-1f9d1'], // couple with heart
  ['1f408', '1f408-200d-2b1b'], // cat, black cat
  ['1f415', '1f415-200d-1f9ba', '1f9ae'], // dog, service dog, guide dog
  ['1f43b', '1f43b-200d-2744'], // bear, polar bear
  ['1f426', '1f426-200d-2b1b'], // bird, black bird
  ['1f34b', '1f34b-200d-1f7e9'], // lemon, lime
  ['1f344', '1f344-200d-1f7eb'], // mushroom, brown mushroom
];

const FAMILY_OF = new Map(
  FAMILIES.flatMap((members) => members.map((member) => [member, members[0]] as const)),
);

/** Watch, alarm clock, stopwatch, timer, mantelpiece clock and the 24 clock faces. */
const CLOCK = /^(231a|23f0|23f1|23f2|1f570|1f55[0-9a-f]|1f56[0-7])$/;

function familyOf(key: string, subgroup: string): string {
  if (CLOCK.test(key)) return 'clock';
  if (subgroup === 'family' && !FAMILY_OF.has(key)) return 'family';
  const parts = key.split('-200d-').filter((part) => !/^(2640|2642|27a1)$/.test(part));
  const neutral = parts
    .map((part) => part.replace(/^1f46[89]$/, '1f9d1')) // man or woman in a role: person
    .join('-200d-');
  return FAMILY_OF.get(neutral) ?? neutral;
}

/**
 * Names and keywords of these emoji in one language, from the two CLDR packages.
 *
 * @throws ERR_FILE when the packages are not installed, ERR_ARGUMENT when CLDR lacks the locale
 */
export function readEmojiNames(
  emoji: readonly Emoji[],
  locale: string,
  options: EmojiPackageOptions = {},
): EmojiNames {
  const plain = join(
    dirname(resolveEmojiPackage('cldr-annotations-full/package.json', options)),
    'annotations',
  );
  const derived = join(
    dirname(resolveEmojiPackage('cldr-annotations-derived-full/package.json', options)),
    'annotationsDerived',
  );
  if (!/^[A-Za-z0-9-]+$/.test(locale)) throw unknownLocale(locale);
  const found = new Map<string, { name: string | undefined; keywords: readonly string[] }>();
  let files = 0;
  for (const folder of [plain, derived]) {
    const path = join(folder, locale, 'annotations.json');
    if (!existsSync(path)) continue; // a locale may be in one package only
    const file = readEmojiJson(path) as AnnotationsFile;
    files++;
    const entries = (file.annotations ?? file.annotationsDerived)?.annotations ?? {};
    for (const [character, { default: keywords = [], tts = [] }] of Object.entries(entries)) {
      found.set(withoutSelector(character), { name: tts[0], keywords });
    }
  }
  if (files === 0) throw unknownLocale(locale);
  const rows = emoji.map(({ character }) => found.get(withoutSelector(character)));
  return {
    locale,
    names: rows.map((row) => row?.name),
    keywords: rows.map((row) => row?.keywords ?? []),
  };
}

function unknownLocale(locale: string): SiglipError {
  return new SiglipError(
    'ERR_ARGUMENT',
    `readEmojiNames: locale must be one of CLDR's annotated locales, got ${locale}`,
  );
}

// Named choices of emoji data. What is measured on `testStyle`, on held-out emoji and on unseen
// languages is only honest as long as nothing was chosen by looking at it: everything here was
// chosen on the training styles, leaving one of them out at a time.
import { SiglipError } from '../errors';
import type { AugmentOptions } from './augment';
import { partialStyles, type CompleteStyle, type EmojiGroup, type EmojiStyle } from './emoji';

/** Languages that training never sees, by how much it can know about them. */
export interface UnseenLocales {
  /** Related to a trained language, same script. */
  readonly near: readonly string[];
  /** Script of a trained language, but not related to any. */
  readonly far: readonly string[];
  /** A script of its own: chance is expected, unless tokens are shared. */
  readonly ownScript: readonly string[];
}

/** Which emoji, drawings and languages to train on, and which to keep for measuring. */
export interface EmojiPreset {
  readonly name: string;
  /** Unicode groups, default all. */
  readonly groups?: readonly EmojiGroup[] | undefined;
  /** Pixels per side. */
  readonly size: number;
  readonly trainStyles: readonly EmojiStyle[];
  /** The style that is only ever measured. */
  readonly testStyle: CompleteStyle;
  /** CLDR locales to train on, each drawn equally often. */
  readonly locales: readonly string[];
  readonly unseenLocales: UnseenLocales;
  /** Share of the emoji that training never sees. */
  readonly heldOut: number;
  readonly splitSeed: number;
  /** Share of the texts that are a keyword rather than the name. */
  readonly keywordShare: number;
  readonly augment: AugmentOptions;
}

// Mild in colour, which drawings of different styles share. Measured on `noto`, trained on two other
// styles, 259-way, mean of four languages: gain 0.3, offset 0.15 and grey 0.2 gave 13 % after 128,000
// pairs where half of that gave 21 %; mirroring gained nothing (23 % without); the strengths below
// gave 26 % after 256,000 pairs.
const MILD: AugmentOptions = {
  rotate: 12,
  scale: [0.85, 1.15],
  shift: 0.08,
  gain: 0.1,
  offset: 0.05,
  grey: 0.05,
};

// With more styles the drawings themselves differ more, and stronger changes pay. Measured on
// `fluent-emoji-flat`, trained on the seven other training styles, 259-way, mean of four languages,
// 256,000 pairs: 39.8 % where the mild ones gave 37.1 %; after 512,000 pairs 45.3 %.
const STRONGER: AugmentOptions = {
  rotate: 15,
  scale: [0.8, 1.2],
  stretch: 0.1,
  shear: 0.1,
  shift: 0.1,
  hue: 0.03,
  grey: 0.1,
  gain: 0.15,
  offset: 0.08,
};

const SPLIT = { testStyle: 'twemoji', heldOut: 0.1, splitSeed: 0 } as const;

const LANGUAGES = {
  locales: ['en', 'de', 'ja', 'ar'],
  unseenLocales: {
    near: ['nl', 'sv', 'fa'],
    far: ['fi', 'eu', 'tr'],
    ownScript: ['ka', 'hy', 'km', 'th'],
  },
} as const;

const THREE_STYLES = ['noto', 'fluent-emoji-flat', 'openmoji'] as const;
const EIGHT_STYLES = [...THREE_STYLES, ...partialStyles] as const;

const ANIMALS_FOOD = {
  groups: ['Animals & Nature', 'Food & Drink'],
  size: 32,
  ...SPLIT,
  ...LANGUAGES,
  keywordShare: 0,
} as const;

/**
 * - `animals-food`: 288 emoji (259 to train on) in eight styles, 32 px: minutes on two cores.
 * - `animals-food-3`: the same in three styles, on which the experiments of docs/experiments ran.
 * - `full`: 1,592 emoji (1,433 to train on) in eight styles, 32 px: an hour on two cores.
 */
export const emojiPresets = {
  'animals-food': {
    name: 'animals-food',
    ...ANIMALS_FOOD,
    trainStyles: EIGHT_STYLES,
    augment: STRONGER,
  },
  'animals-food-3': {
    name: 'animals-food-3',
    ...ANIMALS_FOOD,
    trainStyles: THREE_STYLES,
    augment: MILD,
  },
  full: {
    name: 'full',
    size: 32,
    ...SPLIT,
    ...LANGUAGES,
    trainStyles: EIGHT_STYLES,
    keywordShare: 0,
    augment: MILD,
  },
} as const satisfies Readonly<Record<string, EmojiPreset>>;

/** Name of a preset. */
export type EmojiPresetName = keyof typeof emojiPresets;

/**
 * A preset by its name.
 *
 * @throws ERR_ARGUMENT when there is none of that name
 */
export function emojiPreset(name: string): EmojiPreset {
  if (Object.hasOwn(emojiPresets, name)) return emojiPresets[name as EmojiPresetName];
  throw new SiglipError(
    'ERR_ARGUMENT',
    `emojiPreset: name must be one of ${Object.keys(emojiPresets).join(', ')}, got ${name}`,
  );
}

/**
 * The hundred locales in which CLDR 48 names at least 1,800 emoji. `fil` is left out of what is
 * measured: a fifth of its names are English.
 */
// prettier-ignore
export const emojiLocales: readonly string[] = [
  'af', 'am', 'ar', 'as', 'az', 'ba', 'be', 'bg', 'bn', 'bs', 'ca', 'chr', 'cs', 'cv', 'cy', 'de',
  'dsb', 'el', 'en', 'es', 'et', 'eu', 'fa', 'fi', 'fil', 'fo', 'fr', 'ga', 'gd', 'gl', 'gu',
  'ha', 'he', 'hi', 'hr', 'hsb', 'hu', 'hy', 'id', 'is', 'it', 'ja', 'jv', 'ka', 'kk', 'kk-Arab',
  'km', 'kn', 'ko', 'kok', 'ky', 'lo', 'lt', 'lv', 'mk', 'ml', 'mn', 'mr', 'ms', 'my', 'ne', 'nl',
  'no', 'or', 'pa', 'pcm', 'pl', 'ps', 'pt', 'rm', 'ro', 'ru', 'sd', 'shn', 'si', 'sk', 'sl', 'so',
  'sq', 'sr', 'sr-Latn', 'sv', 'sw', 'ta', 'te', 'th', 'ti', 'tk', 'to', 'tr', 'uk', 'ur', 'uz',
  'vi', 'yo', 'yue', 'yue-Hans', 'zh', 'zh-Hant', 'zu',
];

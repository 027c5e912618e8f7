// Which emoji are never shown in training.
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import type { Emoji } from './emoji';

/** Emoji to train on, and emoji that training never sees. */
export interface EmojiSplit {
  readonly train: readonly Emoji[];
  readonly heldOut: readonly Emoji[];
}

/**
 * Holds out whole families, spread over the subgroups: walking through the subgroups, with their
 * families in random order, a family is held out whenever the share held out so far has fallen
 * behind by half of it. Both parts keep the order they came in.
 *
 * @param fraction share of the emoji to hold out, default 0.1
 * @param seed default 0
 */
export function splitEmoji(emoji: readonly Emoji[], fraction = 0.1, seed = 0): EmojiSplit {
  if (!(fraction >= 0 && fraction <= 1)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `splitEmoji: fraction must be from 0 to 1, got ${String(fraction)}`,
    );
  }
  const random = new Philox4x32(seed, 'emoji split');
  const heldOut = new Set<string>();
  let seen = 0;
  let held = 0;
  for (const families of familiesBySubgroup(emoji)) {
    for (let i = families.length - 1; i > 0; i--) {
      const j = random.integer(i + 1);
      [families[i], families[j]] = [families[j], families[i]];
    }
    for (const family of families) {
      seen += family.length;
      if (held + family.length / 2 > fraction * seen) continue;
      held += family.length;
      for (const { key } of family) heldOut.add(key);
    }
  }
  return {
    train: emoji.filter(({ key }) => !heldOut.has(key)),
    heldOut: emoji.filter(({ key }) => heldOut.has(key)),
  };
}

/** Families grouped by the subgroup of their first member. */
function familiesBySubgroup(emoji: readonly Emoji[]): Emoji[][][] {
  const families = new Map<string, Emoji[]>();
  for (const one of emoji) {
    const family = families.get(one.family);
    if (family === undefined) families.set(one.family, [one]);
    else family.push(one);
  }
  const subgroups = new Map<string, Emoji[][]>();
  for (const family of families.values()) {
    const subgroup = family[0]?.subgroup ?? '';
    const found = subgroups.get(subgroup);
    if (found === undefined) subgroups.set(subgroup, [family]);
    else found.push(family);
  }
  return [...subgroups.values()];
}

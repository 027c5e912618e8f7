import type { Philox4x32 } from '../array/random';

/** Permutes in place (Fisher and Yates). */
export function shuffle(items: unknown[], random: Philox4x32): void {
  for (let i = items.length - 1; i > 0; i--) {
    const j = random.integer(i + 1);
    const swapped = items[i];
    items[i] = items[j];
    items[j] = swapped;
  }
}

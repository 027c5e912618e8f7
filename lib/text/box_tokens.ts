// Boxes as a decoder writes and reads them.
import { SiglipError } from '../errors';
import type { CaptionFormat } from '../model';
import { boxSteps } from '../model';
import type { Tokenizer } from './tokenizer';

/** A box in fractions of the image's height and width, 0 to 1. */
export type Box = readonly [ymin: number, xmin: number, ymax: number, xmax: number];

/** @throws SiglipError ERR_ARGUMENT unless 0 ≤ ymin ≤ ymax ≤ 1 and 0 ≤ xmin ≤ xmax ≤ 1 */
export function expectBox(who: string, box: Box): Box {
  const [ymin, xmin, ymax, xmax] = box;
  if (0 <= ymin && ymin <= ymax && ymax <= 1 && 0 <= xmin && xmin <= xmax && xmax <= 1) return box;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: box must be [ymin, xmin, ymax, xmax] with minima up to maxima in 0 to 1, got [${box.join(', ')}]`,
  );
}

/** Coordinates as they are written, 0 to steps − 1. */
function steps(box: Box, boxes: CaptionFormat['boxes']): number[] {
  return box.map((value) => Math.round(value * (boxSteps[boxes] - 1)));
}

/** The ids of a box behind a text; see `CaptionFormat.boxes`. */
export function boxIds(tokenizer: Tokenizer, box: Box, { boxes }: CaptionFormat): Int32Array {
  const numbers = steps(box, boxes);
  return boxes === 'loc'
    ? Int32Array.from(numbers, (step) => tokenizer.vocabulary + step)
    : tokenizer.ids(` ${numbers.join(' ')}`);
}

/**
 * The first box among ids that a decoder wrote.
 *
 * @returns undefined where there is none: fewer than four numbers, numbers out of range, or a minimum
 * above its maximum
 */
export function parseBox(
  tokenizer: Tokenizer,
  ids: ArrayLike<number>,
  { boxes }: CaptionFormat,
): Box | undefined {
  const numbers =
    boxes === 'loc'
      ? Array.from(ids)
          .map((id) => id - tokenizer.vocabulary)
          .filter((step) => step >= 0)
          .slice(0, 4)
      : (/\d+(?:\s+\d+){3}/u.exec(captionText(tokenizer, ids))?.[0] ?? '')
          .split(/\s+/u)
          .filter((word) => word !== '')
          .map(Number);
  const last = boxSteps[boxes] - 1;
  const [ymin, xmin, ymax, xmax] = numbers;
  if (numbers.length !== 4 || numbers.some((step) => step > last)) return undefined;
  if (ymin > ymax || xmin > xmax) return undefined;
  return [ymin / last, xmin / last, ymax / last, xmax / last];
}

/** The text among ids that a decoder wrote, up to the end of its sequence. */
export function captionText(tokenizer: Tokenizer, ids: ArrayLike<number>): string {
  const all = Array.from(ids);
  const end = all.indexOf(tokenizer.eosId);
  const written = end < 0 ? all : all.slice(0, end);
  return tokenizer.decode(written.filter((id) => id < tokenizer.vocabulary)).trim();
}

// What a curated step picks out of its super-batch and what it leaves, for the page of its run.
import type { Selection } from '../train';
import { pngUrl } from './png_url';
import type { Picture, PictureRow } from './run_page';

/** Pairs shown of either kind. */
const SHOWN = 8;

/** The picked pairs of the highest score, and those of the lowest that were dropped. */
export async function selectionPictures({
  candidates,
  rows,
  scores,
}: Selection): Promise<PictureRow[]> {
  const { images, size, texts, step } = candidates;
  const chosen = new Set(rows);
  const scoreOf = (row: number): number => scores?.[row] ?? 0;
  const byScore = Array.from(texts.keys()).sort((a, b) => scoreOf(b) - scoreOf(a));
  const picked = byScore.filter((row) => chosen.has(row));
  const dropped = byScore.filter((row) => !chosen.has(row)).reverse();
  const bytes = 3 * size * size;
  const picture = async (row: number): Promise<Picture> => ({
    image: await pngUrl({
      data: images.slice(row * bytes, (row + 1) * bytes),
      width: size,
      height: size,
      channels: 3,
    }),
    title: texts[row],
    lines: scores === undefined ? [] : [`score ${scores[row].toFixed(3)}`],
  });
  const row = async (title: string, of: readonly number[]): Promise<PictureRow> => {
    const mean = of.reduce((sum, one) => sum + scoreOf(one), 0) / Math.max(of.length, 1);
    const scored = scores === undefined ? 'drawn at random' : `mean score ${mean.toFixed(3)}`;
    return {
      title,
      text: `${String(of.length)} of the ${String(texts.length)} pairs of batch ${String(step)}, ${scored}.`,
      pictures: await Promise.all(of.slice(0, SHOWN).map(picture)),
    };
  };
  return Promise.all([
    row('Picked to train on, the highest scores', picked),
    row('Dropped, the lowest scores', dropped),
  ]);
}

// The page of a run tells what a curated stage picks and what it drops.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { RunWatcher } from '../../lib/cli/run_watcher';
import { selectionPictures } from '../../lib/cli/selection_pictures';
import type { Selection } from '../../lib/train';
import { runRecipe, stagesOf } from '../../lib/train';
import { openStream, pixelTable, recipe } from '../train/recipe_noise';

const [curated] = recipe.stages.filter(({ curation }) => curation !== undefined);

async function selectionsOf(folder: string): Promise<Selection[]> {
  const watcher = new RunWatcher(recipe, folder, stagesOf(recipe, [curated.name]));
  const selections: Selection[] = [];
  const finished = await runRecipe(recipe, {
    folder,
    pixelTable,
    stages: [curated.name],
    device: 'cpu',
    openStream: openStream(recipe),
    onStep: (stage, metrics) => {
      watcher.step(stage, metrics);
    },
    onSelection: (stage, selection) => {
      expect(stage.name).toBe(curated.name);
      selections.push(selection);
      watcher.select(stage, selection);
    },
    onStageEnd: (stage) => watcher.end(stage),
  });
  expect(finished).toBe(true);
  return selections;
}

test('a curated stage shows its picks with their scores, and what it dropped', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-run-page-'));
  const written = jest.spyOn(process.stderr, 'write').mockReturnValue(true);
  try {
    const selections = await selectionsOf(folder);
    const page = readFileSync(join(folder, 'run.html'), 'utf8');
    // The first is drawn at once, others not before the page is written again.
    for (const { title, text, pictures } of await selectionPictures(selections[0])) {
      expect(page).toContain(title);
      expect(page).toContain(text);
      for (const { image } of pictures) expect(page).toContain(image);
    }

    const last = selections[selections.length - 1];
    const { scores, rows, candidates } = last;
    if (scores === undefined) throw new Error('a curated stage must score');
    const [picked, dropped] = await selectionPictures(last);
    expect(picked.pictures).toHaveLength(rows.length);
    expect(picked.pictures.length + dropped.pictures.length).toBe(candidates.texts.length);
    const unpicked = Array.from(scores.keys()).filter((row) => !rows.includes(row));
    const best = Math.max(...Array.from(rows, (row) => scores[row]));
    const worst = Math.min(...unpicked.map((row) => scores[row]));
    expect(picked.pictures[0].lines).toEqual([`score ${best.toFixed(3)}`]);
    expect(dropped.pictures[0].lines).toEqual([`score ${worst.toFixed(3)}`]);
    expect(unpicked.map((row) => candidates.texts[row])).toContain(dropped.pictures[0].title);
  } finally {
    written.mockRestore();
    rmSync(folder, { recursive: true, force: true });
  }
});

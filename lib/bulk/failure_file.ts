// Failures as JSON lines, for a run that has no output yet.
import { basename, dirname } from 'node:path';
import { rm } from 'node:fs/promises';
import { publishTogether } from '../weights';
import type { FailedRow } from './batches';
import { Lines } from './output';

/** Writes a line per failure; no failure, no file. */
export async function writeFailures(
  path: string,
  failures: AsyncIterable<FailedRow & { readonly source: string }>,
): Promise<void> {
  let count = 0;
  await publishTogether(dirname(path), async (files) => {
    await files.write(basename(path), async (file) => {
      const lines = new Lines(file);
      for await (const { source, index, id, code, reason } of failures) {
        count++;
        await lines.add({ source, row: index, id, code, reason });
      }
      await lines.flush();
    });
    return [];
  });
  if (count === 0) await rm(path, { force: true });
}

// The state of a selection: a folder beside its output, with what became of every super-batch.
//
//   manifest.json         what is selected from what, and how; written first
//   part-<number>.json    a super-batch that is done
//   lock.json             the process that works here
//
// Every file appears complete or not at all, so a process may die at any moment.
import { existsSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { SiglipError } from '../errors';
import { publishTogether } from '../weights';
import { unwritable } from '../weights/file_errors';
import { readJournalFile } from './journal_file';
import { lock, release } from './lock';
import { settingsDiffer } from './settings';

const WHAT = 'the journal of a selection of this version';

const place = { source: z.number(), row: z.number() };
// JSON has no NaN.
const number = z
  .number()
  .nullable()
  .transform((value) => value ?? NaN);

const rowSchema = z.object({
  ...place,
  id: z.string().optional(),
  score: number,
  learnerLoss: number,
  referenceLoss: number,
});

const groupSchema = z.object({
  count: z.number(),
  /** Of scores and losses. */
  sums: z.object({ score: number, learnerLoss: number, referenceLoss: number }),
  /** Every k-th score by rising rank, k one number for all parts. */
  ranked: z.array(z.number()),
  highest: z.array(rowSchema),
  lowest: z.array(rowSchema),
});

const partSchema = z.object({
  superBatch: z.number(),
  next: z.object(place),
  through: z.number(),
  failures: z.array(
    z.object({
      source: z.number(),
      index: z.number(),
      id: z.string(),
      code: z.string(),
      reason: z.string(),
    }),
  ),
  /** Those that were selected, in the order of the data set. */
  rows: z.array(rowSchema),
  selected: groupSchema,
  dropped: groupSchema,
});

/** A row as it is kept. */
export type KeptRow = z.output<typeof rowSchema>;
/** Rows that were selected, or dropped, in numbers and by their extremes. */
export type CurationGroup = z.output<typeof groupSchema>;
/** A super-batch that is done. */
export type CurationPart = z.output<typeof partSchema>;

const manifestSchema = z.object({
  version: z.literal(1),
  settings: z.record(z.string(), z.string()),
});

/** A journal of this selection or an earlier start of it. */
export class CurationJournal {
  private constructor(
    readonly folder: string,
    /** Super-batches that are done: numbers 0 to this less one. */
    private done: number,
  ) {}

  /**
   * Begins a journal, or continues one that was begun with the same settings.
   *
   * @throws ERR_CONFIG when it was begun with others; ERR_FILE when the disk refuses
   */
  static async open(
    folder: string,
    settings: Readonly<Record<string, string>>,
  ): Promise<CurationJournal> {
    const before = await readJournalFile(join(folder, 'manifest.json'), manifestSchema, WHAT);
    if (before === undefined) {
      await mkdir(folder, { recursive: true }).catch((error: unknown) => {
        throw unwritable(folder, error);
      });
      await lock('curate', folder);
      await publishTogether(folder, async (files) => {
        await files.writeJson('manifest.json', { version: 1, settings });
        return [];
      });
      return new CurationJournal(folder, 0);
    }
    const changed = settingsDiffer(before.settings, settings);
    if (changed.length > 0) {
      throw new SiglipError(
        'ERR_CONFIG',
        `curate: inputs and options must be those that ${folder} was begun with, got others\n` +
          `${changed.join('\n')}\n` +
          'to do: give the same again, or --restart to throw away what is done.',
      );
    }
    await lock('curate', folder);
    const journal = new CurationJournal(folder, 0);
    while (existsSync(join(folder, nameOf(journal.done)))) journal.done++;
    return journal;
  }

  /** The parts so far. */
  async *parts(): AsyncGenerator<CurationPart, void, undefined> {
    for (let superBatch = 0; superBatch < this.done; superBatch++) {
      const part = await this.read(superBatch);
      if (part !== undefined) yield part;
    }
  }

  async add(part: CurationPart): Promise<void> {
    await publishTogether(this.folder, async (files) => {
      const content = JSON.stringify(part);
      await files.write(nameOf(part.superBatch), (file) => file.writeFile(content));
      return [];
    });
    this.done = part.superBatch + 1;
  }

  /** Lets another process work here. */
  async release(): Promise<void> {
    await release(this.folder);
  }

  async remove(): Promise<void> {
    await rm(this.folder, { recursive: true, force: true });
  }

  private read(superBatch: number): Promise<CurationPart | undefined> {
    return readJournalFile(join(this.folder, nameOf(superBatch)), partSchema, WHAT);
  }
}

function nameOf(superBatch: number): string {
  return `part-${String(superBatch).padStart(8, '0')}.json`;
}

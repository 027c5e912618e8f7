// The state of a run: a folder beside the output. What is done is what is there:
//
//   manifest.json                       what is embedded by what, and how; written first
//   part-<source>-<block>.safetensors   a finished part: rows [block · R, (block + 1) · R) of a source
//   part-….partial.safetensors          its first rows, left by a run that was asked to stop
//   end-<source>.json                   the source was read to its end and has so many rows
//   lock.json                           the process that works here
//
// Every file appears complete or not at all, so a process may die at any moment: what it had not
// finished is computed again, by the same batches, to the same bytes.
import { mkdir, readFile, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { SiglipError } from '../errors';
import { publishTogether } from '../weights';
import { unreadable } from '../weights/file_errors';
import type { FailedRow } from './batches';
import { readJournalFile } from './journal_file';
import type { PartBuilder, PartForm } from './part';
import { PartFile } from './part';
import { lock, release } from './lock';
import { settingsDiffer } from './settings';
import type { Shard } from './shard';

const VERSION = 1;

const manifestSchema = z.object({
  version: z.literal(VERSION),
  /** Everything the bytes of the output depend on, by name. */
  settings: z.record(z.string(), z.string()),
  columns: z.union([
    z.tuple([z.literal('embedding')]),
    z.tuple([z.literal('image'), z.literal('text')]),
  ]),
  dtype: z.enum(['float32', 'float16']),
  blockRows: z.number(),
  sources: z.array(z.object({ name: z.string(), idKey: z.enum(['image', 'text', 'id']) })),
  shard: z.object({ index: z.number(), count: z.number() }),
});

/** What a journal was begun with. */
export interface Manifest extends z.output<typeof manifestSchema> {
  readonly shard: Shard;
}

/** A finished part by its place. */
export interface PartPlace {
  readonly source: number;
  readonly block: number;
  readonly path: string;
}

const PART = /^part-(\d{5,})-(\d{8,})(\.partial)?\.safetensors$/u;
const END = /^end-(\d{5,})\.json$/u;

function partName(source: number, block: number, partial: boolean): string {
  const [s, b] = [String(source).padStart(5, '0'), String(block).padStart(8, '0')];
  return `part-${s}-${b}${partial ? '.partial' : ''}.safetensors`;
}

/** A journal of this run or an earlier one. */
export class Journal {
  private readonly done = new Map<string, PartPlace>();
  private readonly ends = new Map<number, number>();
  private readonly partials = new Map<string, string>();

  private constructor(
    readonly folder: string,
    readonly manifest: Manifest,
  ) {}

  /**
   * Begins a journal, or continues one that was begun with the same settings.
   *
   * @throws SiglipError ERR_CONFIG when it was begun with others, ERR_FILE when another process works
   * on it or the disk refuses
   */
  static async open(folder: string, manifest: Manifest): Promise<Journal> {
    const before = await readManifest(folder);
    if (before !== undefined) {
      const changed = settingsDiffer(
        { ...before.settings, shard: JSON.stringify(before.shard) },
        { ...manifest.settings, shard: JSON.stringify(manifest.shard) },
      );
      if (changed.length > 0) {
        throw new SiglipError(
          'ERR_CONFIG',
          `embed: inputs and options must be those that ${folder} was begun with, got others\n` +
            `${changed.join('\n')}\n` +
            'to do: give the same again, or --restart to throw away what is done.',
        );
      }
    }
    await mkdir(folder, { recursive: true }).catch((error: unknown) => {
      throw unreadable(folder, error);
    });
    await lock('embed', folder);
    if (before === undefined) {
      await publishTogether(folder, async (files) => {
        await files.writeJson('manifest.json', manifest);
        return [];
      });
    }
    const journal = new Journal(folder, manifest);
    await journal.scan(true);
    return journal;
  }

  /** Opens a journal to read it. @throws SiglipError ERR_FILE, ERR_CONFIG when it is none */
  static async read(folder: string): Promise<Journal> {
    const manifest = await readManifest(folder);
    if (manifest === undefined) {
      throw new SiglipError(
        'ERR_FILE',
        `merge: ${folder} must be the folder of a shard, got one without manifest.json`,
      );
    }
    const journal = new Journal(folder, manifest);
    await journal.scan(false);
    return journal;
  }

  /** Whether a part is finished. */
  has(source: number, block: number): boolean {
    return this.done.has(partName(source, block, false));
  }

  /** Rows of a source that was read to its end. */
  rowsOf(source: number): number | undefined {
    return this.ends.get(source);
  }

  /** Finished parts in the order of the corpus. */
  parts(): PartPlace[] {
    return [...this.done.values()].sort((a, b) => a.source - b.source || a.block - b.block);
  }

  /** Parts that were left unfinished, by block. */
  async unfinished(source: number): Promise<Map<number, PartBuilder>> {
    const builders = new Map<number, PartBuilder>();
    for (const [name, path] of this.partials) {
      const match = PART.exec(name);
      if (match === null || Number(match[1]) !== source) continue;
      using file = PartFile.open(path);
      builders.set(Number(match[2]), await file.builder(this.manifest.columns));
    }
    return builders;
  }

  /** Writes a finished part. */
  async finish(source: number, block: number, part: PartBuilder, form: PartForm): Promise<void> {
    const name = partName(source, block, false);
    const partial = partName(source, block, true);
    await publishTogether(this.folder, async (files) => {
      await part.stage(files, name, form);
      return this.partials.has(partial) ? [partial] : [];
    });
    this.partials.delete(partial);
    this.done.set(name, { source, block, path: join(this.folder, name) });
  }

  /** Writes a part as far as it goes. */
  async suspend(source: number, block: number, part: PartBuilder, form: PartForm): Promise<void> {
    const name = partName(source, block, true);
    await publishTogether(this.folder, async (files) => {
      await part.stage(files, name, form);
      return [];
    });
    this.partials.set(name, join(this.folder, name));
  }

  /** Says that a source was read to its end. */
  async end(source: number, rows: number): Promise<void> {
    const name = `end-${String(source).padStart(5, '0')}.json`;
    await publishTogether(this.folder, async (files) => {
      await files.writeJson(name, { rows });
      return [];
    });
    this.ends.set(source, rows);
  }

  /** Failures so far, in the order of the corpus. */
  async *failures(): AsyncGenerator<FailedRow & { readonly source: string }> {
    const partial = [...this.partials].map(([name, path]) => {
      const match = PART.exec(name);
      return { source: Number(match?.[1]), block: Number(match?.[2]), path };
    });
    const all = [...this.parts(), ...partial];
    all.sort((a, b) => a.source - b.source || a.block - b.block);
    for (const { source, path } of all) {
      using file = PartFile.open(path);
      const { name } = this.manifest.sources[source];
      for (const failure of await file.failures()) yield { source: name, ...failure };
    }
  }

  /** Forgets the parts that hold failures, so that their rows are tried again. */
  async dropFailed(): Promise<void> {
    for (const [name, path] of [
      ...[...this.done].map(([key, place]) => [key, place.path] as const),
      ...this.partials,
    ]) {
      using file = PartFile.open(path);
      if ((await file.failures()).length === 0) continue;
      await rm(path, { force: true });
      this.done.delete(name);
      this.partials.delete(name);
    }
  }

  /** Lets another process work here. */
  async release(): Promise<void> {
    await release(this.folder);
  }

  /** Removes the folder. */
  async remove(): Promise<void> {
    await rm(this.folder, { recursive: true, force: true });
  }

  private async scan(clean: boolean): Promise<void> {
    for (const name of await readdir(this.folder)) {
      const path = join(this.folder, name);
      const part = PART.exec(name);
      const end = END.exec(name);
      if (part !== null) {
        if (!isSound(path)) {
          // A part that the disk has lost is computed again.
          if (clean) await rm(path, { force: true });
          continue;
        }
        if (part[3] !== undefined) this.partials.set(name, path);
        else this.done.set(name, { source: Number(part[1]), block: Number(part[2]), path });
      } else if (end !== null) {
        const rows = await readEnd(path);
        if (rows !== undefined) this.ends.set(Number(end[1]), rows);
      } else if (clean && name.endsWith('.tmp')) {
        await rm(path, { force: true });
      }
    }
    for (const name of this.partials.keys()) {
      if (this.done.has(name.replace('.partial', ''))) this.partials.delete(name);
    }
  }
}

function isSound(path: string): boolean {
  try {
    PartFile.open(path).dispose();
    return true;
  } catch (error) {
    if (error instanceof SiglipError && error.code === 'ERR_WEIGHTS') return false;
    throw error;
  }
}

async function readEnd(path: string): Promise<number | undefined> {
  try {
    const content: unknown = JSON.parse(await readFile(path, 'utf8'));
    return z.object({ rows: z.number() }).parse(content).rows;
  } catch {
    // Computed again like a part.
    return undefined;
  }
}

function readManifest(folder: string): Promise<Manifest | undefined> {
  const path = join(folder, 'manifest.json');
  return readJournalFile(path, manifestSchema, 'the manifest of a run of this version');
}

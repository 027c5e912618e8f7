// Selection of a data set before anybody trains on it (JEST, arXiv 2406.17711; ACID, arXiv 2411.18674):
// embeddings of a learner and of a reference, as `embed` writes them, super-batch by super-batch.
import { existsSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import type { Device } from '../array';
import { SiglipError } from '../errors';
import { drawInput } from '../ops';
import type { CurationConfig, Embeddings } from '../train';
import { JointSelector } from '../train';
import type { SafetensorsFile } from '../weights';
import { openSafetensors } from '../weights';

/** Embeddings of one model, and its logits. */
export interface ScoredFile {
  /** Safetensors with `image` (N, E) and `text` (N, E), unit rows; ids beside it, where there are some. */
  readonly path: string;
  /** The logarithm of the scale. */
  readonly logitScale: number;
  readonly logitBias: number;
}

/** How a data set is selected from. */
export interface CurateOptions extends Omit<CurationConfig, 'reference' | 'selection'> {
  readonly learner: ScoredFile;
  readonly reference: ScoredFile;
  /** Rows of a super-batch. */
  readonly superBatch: number;
  /** Of the random draws, default 0. */
  readonly seed?: number | undefined;
  readonly device?: Device | undefined;
}

/** A selected row. */
export interface CuratedRow {
  /** Of the files of embeddings, from 0. */
  readonly row: number;
  /** Its id, where there are some. */
  readonly id: string | undefined;
  /** What its own pair scored. */
  readonly score: number;
}

/** What was selected of a super-batch. */
export interface CuratedPart {
  readonly superBatch: number;
  /** Rows dealt with so far, and in all. */
  readonly done: number;
  readonly total: number;
  /** By ascending row. */
  readonly rows: readonly CuratedRow[];
  /** Mean score of the super-batch. */
  readonly score: number;
}

/**
 * Selects rows: of every super-batch of consecutive rows the share that is not dropped. What is selected
 * follows from the files, the options and the seed. Shuffle a corpus in an order of its own before it is
 * embedded: what is compared with each other is what stands together.
 *
 * The last super-batch may be smaller; of it as many chunks are selected as fit its share.
 *
 * @throws ERR_WEIGHTS, ERR_FILE for files that cannot be read; ERR_DATA where they do not belong to each
 * other; ERR_ARGUMENT.
 */
export async function* curateEmbeddings(
  options: CurateOptions,
): AsyncGenerator<CuratedPart, void, undefined> {
  const { superBatch, chunks = 16, filterRatio, seed = 0 } = options;
  if (!Number.isSafeInteger(superBatch) || superBatch < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `curate: superBatch must be a positive integer, got ${String(superBatch)}`,
    );
  }
  if (!(filterRatio >= 0 && filterRatio < 1)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `curate: filterRatio must be in [0, 1), got ${String(filterRatio)}`,
    );
  }
  using learner = new Pairs(options.learner);
  using reference = new Pairs(options.reference);
  if (learner.rows !== reference.rows) {
    throw new SiglipError(
      'ERR_DATA',
      `curate: ${options.reference.path} must have the rows of ${options.learner.path}, ${String(learner.rows)}, got ${String(reference.rows)}`,
    );
  }
  const ids = new MatchedIds(options);
  let selector: { readonly candidates: number; readonly of: JointSelector } | undefined;
  try {
    const total = learner.rows;
    for (let first = 0, step = 0; first < total; first += superBatch, step++) {
      const candidates = Math.min(superBatch, total - first);
      const batch = Math.floor((candidates * (1 - filterRatio)) / chunks + 1e-9) * chunks;
      const names = await ids.next(candidates);
      const part = { superBatch: step, done: first + candidates, total };
      if (batch === 0) {
        yield { ...part, rows: [], score: NaN };
        continue;
      }
      if (selector?.candidates !== candidates) {
        selector?.of.dispose();
        selector = { candidates, of: selectorFor(options, candidates, batch, learner, reference) };
      }
      const { indices, scores } = await selector.of.run(
        { ...(await learner.read(first, candidates)), ...learner.logits },
        { ...(await reference.read(first, candidates)), ...reference.logits },
        drawInput(seed, step),
      );
      const rows = Array.from(indices.sort(), (i) => ({
        row: first + i,
        id: names?.[i],
        score: scores[i],
      }));
      yield { ...part, rows, score: scores.reduce((sum, x) => sum + x, 0) / candidates };
    }
  } finally {
    selector?.of.dispose();
    await ids.close();
  }
}

function selectorFor(
  { chunks, gain, score, device }: CurateOptions,
  candidates: number,
  batch: number,
  learner: Pairs,
  reference: Pairs,
): JointSelector {
  const widths = [learner.width, reference.width] as const;
  return new JointSelector({ candidates, batch, widths, chunks, gain, score, device });
}

// The embeddings of one model, read where they are wanted.
class Pairs {
  readonly rows: number;
  readonly width: number;
  readonly logits: { readonly logitScale: Float32Array; readonly logitBias: Float32Array };
  private readonly file: SafetensorsFile;

  constructor({ path, logitScale, logitBias }: ScoredFile) {
    this.logits = {
      logitScale: Float32Array.of(logitScale),
      logitBias: Float32Array.of(logitBias),
    };
    this.file = openSafetensors(path);
    const [images, texts] = ['image', 'text'].map((name) => this.file.tensors.get(name)?.shape);
    if (images?.length !== 2 || images.join() !== texts?.join()) {
      this.file.dispose();
      throw new SiglipError(
        'ERR_DATA',
        `curate: ${path} must hold image and text of one shape (N, E), got ${JSON.stringify(images ?? null)} and ${JSON.stringify(texts ?? null)}\n` +
          'to do: siglip2 embed --what both -o <name>.safetensors writes such a file.',
      );
    }
    [this.rows, this.width] = images;
  }

  async read(first: number, rows: number): Promise<Embeddings<Float32Array>> {
    const part = { first: first * this.width, shape: [rows, this.width] };
    return {
      images: (await this.file.read('image', part)) as Float32Array,
      texts: (await this.file.read('text', part)) as Float32Array,
    };
  }

  [Symbol.dispose](): void {
    this.file.dispose();
  }
}

// The ids beside the embeddings of both models, which must be the same where both have some.
class MatchedIds {
  private readonly readers: { readonly path: string; readonly ids: AsyncGenerator<string> }[];
  private row = 0;

  constructor({ learner, reference }: CurateOptions) {
    this.readers = [learner.path, reference.path]
      .map((path) => join(dirname(path), `${basename(path, extname(path))}.ids.jsonl`))
      .filter((path) => existsSync(path))
      .map((path) => ({ path, ids: idsOf(path) }));
  }

  async next(count: number): Promise<readonly string[] | undefined> {
    const [first, second] = this.readers;
    if (this.readers.length === 0) return undefined;
    const names: string[] = [];
    for (let i = 0; i < count; i++, this.row++) {
      const id = await this.one(first);
      const other = this.readers.length < 2 ? id : await this.one(second);
      if (other !== id) {
        throw new SiglipError(
          'ERR_DATA',
          `curate: row ${String(this.row)} must have one id in ${first.path} and ${second.path}, got ${id} and ${other}`,
        );
      }
      names.push(id);
    }
    return names;
  }

  async close(): Promise<void> {
    for (const { ids } of this.readers) await ids.return(undefined);
  }

  private async one({ path, ids }: MatchedIds['readers'][number]): Promise<string> {
    const next = await ids.next();
    if (next.done !== true) return next.value;
    throw new SiglipError(
      'ERR_DATA',
      `curate: ${path} must have a line for every row, got ${String(this.row)}`,
    );
  }
}

async function* idsOf(path: string): AsyncGenerator<string, undefined> {
  const file = await open(path);
  try {
    for await (const line of file.readLines()) {
      const record: unknown = JSON.parse(line);
      yield typeof record === 'object' && record !== null && 'id' in record
        ? String(record.id)
        : '';
    }
  } finally {
    await file.close();
  }
  return undefined;
}

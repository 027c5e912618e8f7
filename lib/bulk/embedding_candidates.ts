// Candidates whose embeddings `embed` has written beforehand, by both models.
import { existsSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import { fileFingerprint } from '../corpus/fingerprint';
import { SiglipError } from '../errors';
import type { Scored } from '../train';
import type { SafetensorsFile } from '../weights';
import { openSafetensors } from '../weights';
import type { Candidates, RowPlace, SuperBatch } from './candidates';

/** Embeddings of one model, and its logits. */
export interface ScoredFile {
  /** Safetensors with `image` (N, E) and `text` (N, E), unit rows; ids beside it, where there are some. */
  readonly path: string;
  /** The logarithm of the scale. */
  readonly logitScale: number;
  readonly logitBias: number;
}

/**
 * The rows of two files of embeddings, one source.
 *
 * @throws ERR_WEIGHTS, ERR_FILE for files that cannot be read; ERR_DATA where they do not belong to each
 * other, here or as ids are read
 */
export async function embeddingCandidates(
  learner: ScoredFile,
  reference: ScoredFile,
): Promise<Candidates> {
  using first = new Pairs(learner);
  using second = new Pairs(reference);
  const total = first.rows;
  if (total !== second.rows) {
    throw new SiglipError(
      'ERR_DATA',
      `curate: ${reference.path} must have the rows of ${learner.path}, ${String(total)}, got ${String(second.rows)}`,
    );
  }
  const logits = ({ logitScale, logitBias }: ScoredFile): string =>
    `${String(logitScale)}, ${String(logitBias)}`;
  return {
    sources: [learner.path],
    total,
    settings: {
      learner: (await fileFingerprint(learner.path)).fingerprint,
      'learner logits': logits(learner),
      reference: (await fileFingerprint(reference.path)).fingerprint,
      'reference logits': logits(reference),
    },
    superBatches: (size, from) => superBatches(learner, reference, size, from),
  };
}

async function* superBatches(
  learnerFile: ScoredFile,
  referenceFile: ScoredFile,
  size: number,
  from: RowPlace,
): AsyncGenerator<SuperBatch, void, undefined> {
  using learner = new Pairs(learnerFile);
  using reference = new Pairs(referenceFile);
  const ids = new MatchedIds([learnerFile.path, referenceFile.path]);
  const total = learner.rows;
  try {
    await ids.next(from.row);
    for (let first = from.row; first < total; first += size) {
      const count = Math.min(size, total - first);
      const names = await ids.next(count);
      yield {
        rows: Array.from({ length: count }, (_, i) => ({
          source: 0,
          row: first + i,
          id: names?.[i],
        })),
        learner: await learner.read(first, count),
        reference: await reference.read(first, count),
        failures: [],
        next: { source: 0, row: first + count },
        through: (first + count) / total,
      };
    }
  } finally {
    await ids.close();
  }
}

// The embeddings of one model, read where they are wanted.
class Pairs {
  readonly rows: number;
  private readonly width: number;
  private readonly logits: Pick<Scored, 'logitScale' | 'logitBias'>;
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

  async read(first: number, rows: number): Promise<Scored> {
    const part = { first: first * this.width, shape: [rows, this.width] };
    return {
      images: (await this.file.read('image', part)) as Float32Array,
      texts: (await this.file.read('text', part)) as Float32Array,
      ...this.logits,
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

  constructor(paths: readonly string[]) {
    this.readers = paths
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

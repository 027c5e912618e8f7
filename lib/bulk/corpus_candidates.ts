// Candidates embedded as they are read: a corpus of pairs, a learner and a reference.
import { mapAhead } from '../corpus/ahead';
import { failureOf } from '../corpus/failures';
import type { Row, RowFailure, Source } from '../corpus';
import type { PreparedImage, Siglip2 } from '../embed';
import { SiglipError } from '../errors';
import { decodeImage } from '../image';
import type { Scored } from '../train';
import { openCheckpoint } from '../weights';
import type { BulkModel } from './batches';
import { ROW_ERRORS } from './batches';
import type { Candidate, Candidates, ReadSoFar, RowPlace, SuperBatch } from './candidates';
import { bulkModel } from './model';

/** A model of pairs with its logits. */
export interface ScoringModel extends BulkModel {
  /** The logarithm of the scale. */
  readonly logitScale: number;
  readonly logitBias: number;
}

/** The logits of a model folder; the scale as its logarithm. */
export async function modelLogits(
  folder: string,
): Promise<Pick<ScoringModel, 'logitScale' | 'logitBias'>> {
  const checkpoint = await openCheckpoint(folder, { towers: 'text' });
  try {
    const [logitScale, logitBias] = await Promise.all(
      [checkpoint.parameters.logitScale, checkpoint.parameters.logitBias].map(async (source) => {
        using array = await source.open();
        return (await array.read())[0];
      }),
    );
    return { logitScale, logitBias };
  } finally {
    checkpoint.dispose();
  }
}

/** The model of a folder as it scores; it stays the caller's to dispose. */
export async function scoringModel(model: Siglip2, folder: string): Promise<ScoringModel> {
  return { ...bulkModel(model), ...(await modelLogits(folder)) };
}

/** How a corpus is read. */
export interface CorpusCandidatesOptions {
  /** Of pairs: `what` is `'both'`. */
  readonly sources: readonly Source[];
  /** Called once, when there is something to embed. Image sizes, patches and tokenizers may differ. */
  readonly models: () => Promise<{
    readonly learner: ScoringModel;
    readonly reference: ScoringModel;
  }>;
  /** Rows a model takes at once. Default 16. */
  readonly batch?: number | undefined;
  /** Images decoded at once. Default 4. */
  readonly concurrency?: number | undefined;
  /** What else the embeddings depend on: fingerprints of the models, options. */
  readonly settings?: Readonly<Record<string, string>> | undefined;
}

/** @throws ERR_ARGUMENT */
export function corpusCandidates(options: CorpusCandidatesOptions): Candidates {
  const { sources, batch = 16, concurrency = 4 } = options;
  for (const [name, value] of Object.entries({ batch, concurrency })) {
    if (Number.isSafeInteger(value) && value >= 1) continue;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `curate: ${name} must be a positive integer, got ${String(value)}`,
    );
  }
  const settings: Record<string, string> = { batch: String(batch), ...options.settings };
  sources.forEach(({ name, fingerprint }, i) => {
    settings[`input ${String(i + 1)}, ${name}`] = fingerprint;
  });
  return {
    sources: sources.map(({ name }) => name),
    settings,
    total: sources.reduce<number | undefined>(
      (sum, { length }) => (sum === undefined || length === undefined ? undefined : sum + length),
      0,
    ),
    superBatches: (size, from, onRead) =>
      superBatches({ ...options, batch, concurrency }, size, from, onRead),
  };
}

interface PlacedRow {
  readonly source: number;
  readonly row: Row;
}

interface Prepared extends PlacedRow {
  /** Of learner and reference. */
  readonly images: readonly [PreparedImage, PreparedImage] | undefined;
  readonly failure: RowFailure | undefined;
}

async function* superBatches(
  {
    sources,
    models,
    batch,
    concurrency,
  }: CorpusCandidatesOptions & { readonly batch: number; readonly concurrency: number },
  size: number,
  from: RowPlace,
  onRead: ((read: ReadSoFar) => void) | undefined,
): AsyncGenerator<SuperBatch, void, undefined> {
  const { learner, reference } = await models();
  const bytesBefore = [0];
  for (const { bytes } of sources) bytesBefore.push(bytesBefore[bytesBefore.length - 1] + bytes);
  const through = ({ source, row }: PlacedRow): number => {
    const { bytes, length = Infinity } = sources[source];
    const own = row.through ?? (row.index + 1) / length;
    return (bytesBefore[source] + own * bytes) / bytesBefore[sources.length];
  };
  const prepared = mapAhead(
    rowsFrom(sources, from),
    (placed) => prepare(placed, learner, reference),
    { concurrency, ahead: 3 * batch },
  );
  let next = from;
  let read = 0;
  let growing = new GrowingSuperBatch(learner, reference);
  for await (const item of prepared) {
    const { source, row, failure } = item;
    next = { source, row: row.index + 1 };
    read = through(item);
    if (failure !== undefined) growing.fail(source, row, failure);
    else growing.add(item);
    // A batch ends with its super-batch, so that what meets in one follows from where that began.
    if (growing.pending === batch || growing.rows === size) {
      await growing.embed();
      onRead?.({ rows: growing.read, through: read });
    }
    if (growing.rows < size) continue;
    yield growing.finished(next, read);
    growing = new GrowingSuperBatch(learner, reference);
  }
  await growing.embed();
  if (growing.read > 0) yield growing.finished(next, 1);
}

async function* rowsFrom(
  sources: readonly Source[],
  from: RowPlace,
): AsyncGenerator<PlacedRow, void, undefined> {
  for (let source = from.source; source < sources.length; source++) {
    const first = source === from.source ? from.row : 0;
    for await (const row of sources[source].rows((index) => index >= first)) yield { source, row };
  }
}

// Decodes once for both.
async function prepare(
  placed: PlacedRow,
  learner: BulkModel,
  reference: BulkModel,
): Promise<Prepared> {
  const { row } = placed;
  if (row.failure !== undefined || row.image === undefined) {
    const failure = row.failure ?? { code: 'ERR_DATA', reason: 'row must have an image' };
    return { ...placed, images: undefined, failure };
  }
  try {
    const image = await decodeImage('path' in row.image ? row.image.path : row.image.bytes);
    const images = await Promise.all([learner.prepareImage(image), reference.prepareImage(image)]);
    return { ...placed, images, failure: undefined };
  } catch (error) {
    if (error instanceof SiglipError && ROW_ERRORS.has(error.code)) {
      return { ...placed, images: undefined, failure: failureOf(error) };
    }
    throw error;
  }
}

// A super-batch as its rows come.
class GrowingSuperBatch {
  private readonly candidates: Candidate[] = [];
  private readonly failures: SuperBatch['failures'][number][] = [];
  private waiting: Prepared[] = [];
  private readonly vectors: readonly { images: Float32Array[]; texts: Float32Array[] }[] = [
    { images: [], texts: [] },
    { images: [], texts: [] },
  ];
  private readonly models: readonly [ScoringModel, ScoringModel];

  constructor(learner: ScoringModel, reference: ScoringModel) {
    this.models = [learner, reference];
  }

  /** Sound rows. */
  get rows(): number {
    return this.candidates.length;
  }

  /** Those that are not embedded yet. */
  get pending(): number {
    return this.waiting.length;
  }

  /** Sound rows and failed ones. */
  get read(): number {
    return this.candidates.length + this.failures.length;
  }

  fail(source: number, { index, id }: Row, failure: RowFailure): void {
    this.failures.push({ source, index, id, ...failure });
  }

  add(item: Prepared): void {
    const { source, row } = item;
    this.candidates.push({ source, row: row.index, id: row.id });
    this.waiting.push(item);
  }

  async embed(): Promise<void> {
    const items = this.waiting;
    this.waiting = [];
    if (items.length === 0) return;
    const texts = items.map(({ row }) => row.text ?? '');
    for (const [m, model] of this.models.entries()) {
      const images = items.flatMap((item) => (item.images === undefined ? [] : [item.images[m]]));
      this.vectors[m].images.push(...(await model.embedImages(images)));
      this.vectors[m].texts.push(...(await model.embedTexts(texts)));
    }
  }

  finished(next: RowPlace, through: number): SuperBatch {
    const [learner, reference] = this.models.map(({ width, logitScale, logitBias }, m): Scored => ({
      images: joined(this.vectors[m].images, width),
      texts: joined(this.vectors[m].texts, width),
      logitScale: Float32Array.of(logitScale),
      logitBias: Float32Array.of(logitBias),
    }));
    return { rows: this.candidates, learner, reference, failures: this.failures, next, through };
  }
}

function joined(rows: readonly Float32Array[], width: number): Float32Array {
  const all = new Float32Array(rows.length * width);
  rows.forEach((row, i) => {
    all.set(row, i * width);
  });
  return all;
}

// The reference of active curation: a frozen model, or what one has said before.
import type { Device, DeviceArray } from '../array';
import type { Batch } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType } from '../graph';
import { disposeArrays } from '../graph';
import { FixedProcessor } from '../image';
import type { ModelConfig, TwoTowersParameters } from '../model';
import { defaultPreprocessor } from '../weights';
import { PairEmbedder } from './pair_embedder';
import type { Embeddings } from './objective';
import { admitPairs } from './two_towers';

/** A frozen view of the pairs of any batch, of any width. */
export interface Reference {
  /** Of its embeddings. */
  readonly width: number;
  /** The logarithm of its logit scale. */
  readonly logitScale: number;
  readonly logitBias: number;
  /** What it keeps on the device. */
  readonly bytes: number;
  /** (B, width) each, unit rows. */
  embed(batch: Batch): Promise<Embeddings<Float32Array>>;
  /** Frees what it keeps. Idempotent. */
  dispose(): void;
}

export interface ModelReferenceConfig {
  readonly model: ModelConfig;
  /** On the device; the reference disposes them. */
  readonly parameters: TwoTowersParameters<DeviceArray>;
  /** Pairs of one run of the towers, at most those of a super-batch. */
  readonly batch: number;
  /** (3, 256): the value of each byte of each colour. */
  readonly pixelTable: Float32Array;
  /** Token ids (B, T) of texts, where the model's tokenizer is not that of the data. */
  readonly tokenize?: ((texts: readonly string[]) => Int32Array) | undefined;
  readonly device?: Device | undefined;
  readonly precision?: ComputeDType | undefined;
}

/**
 * A frozen two-tower model of a fixed resolution as reference. It looks at the learner's images, resized
 * to its own (Pillow's bilinear) where they are of another size; all else may differ.
 *
 * @throws ERR_CONFIG, ERR_DEVICE.
 */
export async function modelReference(config: ModelReferenceConfig): Promise<Reference> {
  const { model, parameters, pixelTable, tokenize } = config;
  const embedder = new PairEmbedder(config);
  const [logitScale, logitBias] = await Promise.all(
    [parameters.logitScale, parameters.logitBias].map(async (array) => (await array.read())[0]),
  );
  return {
    width: model.embedding,
    logitScale,
    logitBias,
    bytes: embedder.peakBytes,
    embed: async (batch) => {
      const tokens = tokenize === undefined ? batch.tokens : tokenize(batch.texts);
      const pairs = batch.texts.length;
      const own = { ...batch, ...(await resized(batch, model)), tokens };
      return embedder.embed(
        parameters,
        admitPairs({ model, batch: pairs, pixelTable }, own),
        pairs,
      );
    },
    dispose: () => {
      embedder.dispose();
      disposeArrays(parameters);
    },
  };
}

// The images of a batch at a model's size.
async function resized(
  { images, size, texts }: Batch,
  model: ModelConfig,
): Promise<Pick<Batch, 'images' | 'size'>> {
  const preprocessor = defaultPreprocessor(model);
  if (preprocessor.layout !== 'fixed' || preprocessor.width === size) return { images, size };
  const bytes = 3 * size * size;
  const raw = texts.map((_, i) => ({
    data: images.subarray(i * bytes, (i + 1) * bytes),
    width: size,
    height: size,
    channels: 3 as const,
  }));
  return { images: await new FixedProcessor(preprocessor).pixels(raw), size: preprocessor.width };
}

/**
 * Embeddings computed beforehand as reference, for data in which an example always shows one image
 * with one text.
 *
 * @param embeddings - (N, width) each, unit rows, for the N examples of the source.
 * @throws ERR_SHAPE
 */
export function storedReference(
  embeddings: Embeddings<Float32Array>,
  { width, logitScale, logitBias }: Pick<Reference, 'width' | 'logitScale' | 'logitBias'>,
): Reference {
  const { images, texts } = embeddings;
  if (images.length !== texts.length || images.length % width !== 0) {
    throw new SiglipError(
      'ERR_SHAPE',
      `storedReference: images and texts must be (N, ${String(width)}), got ${String(images.length)} and ${String(texts.length)} elements`,
    );
  }
  const gather = (whole: Float32Array, rows: Int32Array): Float32Array => {
    const out = new Float32Array(rows.length * width);
    for (const [i, row] of rows.entries()) {
      if ((row + 1) * width > whole.length) {
        throw new SiglipError(
          'ERR_DATA',
          `storedReference: example must be below ${String(whole.length / width)}, got ${String(row)}`,
        );
      }
      out.set(whole.subarray(row * width, (row + 1) * width), i * width);
    }
    return out;
  };
  return {
    width,
    logitScale,
    logitBias,
    bytes: 0,
    // eslint-disable-next-line @typescript-eslint/require-await -- what is thrown must be a rejection
    embed: async ({ examples }) => ({
      images: gather(images, examples),
      texts: gather(texts, examples),
    }),
    dispose: () => undefined,
  };
}

// The model a program holds: images and texts in, vectors out.
import { existsSync } from 'node:fs';
import { SiglipError } from '../errors';
import { elements } from '../graph';
import type { ImageInput, ImageProcessor } from '../image';
import { createProcessor, decodeImage } from '../image';
import type { ModelConfig, VisionInput } from '../model';
import type { Tokenizer } from '../text';
import { loadTokenizer } from '../text';
import { expectNotAborted, loadCheckpoint } from '../weights';
import { Towers } from './towers';

/**
 * An image: a path, encoded bytes or raw pixels (see `ImageInput`), or pixel values that are already
 * prepared, the exact door for parity checks. A fixed-resolution model takes [3, S, S] values in
 * [−1, 1], channels first; a NaFlex model takes at least h·w rows of P·P·3 values and the grid
 * `spatialShape` [h, w].
 */
export type EmbedImage =
  | ImageInput
  | { readonly pixelValues: Float32Array; readonly spatialShape?: readonly [number, number] };

/** A text, or ids that are already padded to the model's length. */
export type EmbedText = string | { readonly inputIds: Int32Array };

export interface LoadOptions {
  /** Default `'auto'`: the best device there is, today the CPU. */
  readonly device?: 'auto' | 'cpu' | 'cuda';
  /** Lower-case texts as in training. Default true; false gives the ids of `AutoTokenizer`. */
  readonly lowercase?: boolean;
}

export interface EmbedOptions {
  /** Bring embeddings to unit length. Default true; false gives what `get_image_features` gives. */
  readonly normalize?: boolean;
  /** Images or texts run at once. Default 16. */
  readonly batchSize?: number;
  /** Checked before every batch; ends the call with ERR_ABORTED. */
  readonly signal?: AbortSignal;
}

export interface EmbedImagesOptions extends EmbedOptions {
  /** Most patches of a NaFlex image. Default: what the checkpoint says, 256. */
  readonly maxPatches?: number;
}

/** One label of a classification. */
export interface Classification {
  readonly label: string;
  /** sigmoid(logit): of this label alone, so probabilities do not sum to one. */
  readonly probability: number;
  readonly logit: number;
}

export interface ClassifyOptions extends EmbedImagesOptions {
  /** `{}` stands for the label. Default `This is a photo of {}.`, as in Python's pipeline. */
  readonly template?: string;
}

/** Un-pooled tokens of an image. */
export interface ImageTokens {
  /** (rows · columns, width), row by row. */
  readonly tokens: Float32Array;
  /** Patches: [rows, columns]. */
  readonly grid: readonly [number, number];
  readonly width: number;
}

const defaultBatch = 16;
const defaultTemplate = 'This is a photo of {}.';

interface Prepared {
  readonly values: Float32Array;
  readonly grid: readonly [number, number];
}

/**
 * A SigLIP or SigLIP 2 model.
 *
 * @example
 * const model = await Siglip2.load('./siglip2-base-patch16-224');
 * const [cat] = await model.embedImages(['cat.jpg']);
 * const ranked = await model.classify('cat.jpg', ['cat', 'dog']);
 * model.dispose();
 */
export class Siglip2 {
  private constructor(
    private readonly towers: Towers,
    private readonly processor: ImageProcessor,
    private readonly tokenizer: Tokenizer | undefined,
    /** exp(t): what cosines are multiplied by. */
    readonly logitScale: number,
    readonly logitBias: number,
  ) {}

  /**
   * Loads a folder in Hugging Face layout: config.json, model.safetensors or shards with their
   * index, preprocessor_config.json and tokenizer files.
   *
   * @throws ERR_FILE, ERR_CONFIG, ERR_WEIGHTS, ERR_TOKENIZER; ERR_DEVICE for a device that is not here.
   */
  static async load(source: string, options: LoadOptions = {}): Promise<Siglip2> {
    if (options.device === 'cuda') {
      throw new SiglipError(
        'ERR_DEVICE',
        "Siglip2.load: device must be 'auto' or 'cpu', got 'cuda': this build has no CUDA kernels",
      );
    }
    if (!existsSync(source)) {
      throw new SiglipError(
        'ERR_FILE',
        `Siglip2.load: source must be a folder, got ${source}, which does not exist`,
      );
    }
    const { config, preprocessor, parameters } = await loadCheckpoint(source);
    const towers = new Towers(config, parameters);
    try {
      const tokenizer = await loadTokenizer(source, { lowercase: options.lowercase ?? true });
      const [scale] = await parameters.logitScale.read();
      const [bias] = await parameters.logitBias.read();
      return new Siglip2(towers, createProcessor(preprocessor), tokenizer, Math.exp(scale), bias);
    } catch (error) {
      towers.dispose();
      throw error;
    }
  }

  get config(): ModelConfig {
    return this.towers.config;
  }

  /**
   * One embedding per image.
   *
   * @returns one vector of `config.embedding` floats per image, in order.
   * @throws ERR_IMAGE, ERR_FILE, ERR_SHAPE, ERR_NOT_FINITE naming the image; ERR_ARGUMENT for none.
   */
  async embedImages(
    images: readonly EmbedImage[],
    options: EmbedImagesOptions = {},
  ): Promise<Float32Array[]> {
    return this.inBatches('embedImages', images, options, async (chunk, first) => {
      const prepared = await this.prepare('embedImages', chunk, first, options);
      const { input, length } = this.collate(prepared);
      return this.towers.embedImages(input, chunk.length, length, options.normalize ?? true);
    });
  }

  /**
   * Decodes, resizes and normalises an image now, so that `embedImages` has only to run it.
   *
   * @throws as `embedImages`
   */
  async prepareImage(image: EmbedImage, options: EmbedImagesOptions = {}): Promise<EmbedImage> {
    const [{ values, grid }] = await this.prepare('prepareImage', [image], 0, options);
    return { pixelValues: values, spatialShape: grid };
  }

  /**
   * One embedding per text.
   *
   * @returns one vector of `config.embedding` floats per text, in order.
   * @throws ERR_SHAPE, ERR_ARGUMENT for ids that do not fit; ERR_TOKENIZER when the folder has no
   * tokenizer; ERR_ARGUMENT for no texts.
   */
  async embedTexts(
    texts: readonly EmbedText[],
    options: EmbedOptions = {},
  ): Promise<Float32Array[]> {
    return this.inBatches('embedTexts', texts, options, async (chunk, first) => {
      const { length } = this.config.text;
      const ids = new Int32Array(chunk.length * length);
      chunk.forEach((text, i) => {
        ids.set(this.idsOf(text, first + i), i * length);
      });
      return this.towers.embedTexts(ids, chunk.length, options.normalize ?? true);
    });
  }

  /** Rates labels for an image, the most probable first. Probabilities are independent of each other. */
  async classify(
    image: EmbedImage,
    labels: readonly string[],
    options: ClassifyOptions = {},
  ): Promise<Classification[]> {
    const template = options.template ?? defaultTemplate;
    if (!template.includes('{}')) {
      throw new SiglipError('ERR_ARGUMENT', `classify: template must contain {}, got ${template}`);
    }
    const forward = { ...options, normalize: true };
    const texts = await this.embedTexts(
      labels.map((label) => template.replaceAll('{}', () => label)),
      forward,
    );
    const [embedding] = await this.embedImages([image], forward);
    return labels
      .map((label, i) => ({ label, ...this.score(embedding, texts[i]) }))
      .sort((a, b) => b.logit - a.logit);
  }

  /** Logit and probability of a pair of normalised embeddings. @throws ERR_SHAPE */
  score(image: Float32Array, text: Float32Array): { logit: number; probability: number } {
    if (image.length !== text.length) {
      throw new SiglipError(
        'ERR_SHAPE',
        `score: embeddings must have one length, got ${String(image.length)} and ${String(text.length)}`,
      );
    }
    const cosine = image.reduce((sum, value, i) => sum + value * text[i], 0);
    const logit = this.logitScale * cosine + this.logitBias;
    return { logit, probability: 1 / (1 + Math.exp(-logit)) };
  }

  /** The tokens of an image after the final norm, before pooling: features for dense tasks. */
  async imageTokens(image: EmbedImage, options: EmbedImagesOptions = {}): Promise<ImageTokens> {
    expectNotAborted('imageTokens', options.signal);
    const prepared = await this.prepare('imageTokens', [image], 0, options);
    const { input, length } = this.collate(prepared);
    const { width } = this.config.vision;
    const { grid } = prepared[0];
    const tokens = await this.towers.imageTokens(input, 1, length);
    return { tokens: tokens.subarray(0, grid[0] * grid[1] * width), grid, width };
  }

  /** Frees the weights now. Idempotent; later calls throw ERR_DISPOSED. */
  dispose(): void {
    this.towers.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  private async inBatches<T>(
    who: string,
    items: readonly T[],
    options: EmbedOptions,
    run: (chunk: readonly T[], first: number) => Promise<Float32Array>,
  ): Promise<Float32Array[]> {
    const size = options.batchSize ?? defaultBatch;
    if (!Number.isSafeInteger(size) || size < 1) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `${who}: batchSize must be a positive integer, got ${String(size)}`,
      );
    }
    if (items.length === 0) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `${who}: the list must have at least one entry, got none`,
      );
    }
    const results: Float32Array[] = [];
    for (let first = 0; first < items.length; first += size) {
      expectNotAborted(who, options.signal);
      const chunk = items.slice(first, first + size);
      const flat = await run(chunk, first);
      const width = flat.length / chunk.length;
      for (let i = 0; i < chunk.length; i++) results.push(flat.slice(i * width, (i + 1) * width));
    }
    return results;
  }

  private async prepare(
    who: string,
    images: readonly EmbedImage[],
    first: number,
    options: EmbedImagesOptions,
  ): Promise<Prepared[]> {
    return Promise.all(
      images.map(async (image, i) => {
        try {
          if (isPrepared(image)) return this.admitValues(image);
          const decoded = await decodeImage(image, { signal: options.signal });
          const { processor } = this;
          if (processor.layout === 'fixed') {
            const side = gridOf(this.config, processor);
            return { values: processor.batch([decoded]).images, grid: side };
          }
          const { patches, shapes } = processor.batch([decoded], options.maxPatches);
          return { values: patches, grid: [shapes[0], shapes[1]] as const };
        } catch (error) {
          if (error instanceof SiglipError) {
            throw new SiglipError(
              error.code,
              `${who}: image ${String(first + i)}: ${error.message}`,
              {
                cause: error,
              },
            );
          }
          throw error;
        }
      }),
    );
  }

  private admitValues(image: {
    readonly pixelValues: Float32Array;
    readonly spatialShape?: readonly [number, number];
  }): Prepared {
    const { vision } = this.config;
    const { pixelValues, spatialShape } = image;
    if (!(pixelValues instanceof Float32Array)) {
      throw new SiglipError('ERR_DTYPE', 'pixelValues must be a Float32Array, got something else');
    }
    if (vision.layout === 'fixed') {
      const shape = [3, vision.imageSize, vision.imageSize];
      if (pixelValues.length !== elements({ dtype: 'float32', shape })) {
        throw new SiglipError(
          'ERR_SHAPE',
          `pixelValues must hold [${shape.join(', ')}] values, got ${String(pixelValues.length)}`,
        );
      }
      checkFinite(pixelValues, pixelValues.length);
      const side = Math.floor(vision.imageSize / vision.patch);
      return { values: pixelValues, grid: [side, side] };
    }
    const [rows, columns] = spatialShape ?? [0, 0];
    const rowWidth = vision.patch * vision.patch * 3;
    if (!(Number.isSafeInteger(rows) && Number.isSafeInteger(columns) && rows > 0 && columns > 0)) {
      throw new SiglipError(
        'ERR_SHAPE',
        `spatialShape must be two positive integers, got ${JSON.stringify(spatialShape ?? null)}`,
      );
    }
    const needed = rows * columns * rowWidth;
    if (pixelValues.length < needed || pixelValues.length % rowWidth !== 0) {
      throw new SiglipError(
        'ERR_SHAPE',
        `pixelValues must hold at least ${String(rows * columns)} rows of ${String(rowWidth)} values, got ${String(pixelValues.length)} values`,
      );
    }
    checkFinite(pixelValues, needed);
    return { values: pixelValues.subarray(0, needed), grid: [rows, columns] };
  }

  // One batch of prepared images. NaFlex images are padded to the longest of them.
  private collate(prepared: readonly Prepared[]): {
    input: VisionInput<Float32Array | Int32Array | Uint8Array>;
    length: number;
  } {
    const { vision } = this.config;
    if (vision.layout === 'fixed') {
      const each = 3 * vision.imageSize * vision.imageSize;
      const images = new Float32Array(prepared.length * each);
      prepared.forEach(({ values }, i) => {
        images.set(values, i * each);
      });
      return { input: { images }, length: vision.positions };
    }
    const rowWidth = vision.patch * vision.patch * 3;
    const length = Math.max(...prepared.map(({ grid }) => grid[0] * grid[1]));
    const patches = new Float32Array(prepared.length * length * rowWidth);
    const shapes = new Int32Array(prepared.length * 2);
    const mask = new Uint8Array(prepared.length * length);
    prepared.forEach(({ values, grid }, i) => {
      const count = grid[0] * grid[1];
      patches.set(values.subarray(0, count * rowWidth), i * length * rowWidth);
      shapes.set(grid, i * 2);
      mask.fill(1, i * length, i * length + count);
    });
    return { input: { patches, shapes, mask }, length };
  }

  private idsOf(text: EmbedText, index: number): Int32Array {
    const { length, vocabulary } = this.config.text;
    if (typeof text === 'string') {
      if (this.tokenizer === undefined) {
        throw new SiglipError(
          'ERR_TOKENIZER',
          'embedTexts: the model folder must hold tokenizer.json to embed strings, got a folder without one; pass { inputIds }',
        );
      }
      return this.tokenizer.encode(text, length);
    }
    const { inputIds } = text;
    if (inputIds.length !== length) {
      throw new SiglipError(
        'ERR_SHAPE',
        `embedTexts: text ${String(index)}: inputIds must hold ${String(length)} ids, got ${String(inputIds.length)}`,
      );
    }
    const bad = inputIds.findIndex((id) => id < 0 || id >= vocabulary);
    if (bad >= 0) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `embedTexts: text ${String(index)}: ids must be in [0, ${String(vocabulary)}), got ${String(inputIds[bad])} at ${String(bad)}`,
      );
    }
    return inputIds;
  }
}

function isPrepared(image: EmbedImage): image is {
  readonly pixelValues: Float32Array;
  readonly spatialShape?: readonly [number, number];
} {
  return typeof image === 'object' && 'pixelValues' in image;
}

function gridOf(
  config: ModelConfig,
  processor: { width: number; height: number },
): readonly [number, number] {
  const { patch } = config.vision;
  return [Math.floor(processor.height / patch), Math.floor(processor.width / patch)];
}

function checkFinite(values: Float32Array, count: number): void {
  for (let i = 0; i < count; i++) {
    if (!Number.isFinite(values[i])) {
      throw new SiglipError(
        'ERR_NOT_FINITE',
        `pixelValues must be finite, got ${String(values[i])} at ${String(i)}`,
      );
    }
  }
}

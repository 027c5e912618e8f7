// The model a program holds: images and texts in, vectors out.
import type { Device } from '../array';
import { resolveDevice } from '../array';
import { expectNotAborted, SiglipError } from '../errors';
import { createProcessor } from '../image';
import type { ModelConfig } from '../model';
import type { ConstantSource } from '../graph';
import type { Precision } from '../ops';
import { precisions } from '../ops';
import { deferTokenizer } from '../text';
import type { CheckpointSource, HubOptions, TowerChoice } from '../weights';
import { openCheckpoint, resolveCheckpoint } from '../weights';
import type { EmbedImage } from './image_input';
import { ImageInputs, isPrepared } from './image_input';
import {
  expectBoolean,
  expectDevice,
  expectEntries,
  expectInteger,
  expectOneOf,
  expectSignal,
  shown,
} from './options';
import { Stages } from './stages';
import type { EmbedText } from './text_input';
import { TextInputs } from './text_input';
import { Towers } from './towers';

/** How a model is loaded; what {@link HubOptions} says matters for a hub id only. */
export interface LoadOptions extends HubOptions {
  /**
   * Where weights are held and the towers run. `'cuda'` is the first GPU, `'cuda:1'` the second; both
   * throw ERR_DEVICE, with the reason, where there is none. Default `'auto'`: the first GPU that can
   * be used, else the CPU; {@link Siglip2.device} and {@link Siglip2.deviceReason} tell which and why.
   * Images are decoded, and texts split into tokens, on the CPU in any case; a GPU resizes the images
   * of a fixed-resolution model, and the CPU those of a NaFlex model.
   */
  readonly device?: 'auto' | Device;
  /** Lower-case texts as in training. Default true; false gives the ids of `AutoTokenizer`. */
  readonly lowercase?: boolean;
  /**
   * Default `'both'`. One tower alone takes its own weights only: `'vision'` reads no tokenizer and
   * `'text'` no preprocessor; calls that need the other tower throw ERR_ARGUMENT.
   */
  readonly towers?: TowerChoice;
  /**
   * In what the model computes. Default `'float32'`: the numbers of Python.
   *
   * On the CPU it is that of the linear layers of the blocks; activations between them, norms,
   * attention and all that surrounds the blocks stay float32. `'bfloat16'` halves the memory of these
   * weights and is faster where the processor has bfloat16 products (AVX512-BF16); elsewhere it is
   * about as fast as float32. `'int8'` quarters it and is faster everywhere, most with VNNI. See
   * docs/guides/serving.md for what each costs in accuracy.
   *
   * On a GPU `'bfloat16'` holds matrices and activations in bfloat16; sums, statistics, softmax and
   * the normalisation of embeddings are float32. `'int8'` is of the CPU: `device: 'auto'` then means
   * the CPU, and a GPU is ERR_ARGUMENT.
   */
  readonly precision?: Precision;
  /**
   * Side in pixels of the images a fixed-resolution model is to take: its learned positions are
   * resized (bicubic, as `interpolate_pos_encoding` of transformers), and images with them. Default:
   * what it was trained with, which is most accurate.
   */
  readonly imageSize?: number;
}

export interface EmbedOptions {
  /** Bring embeddings to unit length. Default true; false gives what `get_image_features` gives. */
  readonly normalize?: boolean;
  /** Images or texts run at once. Default 16. The next as many are prepared meanwhile. */
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

/**
 * A SigLIP or SigLIP 2 model. Calls may overlap; a server that wants them gathered into batches holds
 * an `Embedder`. Several models, and models in worker threads, do not know of each other but share the
 * threads of the device.
 *
 * @example
 * const model = await Siglip2.load('google/siglip2-base-patch16-224');
 * const [cat] = await model.embedImages(['cat.jpg']);
 * const ranked = await model.classify('cat.jpg', ['cat', 'dog']);
 * model.dispose();
 */
export class Siglip2 {
  private constructor(
    /** @internal What `Embedder` drives. */
    readonly stages: Stages,
    /** exp(t): what cosines are multiplied by. */
    readonly logitScale: number,
    readonly logitBias: number,
    /** The folder in use, and its commit when it came from the hub. */
    readonly source: CheckpointSource,
    /** Where the towers run. */
    readonly device: Device,
    /** Why there. */
    readonly deviceReason: string,
  ) {}

  /**
   * Loads a folder in Hugging Face layout (config.json, model.safetensors or shards with their
   * index, preprocessor_config.json and tokenizer files), or a hub id, `owner/name` or
   * `owner/name@revision`: from the shared cache when it is there, else downloaded into it.
   *
   * @throws ERR_FILE, ERR_CONFIG, ERR_WEIGHTS, ERR_TOKENIZER; ERR_DEVICE for a device that is not here;
   * ERR_ARGUMENT for an option outside of its domain; ERR_NETWORK for a model that cannot be fetched;
   * ERR_ABORTED.
   */
  static async load(source: string, options: LoadOptions = {}): Promise<Siglip2> {
    const { towers: loaded, precision, lowercase, signal, choice } = checkLoadOptions(options);
    const { device, reason } = chooseDevice(choice, precision);
    const found = await resolveCheckpoint(source, options, 'Siglip2.load');
    const checkpoint = await openCheckpoint(found.path, {
      towers: loaded,
      imageSize: options.imageSize,
    });
    const { config, preprocessor, parameters } = checkpoint;
    const towers = new Towers(checkpoint, precision, device);
    try {
      expectNotAborted('Siglip2.load', signal);
      await towers.prepare(signal);
      const tokenizer =
        loaded === 'vision' ? undefined : await deferTokenizer(found.path, { lowercase });
      const scale = await readNumber(parameters.logitScale);
      const bias = await readNumber(parameters.logitBias);
      const resizing = device === 'cpu' ? undefined : device;
      const images = new ImageInputs(config, createProcessor(preprocessor), resizing);
      const texts = new TextInputs(config, tokenizer);
      const stages = new Stages({ towers, images, texts });
      return new Siglip2(stages, Math.exp(scale), bias, found, device, reason);
    } catch (error) {
      towers.dispose();
      throw error;
    }
  }

  get config(): ModelConfig {
    return this.stages.config;
  }

  /** Bytes of memory that the weights take. */
  get weightBytes(): number {
    return this.stages.weightBytes;
  }

  /**
   * One embedding per image.
   *
   * @returns one vector of `config.embedding` floats per image, in order, each of its own memory.
   * @throws ERR_IMAGE, ERR_FILE, ERR_SHAPE, ERR_NOT_FINITE naming the image; ERR_ARGUMENT for none,
   * or a model without its vision tower; ERR_ABORTED, ERR_DISPOSED.
   */
  async embedImages(
    images: readonly EmbedImage[],
    options: EmbedImagesOptions = {},
  ): Promise<Float32Array[]> {
    const who = 'embedImages';
    this.stages.expectReady(who, 'vision');
    const { normalize, batchSize, prepare } = checkImageOptions(who, options);
    const { maxPatches, signal } = prepare;
    const later = { maxPatches, signal, checkLater: true };
    expectEntries(who, images);
    if (isPrepared(images[0])) this.stages.announce();
    return inBatches(who, images, batchSize, options.signal, {
      prepare: (image, i) => this.stages.prepareImage(`${who}: image ${String(i)}`, image, later),
      run: (prepared) => this.stages.embedImages(prepared, normalize),
    });
  }

  /**
   * One embedding per text.
   *
   * @returns one vector of `config.embedding` floats per text, in order, each of its own memory.
   * @throws ERR_SHAPE, ERR_ARGUMENT for ids that do not fit; ERR_TOKENIZER when the folder has no
   * tokenizer; ERR_ARGUMENT for no texts, or a model without its text tower; ERR_ABORTED,
   * ERR_DISPOSED.
   */
  async embedTexts(
    texts: readonly EmbedText[],
    options: EmbedOptions = {},
  ): Promise<Float32Array[]> {
    const who = 'embedTexts';
    this.stages.expectReady(who, 'text');
    const { normalize, batchSize } = checkEmbedOptions(who, options);
    this.stages.announce();
    return inBatches(who, texts, batchSize, options.signal, {
      prepare: (text, i) => this.stages.prepareText(`${who}: text ${String(i)}`, text),
      run: (ids) => this.stages.embedTexts(ids, normalize),
    });
  }

  /** Rates labels for an image, the most probable first. Probabilities are independent of each other. */
  async classify(
    image: EmbedImage,
    labels: readonly string[],
    options: ClassifyOptions = {},
  ): Promise<Classification[]> {
    const template = options.template ?? defaultTemplate;
    if (typeof template !== 'string' || !template.includes('{}')) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `classify: template must contain {}, got ${shown(template)}`,
      );
    }
    expectEntries('classify', labels);
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
    const who = 'imageTokens';
    this.stages.expectReady(who, 'vision');
    const { prepare } = checkImageOptions(who, options);
    expectNotAborted(who, options.signal);
    const prepared = await this.stages.prepareImage(who, image, prepare);
    expectNotAborted(who, options.signal);
    const tokens = await this.stages.imageTokens(prepared);
    return { tokens, grid: prepared.grid, width: this.config.vision.width };
  }

  /**
   * Frees the weights now. What runs on the device comes to its end and its results arrive; calls with
   * batches still to run, and later calls, throw ERR_DISPOSED. Idempotent.
   */
  dispose(): void {
    this.stages.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

async function readNumber(source: ConstantSource): Promise<number> {
  const array = await source.open();
  try {
    const [value = NaN] = await array.read();
    return value;
  } finally {
    array.dispose();
  }
}

function checkLoadOptions(options: LoadOptions): {
  towers: TowerChoice;
  precision: Precision;
  lowercase: boolean;
  signal: AbortSignal | undefined;
  choice: 'auto' | Device;
} {
  const who = 'Siglip2.load';
  const choice = expectDevice(who, 'device', options.device);
  const towers = expectOneOf(who, 'towers', options.towers, ['both', 'vision', 'text']);
  const precision = expectOneOf(who, 'precision', options.precision, precisions);
  const lowercase = expectBoolean(who, 'lowercase', options.lowercase, true);
  expectSignal(who, options.signal);
  expectNotAborted(who, options.signal);
  if (precision === 'int8' && choice.startsWith('cuda')) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `${who}: precision must be float32 or bfloat16 on a GPU, got int8 with device ${shown(choice)}`,
    );
  }
  return { towers, precision, lowercase, signal: options.signal, choice };
}

function chooseDevice(
  choice: 'auto' | Device,
  precision: Precision,
): { device: Device; reason: string } {
  if (choice === 'auto' && precision === 'int8') {
    return { device: 'cpu', reason: 'int8 is of the CPU' };
  }
  return resolveDevice(choice);
}

function checkEmbedOptions(
  who: string,
  options: EmbedOptions,
): { normalize: boolean; batchSize: number } {
  expectSignal(who, options.signal);
  return {
    normalize: expectBoolean(who, 'normalize', options.normalize, true),
    batchSize: expectInteger(who, 'batchSize', options.batchSize, defaultBatch),
  };
}

function checkImageOptions(
  who: string,
  options: EmbedImagesOptions,
): {
  normalize: boolean;
  batchSize: number;
  prepare: { maxPatches: number | undefined; signal: AbortSignal | undefined };
} {
  const { maxPatches, signal } = options;
  if (maxPatches !== undefined) expectInteger(who, 'maxPatches', maxPatches, 1);
  const { normalize, batchSize } = checkEmbedOptions(who, options);
  return { normalize, batchSize, prepare: { maxPatches, signal } };
}

// Runs a list through a model batch by batch; while one runs, the next is prepared.
async function inBatches<Input, Prepared>(
  who: string,
  items: readonly Input[],
  size: number,
  signal: AbortSignal | undefined,
  stages: {
    prepare: (item: Input, index: number) => Promise<Prepared> | Prepared;
    run: (prepared: readonly Prepared[]) => Promise<Float32Array[]>;
  },
): Promise<Float32Array[]> {
  expectEntries(who, items);
  const prepareFrom = async (first: number): Promise<Prepared[]> => {
    expectNotAborted(who, signal);
    const chunk = items.slice(first, first + size);
    return Promise.all(chunk.map((item, i) => stages.prepare(item, first + i)));
  };
  const results: Float32Array[] = [];
  let next = prepareFrom(0);
  for (let first = 0; first < items.length; first += size) {
    const prepared = await next;
    expectNotAborted(who, signal);
    if (first + size < items.length) {
      next = prepareFrom(first + size);
      // Told when its turn comes; until then nobody listens.
      next.catch(() => undefined);
    }
    results.push(...(await stages.run(prepared)));
  }
  return results;
}

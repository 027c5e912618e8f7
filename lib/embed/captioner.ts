// A model with its captioning decoder: captions of images, boxes of texts, likelihoods of captions.
import { SiglipError } from '../errors';
import type { Device } from '../array';
import type { CaptionFormat } from '../model';
import { captionVocabulary } from '../model';
import type { Box, Tokenizer } from '../text';
import {
  captionPrompt,
  captionQueries,
  captionText,
  groundingPrompt,
  loadTokenizer,
  parseBox,
} from '../text';
import type { OpenDecoder } from '../weights';
import { openDecoder, resolveCheckpoint } from '../weights';
import { DecoderRuns } from './decoder_runs';
import type { EmbedImage } from './image_input';
import { expectEntries } from './options';
import type { FoundSequence, SearchOptions } from './search';
import { search } from './search';
import type { EmbedImagesOptions, LoadOptions } from './siglip2';
import { Siglip2 } from './siglip2';

/** A caption that was written. */
export interface Caption {
  readonly caption: string;
  /** Natural logarithm of its probability. */
  readonly logProbability: number;
}

/** Where in an image a text belongs. */
export interface Grounding {
  /** In fractions of height and width; undefined where what was written is no box. */
  readonly box: Box | undefined;
  /** What was written. */
  readonly text: string;
  readonly logProbability: number;
}

export type CaptionOptions = SearchOptions & Pick<EmbedImagesOptions, 'maxPatches' | 'signal'>;

/**
 * A vision tower and the decoder that was trained with it.
 *
 * @example
 * const captioner = await Captioner.load('./run/model');
 * const { caption } = await captioner.caption('cat.jpg', { beams: 4 });
 * captioner.dispose();
 */
export class Captioner {
  private constructor(
    private readonly model: Siglip2,
    private readonly files: OpenDecoder,
    private readonly runs: DecoderRuns,
    private readonly tokenizer: Tokenizer,
  ) {}

  /**
   * Loads a folder that holds a model and its decoder. Only its vision tower is read, and `precision`
   * is that of the tower: the decoder computes in float32.
   *
   * @throws what `Siglip2.load` throws; ERR_FILE where there is no decoder, ERR_CONFIG where it is of
   * another model
   */
  static async load(source: string, options: Omit<LoadOptions, 'towers'> = {}): Promise<Captioner> {
    const folder = (await resolveCheckpoint(source, options, 'Captioner.load')).path;
    const files = await openDecoder(folder);
    let model: Siglip2 | undefined;
    try {
      const { lowercase } = options;
      const tokenizer = await loadTokenizer(folder, lowercase === undefined ? {} : { lowercase });
      if (tokenizer === undefined) {
        throw new SiglipError(
          'ERR_TOKENIZER',
          `${folder}: a folder that writes captions must have a tokenizer, got none`,
        );
      }
      model = await Siglip2.load(folder, { ...options, towers: 'vision' });
      expectFit(folder, files, model, tokenizer);
      const runs = new DecoderRuns(files.config, files.parameters, model.device);
      return new Captioner(model, files, runs, tokenizer);
    } catch (error) {
      model?.dispose();
      files.dispose();
      throw error;
    }
  }

  /** In what format the decoder writes. */
  get format(): CaptionFormat {
    return this.files.format;
  }

  /** Where it runs. */
  get device(): Device {
    return this.model.device;
  }

  /**
   * Writes a caption of an image: by default the likeliest token each time.
   *
   * @throws ERR_ARGUMENT for options outside of their domain; what `embedImages` throws of an image
   */
  async caption(image: EmbedImage, options: CaptionOptions = {}): Promise<Caption> {
    const prompt = captionPrompt(this.tokenizer, 'cap', this.format);
    const { ids, logProbability } = await this.write('caption', image, prompt, options);
    return { caption: captionText(this.tokenizer, ids), logProbability };
  }

  /** Finds the box of a text in an image. @throws as {@link caption} */
  async ground(image: EmbedImage, text: string, options: CaptionOptions = {}): Promise<Grounding> {
    const prompt = groundingPrompt(this.tokenizer, text, this.format);
    const { ids, logProbability } = await this.write('ground', image, prompt, options);
    return {
      box: parseBox(this.tokenizer, ids, this.format),
      text: captionText(this.tokenizer, ids),
      logProbability,
    };
  }

  /**
   * Logarithms of the probabilities of captions of an image, the end included: a classifier, where the
   * captions are of classes.
   *
   * @throws ERR_ARGUMENT for no captions; what `embedImages` throws of an image
   */
  async scoreCaptions(
    image: EmbedImage,
    captions: readonly string[],
    options: Pick<CaptionOptions, 'maxPatches' | 'signal'> = {},
  ): Promise<Float64Array> {
    expectEntries('scoreCaptions', captions);
    const { tokens } = await this.model.imageTokens(image, options);
    const { length } = this.files.config;
    const batch = captionQueries(this.tokenizer, captions, { length, format: this.format });
    return this.runs.logLikelihoods(tokens, batch);
  }

  /** Frees weights and programs now. Idempotent. */
  dispose(): void {
    this.runs.dispose();
    this.files.dispose();
    this.model.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  private async write(
    who: string,
    image: EmbedImage,
    prompt: Int32Array,
    { maxPatches, signal, ...options }: CaptionOptions,
  ): Promise<FoundSequence> {
    expectSearch(who, options);
    const { length } = this.files.config;
    if (prompt.length >= length) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `${who}: prompt must have fewer than ${String(length)} ids, got ${String(prompt.length)}`,
      );
    }
    const { tokens } = await this.model.imageTokens(image, {
      ...(maxPatches !== undefined && { maxPatches }),
      ...(signal !== undefined && { signal }),
    });
    const sequences = await this.runs.begin(tokens, prompt, options.beams ?? 1);
    try {
      return await search(sequences.next, this.tokenizer.eosId, sequences.left, options);
    } finally {
      sequences.dispose();
    }
  }
}

function expectSearch(who: string, { beams = 1, temperature = 0, topP = 1 }: SearchOptions): void {
  const refuse = (what: string, expected: string, actual: number): never => {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `${who}: ${what} must be ${expected}, got ${String(actual)}`,
    );
  };
  if (!Number.isSafeInteger(beams) || beams < 1) refuse('beams', 'a positive integer', beams);
  if (!(temperature >= 0 && temperature < Infinity)) {
    refuse('temperature', 'a number from 0 up', temperature);
  }
  if (!(topP > 0 && topP <= 1)) refuse('topP', 'above 0 and at most 1', topP);
  if (temperature > 0 && beams > 1) refuse('beams', '1 with a temperature above 0', beams);
}

function expectFit(
  folder: string,
  { config, format }: OpenDecoder,
  { config: { vision } }: Siglip2,
  { vocabulary }: Tokenizer,
): void {
  const expected = { memoryWidth: vision.width, vocabulary: captionVocabulary(vocabulary, format) };
  for (const field of ['memoryWidth', 'vocabulary'] as const) {
    if (config[field] === expected[field]) continue;
    throw new SiglipError(
      'ERR_CONFIG',
      `${folder}: ${field} of the decoder must be ${String(expected[field])} as its model and tokenizer say, got ${String(config[field])}`,
    );
  }
}

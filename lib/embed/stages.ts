// The stages an input goes through: prepared on the host, gathered into a batch, run. Siglip2 takes
// one call through them; Embedder makes batches of what many callers bring.
import { SiglipError } from '../errors';
import type { ModelConfig, VisionInput } from '../model';
import type { EmbedImage, ImageInputs, PreparedImage, PrepareOptions } from './image_input';
import type { EmbedText, TextInputs } from './text_input';
import type { Towers } from './towers';

/** Which towers of a model are loaded. */
export type TowerChoice = 'both' | 'vision' | 'text';

/** What a model is made of. */
export interface StageParts {
  readonly towers: Towers;
  readonly loaded: TowerChoice;
  readonly images: ImageInputs;
  readonly texts: TextInputs;
}

/** A loaded model, one stage a method. */
export class Stages {
  private gone = false;

  /** Takes over the towers: they are disposed with this. */
  constructor(private readonly parts: StageParts) {}

  get config(): ModelConfig {
    return this.parts.towers.config;
  }

  /** @throws ERR_DISPOSED; ERR_ARGUMENT when the model was loaded without that tower */
  expectReady(who: string, tower: 'vision' | 'text'): void {
    if (this.gone) {
      throw new SiglipError('ERR_DISPOSED', `${who}: the model must be alive, got a disposed one`);
    }
    const { loaded } = this.parts;
    if (loaded === 'both' || loaded === tower) return;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `${who}: the model must have its ${tower} tower, got one loaded with towers: '${loaded}'\n` +
        `to do: load it with towers: 'both' or '${tower}'.`,
    );
  }

  /** See {@link ImageInputs.prepare}. */
  async prepareImage(
    who: string,
    image: EmbedImage,
    options: PrepareOptions,
  ): Promise<PreparedImage> {
    return this.parts.images.prepare(who, image, options);
  }

  /** See {@link TextInputs.prepare}. */
  prepareText(who: string, text: EmbedText): Int32Array {
    return this.parts.texts.prepare(who, text);
  }

  /**
   * Images of one name go into a batch without waste: all images of a fixed resolution, and NaFlex
   * images of about as many patches, since a batch is padded to the longest.
   */
  shapeOf({ grid }: PreparedImage): string {
    if (this.config.vision.layout === 'fixed') return '';
    return String(Math.ceil((grid[0] * grid[1]) / LENGTH_CLASS));
  }

  /** One vector of `config.embedding` floats per image. */
  async embedImages(images: readonly PreparedImage[], normalize: boolean): Promise<Float32Array[]> {
    const { input, length } = this.collate(images);
    const flat = await this.parts.towers.embedImages(input, images.length, length, normalize);
    return rowsOf(flat, images.length);
  }

  /** One vector of `config.embedding` floats per text. */
  async embedTexts(texts: readonly Int32Array[], normalize: boolean): Promise<Float32Array[]> {
    const { length } = this.config.text;
    const ids = new Int32Array(texts.length * length);
    texts.forEach((text, i) => {
      ids.set(text, i * length);
    });
    return rowsOf(await this.parts.towers.embedTexts(ids, texts.length, normalize), texts.length);
  }

  /** (rows · columns, width) of one image. */
  async imageTokens(image: PreparedImage): Promise<Float32Array> {
    const { input, length } = this.collate([image]);
    const tokens = await this.parts.towers.imageTokens(input, 1, length);
    const wanted = image.grid[0] * image.grid[1] * this.config.vision.width;
    return tokens.length === wanted ? tokens : tokens.slice(0, wanted);
  }

  /** Idempotent. What runs comes to its end; what begins later throws ERR_DISPOSED. */
  dispose(): void {
    this.gone = true;
    this.parts.towers.dispose();
  }

  // One batch of prepared images. NaFlex images are padded to the longest of them.
  private collate(prepared: readonly PreparedImage[]): {
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
}

const LENGTH_CLASS = 32;

// Copies, so that one result does not keep the memory of its whole batch alive.
function rowsOf(flat: Float32Array, rows: number): Float32Array[] {
  const width = flat.length / rows;
  return Array.from({ length: rows }, (_, i) => flat.slice(i * width, (i + 1) * width));
}

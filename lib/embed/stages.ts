// The stages an input goes through: prepared on the host, gathered into a batch, run. Siglip2 takes
// one call through them; Embedder makes batches of what many callers bring.
import { SiglipError } from '../errors';
import type { RunInput } from '../array';
import type { ModelConfig } from '../model';
import type { BatchInput, PreparedImage } from './collate';
import { collate } from './collate';
import type { EmbedImage, ImageInputs, PrepareOptions } from './image_input';
import type { EmbedText, TextInputs } from './text_input';
import type { Towers } from './towers';

/** What a model is made of. */
export interface StageParts {
  readonly towers: Towers;
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

  get weightBytes(): number {
    return this.parts.towers.weightBytes;
  }

  /** @throws ERR_DISPOSED; ERR_ARGUMENT when the model was loaded without that tower */
  expectReady(who: string, tower: 'vision' | 'text'): void {
    if (this.gone) {
      throw new SiglipError('ERR_DISPOSED', `${who}: the model must be alive, got a disposed one`);
    }
    const { towers } = this.parts;
    if (tower === 'vision') towers.vision(who);
    else towers.text(who);
  }

  /** Inputs that are prepared in no time are about to come. */
  announce(): void {
    this.parts.towers.announce();
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

  /** One vector of `config.embedding` floats per image. */
  async embedImages(images: readonly PreparedImage[], normalize: boolean): Promise<Float32Array[]> {
    const { towers } = this.parts;
    const embeddings: Float32Array[] = [];
    // What came as values does not go with pixels.
    for (const decoded of [false, true]) {
      const places = [...images.keys()].filter((i) => 'pixels' in images[i] === decoded);
      if (places.length === 0) continue;
      const together = places.map((i) => images[i]);
      const flat = await this.together(together, async (input, batch, length) => {
        const embedded = towers.embedImages(input, batch, length, normalize);
        // Beside the device, which has its work by now.
        checkAll(together, embedded);
        return embedded;
      });
      const rows = rowsOf(flat, places.length);
      places.forEach((i, row) => (embeddings[i] = rows[row]));
    }
    return embeddings;
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
    const tokens = await this.together([image], async (input, batch, length) =>
      this.parts.towers.imageTokens(input, batch, length),
    );
    const wanted = image.grid[0] * image.grid[1] * this.config.vision.width;
    return tokens.length === wanted ? tokens : tokens.slice(0, wanted);
  }

  // Runs images of one form as one batch.
  private async together(
    images: readonly PreparedImage[],
    run: (input: BatchInput<RunInput>, batch: number, length: number) => Promise<Float32Array>,
  ): Promise<Float32Array> {
    const values = images.filter((image) => 'values' in image);
    if (values.length > 0) {
      const { input, batch, length } = collate(this.config, values);
      return run(input, batch, length);
    }
    const { positions } = this.config.vision;
    const decoded = images.filter((image) => 'pixels' in image);
    const input = await this.parts.images.resized(decoded.map(({ pixels }) => pixels));
    try {
      return await run(input, decoded.length, positions);
    } finally {
      input.pixels.dispose();
    }
  }

  /** Idempotent. What runs comes to its end; what begins later throws ERR_DISPOSED. */
  dispose(): void {
    this.gone = true;
    this.parts.towers.dispose();
  }
}

// Who is told what is wrong with an image is not told how the batch ended.
function checkAll(images: readonly PreparedImage[], batch: Promise<unknown>): void {
  try {
    for (const image of images) if ('check' in image) image.check?.();
  } catch (error) {
    batch.catch(() => undefined);
    throw error;
  }
}

// Copies, so that one result does not keep the memory of its whole batch alive.
function rowsOf(flat: Float32Array, rows: number): Float32Array[] {
  if (rows === 1) return [flat];
  const width = flat.length / rows;
  return Array.from({ length: rows }, (_, i) => flat.slice(i * width, (i + 1) * width));
}

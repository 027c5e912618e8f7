// A model's weights on a device and the programs that run its towers, compiled once per batch shape
// and kept for the next call of that shape.
import type { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { Program, Spec } from '../graph';
import { compile, disposeArrays } from '../graph';
import type { ModelConfig, TextParameters, VisionInput, VisionParameters } from '../model';
import { textInputSpec, textParameters, textTower, visionParameters, visionTower } from '../model';
import type { Tensor } from '../graph';
import type { LoadedParameters } from '../weights';
import { batchSpecs } from './collate';

/** Embeddings of a batch, before and after normalisation: (B, E) each. */
export interface Embeddings<Leaf> {
  readonly raw: Leaf;
  readonly normalized: Leaf;
}

interface VisionSpecs {
  parameters: VisionParameters<Spec>;
  images: VisionInput<Spec>;
}
interface TextSpecs {
  parameters: TextParameters<Spec>;
  ids: Spec;
}

const keptPrograms = 16;
const specOf = ({ dtype, shape }: Spec): Spec => ({ dtype, shape });

// The last few programs by key; what falls out is disposed.
class ProgramCache<P extends { dispose(): void }> {
  private readonly programs = new Map<string, P>();

  get(key: string, build: () => P): P {
    const program = this.programs.get(key) ?? build();
    this.programs.delete(key);
    this.programs.set(key, program);
    for (const [oldest, stale] of this.programs) {
      if (this.programs.size <= keptPrograms) break;
      stale.dispose();
      this.programs.delete(oldest);
    }
    return program;
  }

  dispose(): void {
    for (const program of this.programs.values()) program.dispose();
    this.programs.clear();
  }
}

/** Both towers of a model, ready to run. */
export class Towers {
  private readonly images = new ProgramCache<Program<VisionSpecs, Embeddings<Tensor>>>();
  private readonly tokens = new ProgramCache<Program<VisionSpecs, { tokens: Tensor }>>();
  private readonly texts = new ProgramCache<Program<TextSpecs, Embeddings<Tensor>>>();
  private disposed = false;

  /** Takes over the arrays: they are disposed with the towers. */
  constructor(
    readonly config: ModelConfig,
    private readonly parameters: LoadedParameters<DeviceArray>,
  ) {}

  /**
   * Embeds a batch of prepared images.
   *
   * @param batch - number of images.
   * @param length - rows of a packed NaFlex batch.
   * @returns (B, E) float32, row by row.
   * @throws ERR_CONFIG when the vision tower has no head.
   */
  async embedImages(
    images: VisionInput<Float32Array | Int32Array | Uint8Array>,
    batch: number,
    length: number,
    normalize: boolean,
  ): Promise<Float32Array> {
    this.checkAlive('embedImages');
    const parameters = this.vision('embedImages');
    const program = this.images.get(`${String(batch)}x${String(length)}`, () =>
      compile<VisionSpecs, Embeddings<Tensor>>(
        'embed images',
        ({ parameters: weights, images: input }) => {
          const { pooled, embedding } = visionTower(weights, this.config, input);
          if (pooled === undefined || embedding === undefined) {
            throw new SiglipError(
              'ERR_CONFIG',
              'embedImages: the vision tower must have a pooling head, got a model without one; use imageTokens',
            );
          }
          return { raw: pooled, normalized: embedding };
        },
        this.visionSpecs(batch, length),
      ),
    );
    return readOne(await program.run({ parameters, images }), normalize);
  }

  /** The tokens of prepared images after the final norm, (B, N, D) or, NaFlex, (length, D). */
  async imageTokens(
    images: VisionInput<Float32Array | Int32Array | Uint8Array>,
    batch: number,
    length: number,
  ): Promise<Float32Array> {
    this.checkAlive('imageTokens');
    const parameters = this.vision('imageTokens');
    const program = this.tokens.get(`${String(batch)}x${String(length)}`, () =>
      compile<VisionSpecs, { tokens: Tensor }>(
        'image tokens',
        ({ parameters: weights, images: input }) => ({
          tokens: visionTower(weights, this.config, input).tokens,
        }),
        this.visionSpecs(batch, length),
      ),
    );
    const { tokens } = await program.run({ parameters, images });
    return readAndDispose(tokens);
  }

  /** Embeds a batch of texts given as ids (B, T). @returns (B, E) float32, row by row. */
  async embedTexts(ids: Int32Array, batch: number, normalize: boolean): Promise<Float32Array> {
    this.checkAlive('embedTexts');
    const parameters = this.text('embedTexts');
    const program = this.texts.get(String(batch), () =>
      compile<TextSpecs, Embeddings<Tensor>>(
        'embed texts',
        ({ parameters: weights, ids: input }) => {
          const { projected, embedding } = textTower(weights, this.config, input, {
            pooledOnly: true,
          });
          return { raw: projected, normalized: embedding };
        },
        { parameters: textParameters(this.config, specOf), ids: textInputSpec(this.config, batch) },
      ),
    );
    return readOne(await program.run({ parameters, ids }), normalize);
  }

  /** The vision tower. @throws ERR_ARGUMENT when the model was loaded without it */
  vision(who: string): VisionParameters<DeviceArray> {
    return this.parameters.vision ?? missing(who, 'vision', 'text');
  }

  /** The text tower. @throws ERR_ARGUMENT when the model was loaded without it */
  text(who: string): TextParameters<DeviceArray> {
    return this.parameters.text ?? missing(who, 'text', 'vision');
  }

  /** Frees weights and programs now. Idempotent. */
  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.images.dispose();
    this.tokens.dispose();
    this.texts.dispose();
    disposeArrays(this.parameters);
  }

  private visionSpecs(batch: number, length: number): VisionSpecs {
    return {
      parameters: visionParameters(this.config, specOf),
      images: batchSpecs(this.config, batch, length),
    };
  }

  private checkAlive(who: string): void {
    if (!this.disposed) return;
    throw new SiglipError('ERR_DISPOSED', `${who}: the model must be alive, got a disposed one`);
  }
}

function missing(who: string, tower: string, loaded: string): never {
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: the model must have its ${tower} tower, got one loaded with towers: '${loaded}'\n` +
      `to do: load it with towers: 'both' or '${tower}'.`,
  );
}

async function readOne(
  { raw, normalized }: Embeddings<DeviceArray>,
  normalize: boolean,
): Promise<Float32Array> {
  try {
    return await readFloats(normalize ? normalized : raw);
  } finally {
    raw.dispose();
    normalized.dispose();
  }
}

async function readAndDispose(array: DeviceArray): Promise<Float32Array> {
  try {
    return await readFloats(array);
  } finally {
    array.dispose();
  }
}

async function readFloats(array: DeviceArray): Promise<Float32Array> {
  const values = await array.read();
  if (values instanceof Float32Array) return values;
  throw new SiglipError('ERR_DTYPE', `embed: results must be float32, got ${array.dtype}`);
}

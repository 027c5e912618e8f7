// A model's weights on a device and the programs that run its towers, compiled once per batch shape
// and kept for the next call of that shape. Weights are constants of the programs: packed (on the CPU)
// or cast (on a GPU) once, held in that form alone, and shared by all shapes.
import type { Device, DeviceArray, RunInput } from '../array';
import { SiglipError } from '../errors';
import type {
  CompileOptions,
  ConstantSource,
  HostArray,
  Program,
  Spec,
  Specialize,
  Tensor,
} from '../graph';
import { compile, Constants } from '../graph';
import type { ModelConfig, TextParameters, VisionParameters } from '../model';
import { normalizedInput, textInputSpec, textTower, visionTower } from '../model';
import { joinProjections } from '../nn';
import type { Precision } from '../ops';
import { narrowAttention, packLinears } from '../ops';
import { loadAddon } from '../native/load';
import type { OpenCheckpoint } from '../weights';
import type { BatchInput } from './collate';
import { batchSpecs } from './collate';
import { ProgramCache } from './program_cache';

/** Embeddings of a batch, before and after normalisation: (B, E) each. */
export interface Embeddings<Leaf> {
  readonly raw: Leaf;
  readonly normalized: Leaf;
}

interface VisionSpecs {
  images: BatchInput<Spec>;
}
interface TextSpecs {
  ids: Spec;
}
type VisionConstants = Constants<VisionParameters<ConstantSource>>;
type TextConstants = Constants<TextParameters<ConstantSource>>;

// Layers outside of the blocks cost next to nothing, and what they get or give is all there is: pixels
// go into the first, embeddings come from the last.
const isInBlock = (label: string): boolean => /\bblocks\.\d+\b/u.test(label);

function specializeBlocks(precision: Precision): Specialize {
  const linears = packLinears((label) => (isInBlock(label) ? precision : 'float32'));
  const attention = narrowAttention((label) => precision !== 'float32' && isInBlock(label));
  return (node, isConstant) => linears(node, isConstant) ?? attention(node, isConstant);
}

/**
 * How a tower's programs are compiled.
 *
 * @param precision - on the CPU of the products in the blocks, all else being float32; on a GPU,
 * which has no int8, of all activations
 */
export function towerOptions(
  precision: Precision,
  device: Device,
): Pick<CompileOptions, 'precision' | 'rewrites' | 'specialize'> & { readonly device: Device } {
  const rewrites = [joinProjections];
  return device === 'cpu'
    ? { device, rewrites, specialize: specializeBlocks(precision) }
    : { device, rewrites, precision: precision === 'bfloat16' ? precision : 'float32' };
}

/** Both towers of a model, ready to run. */
export class Towers {
  private readonly images = new ProgramCache<Program<VisionSpecs, Embeddings<Tensor>>>();
  private readonly tokens = new ProgramCache<Program<VisionSpecs, { tokens: Tensor }>>();
  private readonly texts = new ProgramCache<Program<TextSpecs, Embeddings<Tensor>>>();
  private readonly visionConstants: VisionConstants | undefined;
  private readonly textConstants: TextConstants | undefined;
  private readonly target: ReturnType<typeof towerOptions>;
  private disposed = false;

  /**
   * Takes over the checkpoint: it is disposed with the towers.
   *
   * @param precision - see towerOptions()
   */
  constructor(
    private readonly checkpoint: OpenCheckpoint,
    precision: Precision,
    device: Device = 'cpu',
  ) {
    const { vision, text } = checkpoint.parameters;
    this.visionConstants = vision && new Constants(vision);
    this.textConstants = text && new Constants(text);
    this.target = towerOptions(precision, device);
  }

  get config(): ModelConfig {
    return this.checkpoint.config;
  }

  /** Bytes of weights on the device. */
  get weightBytes(): number {
    return (this.visionConstants?.bytes ?? 0) + (this.textConstants?.bytes ?? 0);
  }

  /**
   * Brings all weights to the device in the form in which the programs read them.
   *
   * @throws ERR_FILE, ERR_OUT_OF_MEMORY, ERR_ABORTED
   */
  async prepare(signal?: AbortSignal): Promise<void> {
    const { vision } = this.config;
    if (this.checkpoint.parameters.vision !== undefined) {
      const program =
        this.checkpoint.parameters.vision.head === undefined
          ? this.tokensProgram('load', 1, vision.positions)
          : this.imagesProgram('load', 1, vision.positions);
      await program.prepare(signal);
    }
    if (this.checkpoint.parameters.text !== undefined) {
      await this.textsProgram('load', 1).prepare(signal);
    }
  }

  /** A batch is about to come: to be woken takes the device's thread about as long as to make one. */
  announce(): void {
    loadAddon().expectJob(this.target.device);
  }

  /**
   * Embeds a batch of prepared images.
   *
   * @param batch - number of images.
   * @param length - rows of a packed NaFlex batch.
   * @returns (B, E) float32, row by row.
   * @throws ERR_CONFIG when the vision tower has no head.
   */
  async embedImages(
    images: BatchInput<RunInput>,
    batch: number,
    length: number,
    normalize: boolean,
  ): Promise<Float32Array> {
    this.checkAlive('embedImages');
    const program = this.imagesProgram('embedImages', batch, length, formOf(images));
    return floats(await program.read({ images }, pickOf(normalize)));
  }

  /** The tokens of prepared images after the final norm, (B, N, D) or, NaFlex, (length, D). */
  async imageTokens(
    images: BatchInput<RunInput>,
    batch: number,
    length: number,
  ): Promise<Float32Array> {
    this.checkAlive('imageTokens');
    const program = this.tokensProgram('imageTokens', batch, length, formOf(images));
    return floats(await program.read({ images }, ({ tokens }) => tokens));
  }

  /** Embeds a batch of texts given as ids (B, T). @returns (B, E) float32, row by row. */
  async embedTexts(ids: Int32Array, batch: number, normalize: boolean): Promise<Float32Array> {
    this.checkAlive('embedTexts');
    const program = this.textsProgram('embedTexts', batch);
    return floats(await program.read({ ids }, pickOf(normalize)));
  }

  /** The vision tower's weights. @throws ERR_ARGUMENT when the model was loaded without it */
  vision(who: string): VisionConstants {
    return this.visionConstants ?? missing(who, 'vision', 'text');
  }

  /** The text tower's weights. @throws ERR_ARGUMENT when the model was loaded without it */
  text(who: string): TextConstants {
    return this.textConstants ?? missing(who, 'text', 'vision');
  }

  /** Frees weights and programs now. Idempotent. */
  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.images.dispose();
    this.tokens.dispose();
    this.texts.dispose();
    this.visionConstants?.dispose();
    this.textConstants?.dispose();
    this.checkpoint.dispose();
  }

  private imagesProgram(
    who: string,
    batch: number,
    length: number,
    form: 'bytes' | 'values' = 'values',
  ): Program<VisionSpecs, Embeddings<Tensor>> {
    const constants = this.vision(who);
    return this.images.get(`${form} ${String(batch)}x${String(length)}`, () =>
      compile(
        'embed images',
        ({ images }, weights) => {
          const { pooled, embedding } = visionTower(weights, this.config, normalizedInput(images));
          if (pooled === undefined || embedding === undefined) {
            throw new SiglipError(
              'ERR_CONFIG',
              'embedImages: the vision tower must have a pooling head, got a model without one; use imageTokens',
            );
          }
          return { raw: pooled, normalized: embedding };
        },
        { images: batchSpecs(this.config, batch, length, form) },
        { constants, ...this.target },
      ),
    );
  }

  private tokensProgram(
    who: string,
    batch: number,
    length: number,
    form: 'bytes' | 'values' = 'values',
  ): Program<VisionSpecs, { tokens: Tensor }> {
    const constants = this.vision(who);
    return this.tokens.get(`${form} ${String(batch)}x${String(length)}`, () =>
      compile(
        'image tokens',
        ({ images }, weights) => ({
          tokens: visionTower(weights, this.config, normalizedInput(images)).tokens,
        }),
        { images: batchSpecs(this.config, batch, length, form) },
        { constants, ...this.target },
      ),
    );
  }

  private textsProgram(who: string, batch: number): Program<TextSpecs, Embeddings<Tensor>> {
    const constants = this.text(who);
    return this.texts.get(String(batch), () =>
      compile(
        'embed texts',
        ({ ids }, weights) => {
          const { projected, embedding } = textTower(weights, this.config, ids, {
            pooledOnly: true,
          });
          return { raw: projected, normalized: embedding };
        },
        { ids: textInputSpec(this.config, batch) },
        { constants, ...this.target },
      ),
    );
  }

  private checkAlive(who: string): void {
    if (!this.disposed) return;
    throw new SiglipError('ERR_DISPOSED', `${who}: the model must be alive, got a disposed one`);
  }
}

function formOf(images: BatchInput<unknown>): 'bytes' | 'values' {
  return 'pixels' in images ? 'bytes' : 'values';
}

function missing(who: string, tower: string, loaded: string): never {
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: the model must have its ${tower} tower, got one loaded with towers: '${loaded}'\n` +
      `to do: load it with towers: 'both' or '${tower}'.`,
  );
}

function pickOf(normalize: boolean): (embeddings: Embeddings<DeviceArray>) => DeviceArray {
  return ({ raw, normalized }) => (normalize ? normalized : raw);
}

function floats(values: HostArray): Float32Array {
  if (values instanceof Float32Array) return values;
  throw new SiglipError('ERR_DTYPE', 'embed: results must be float32, got another type');
}

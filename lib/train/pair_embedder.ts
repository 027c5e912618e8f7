// Embeddings of pairs without a gradient, micro-batch by micro-batch: what curation scores.
import type { Device, DeviceArray } from '../array';
import type { ComputeDType, HostArray, Program, Spec, Tensor } from '../graph';
import { compile, disposeArrays } from '../graph';
import type { ModelConfig, TwoTowersParameters } from '../model';
import {
  normalizedInput,
  pixelInputSpecs,
  textInputSpec,
  twoTowers,
  twoTowersParameters,
} from '../model';
import { rewritesFor } from '../nn';
import type { Embeddings, StepBatch } from './objective';
import { batchRange } from './pairs';

export interface PairEmbedderConfig {
  readonly model: ModelConfig;
  /** Pairs of one run of the towers. */
  readonly batch: number;
  readonly device?: Device | undefined;
  readonly precision?: ComputeDType | undefined;
}

/** Both towers of a model of fixed resolution, to embed any number of pairs of at least `batch`. */
export class PairEmbedder {
  private readonly program: Program<
    { readonly parameters: TwoTowersParameters<Spec>; readonly batch: StepBatch<Spec> },
    Embeddings<Tensor>
  >;

  /** @throws ERR_CONFIG, ERR_DEVICE. */
  constructor(private readonly config: PairEmbedderConfig) {
    const { model, batch, device = 'cpu', precision = 'float32' } = config;
    const specs = {
      parameters: twoTowersParameters<Spec>(model, ({ dtype, shape }) => ({ dtype, shape })),
      batch: {
        images: pixelInputSpecs(model, batch),
        texts: textInputSpec(model, batch),
      } as StepBatch<Spec>,
    };
    this.program = compile(
      'embed pairs',
      (inputs) => {
        const { images, texts } = inputs.batch as StepBatch<Tensor>;
        const { vision, text } = twoTowers(
          inputs.parameters,
          model,
          { vision: normalizedInput(images), ids: texts },
          { pooledOnly: true },
        );
        return { images: vision.embedding, texts: text.embedding };
      },
      specs,
      { device, precision, rewrites: rewritesFor(device) },
    );
  }

  /** Bytes a run needs on its device, weights included. */
  get peakBytes(): number {
    return this.program.memory.peakBytes;
  }

  /**
   * Embeddings of `pairs` pairs, (pairs, E) each. The last micro-batch ends with the batch: where
   * `batch` does not divide `pairs` it computes some rows a second time.
   */
  async embed(
    parameters: TwoTowersParameters<DeviceArray>,
    whole: StepBatch<HostArray>,
    pairs: number,
  ): Promise<Embeddings<Float32Array>> {
    const { model, batch } = this.config;
    const width = model.embedding;
    const images = new Float32Array(pairs * width);
    const texts = new Float32Array(pairs * width);
    for (let next = 0; next < pairs; next += batch) {
      const first = Math.min(next, pairs - batch);
      const part = await this.program.run({
        parameters,
        batch: batchRange(whole, pairs, first, first + batch),
      });
      try {
        images.set(await part.images.read(), first * width);
        texts.set(await part.texts.read(), first * width);
      } finally {
        disposeArrays(part);
      }
    }
    return { images, texts };
  }

  /** Frees the program. Idempotent. */
  dispose(): void {
    this.program.dispose();
  }
}

// Active curation (ACID, arXiv 2411.18674; JEST, arXiv 2406.17711; SigLIP 2, arXiv 2502.14786 §2.5): of
// a super-batch that learner and reference have looked at, the step trains on what is worth most.
import type { Device, DeviceArray } from '../array';
import type { Batch } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType, Program, Spec, Tensor } from '../graph';
import { compile, disposeArrays, fill, float32, int32, uint8 } from '../graph';
import { jointSelection } from '../loss';
import type { ModelConfig, TwoTowersParameters } from '../model';
import type { ScoredModel, ScoreLoss } from '../ops';
import { drawExamples, drawInput, scoreWeights } from '../ops';
import { PairEmbedder } from './pair_embedder';
import type { Embeddings } from './objective';
import { batchRows } from './pairs';
import { admitPairs } from './two_towers';
import type { Reference } from './reference';

/** How the batch of a step is chosen out of a super-batch. */
export interface CurationConfig {
  /** The frozen model that scores with the learner; `uniform` selection has no use for one. */
  readonly reference?: Reference | undefined;
  /**
   * Share of a super-batch that is dropped, f in [0, 1). Published: 0.5 for B/16, 0.75 for B/32, 0.8
   * and 0.9 elsewhere. See {@link superBatch}.
   */
  readonly filterRatio: number;
  /** Default `'learnability'`, the learner's loss less the reference's. */
  readonly score?: keyof typeof scoreWeights | undefined;
  /**
   * What losses a score is made of. Default `'sigmoid'`; `'softmax'` is InfoNCE over the super-batch, for
   * learners that are trained by it.
   */
  readonly scoreLoss?: ScoreLoss | undefined;
  /**
   * - `'joint'` (default): in chunks, each by what its examples score with those drawn before.
   * - `'independent'`: at once, by the score of an example's own pair. A baseline.
   * - `'uniform'`: without looking. A baseline.
   */
  readonly selection?: 'joint' | 'independent' | 'uniform' | undefined;
  /** Chunks of a joint selection, a divisor of the batch. Default 16, as published. */
  readonly chunks?: number | undefined;
  /** Sharpness of the choice: chances are in proportion to exp(gain · score). Default 1. */
  readonly gain?: number | undefined;
}

/** What a step's metrics tell about its selection. */
export interface CurationMetrics {
  /** Pairs of the super-batch. */
  readonly candidates: number;
  /** Mean score of a pair over the super-batch; without one where nothing was scored. */
  readonly score?: number;
  /** The same over the pairs that were selected. */
  readonly selectedScore?: number;
  /** Time that scoring and selecting took. */
  readonly seconds: number;
}

/** What was chosen out of a super-batch. */
export interface Selection {
  /** The super-batch. */
  readonly candidates: Batch;
  /** Its chosen rows, ascending. */
  readonly rows: Int32Array;
  /** Score of the own pair of each candidate; without where nothing was scored. */
  readonly scores: Float32Array | undefined;
  /** The chosen pairs. */
  readonly batch: Batch;
  readonly metrics: CurationMetrics;
}

/**
 * Pairs of the super-batch of which `batch` are trained on: batch / (1 − filterRatio).
 *
 * @throws ERR_ARGUMENT where that is no whole number.
 */
export function superBatch(batch: number, filterRatio: number): number {
  const pairs = batch / (1 - filterRatio);
  const whole = Math.round(pairs);
  if (!(filterRatio >= 0 && filterRatio < 1) || Math.abs(pairs - whole) > 1e-6 * pairs) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `curation: filterRatio must be in [0, 1) and batch / (1 − filterRatio) a whole number, got ${String(filterRatio)} and ${String(batch)}`,
    );
  }
  return whole;
}

/** The learner as a step of training sees it. */
export interface CuratorOptions {
  readonly model: ModelConfig;
  /** Pairs to select. */
  readonly batch: number;
  /** Pairs of one run of the towers. */
  readonly microBatch: number;
  readonly pixelTable: Float32Array;
  /** Of the random draws. */
  readonly seed: number;
  readonly device?: Device | undefined;
  readonly precision?: ComputeDType | undefined;
}

/** Selects the batches of a run. What it selects follows from weights, super-batch, seed and step. */
export class Curator {
  /** Pairs of a super-batch. */
  readonly candidates: number;
  private readonly scorer: Scorer | undefined;
  private readonly uniform: UniformSelection | undefined;

  /** @throws ERR_ARGUMENT, ERR_CONFIG, ERR_DEVICE. */
  constructor(
    config: CurationConfig,
    private readonly options: CuratorOptions,
  ) {
    const { batch } = options;
    this.candidates = superBatch(batch, config.filterRatio);
    if (config.selection === 'uniform') {
      this.uniform = compileUniform(this.candidates, batch, options.device);
    } else {
      this.scorer = new Scorer(config, options, this.candidates);
    }
  }

  /** Bytes that scoring needs on the device at its peak. */
  get peakBytes(): number {
    return this.scorer?.peakBytes ?? 0;
  }

  /** Selects the batch of a step. @throws ERR_DATA when the super-batch does not fit the learner. */
  async select(
    parameters: TwoTowersParameters<DeviceArray>,
    candidates: Batch,
    step: number,
  ): Promise<Selection> {
    const began = performance.now();
    const draw = drawInput(this.options.seed, step);
    const { rows, scores } = await this.choose(parameters, candidates, draw);
    const metrics = {
      candidates: this.candidates,
      ...(scores === undefined
        ? {}
        : { score: mean(scores), selectedScore: mean(rows, (row) => scores[row]) }),
      seconds: (performance.now() - began) / 1000,
    };
    return { candidates, rows, scores, batch: batchRows(candidates, rows), metrics };
  }

  /** Frees its programs; the reference is the caller's. */
  dispose(): void {
    this.scorer?.dispose();
    this.uniform?.dispose();
  }

  private async choose(
    parameters: TwoTowersParameters<DeviceArray>,
    candidates: Batch,
    draw: Int32Array,
  ): Promise<{ rows: Int32Array; scores: Float32Array | undefined }> {
    if (this.scorer !== undefined) return this.scorer.choose(parameters, candidates, draw);
    const { model, pixelTable } = this.options;
    admitPairs({ model, batch: this.candidates, pixelTable }, candidates);
    const drawn = await this.uniform?.run({ taken: new Uint8Array(this.candidates), draw });
    if (drawn === undefined) return { rows: new Int32Array(0), scores: undefined };
    try {
      return { rows: ((await drawn.indices.read()) as Int32Array).sort(), scores: undefined };
    } finally {
      disposeArrays(drawn);
    }
  }
}

// Both models on a super-batch, and the choice by their scores.
class Scorer {
  private readonly reference: Reference;
  private readonly embedder: PairEmbedder;
  private readonly selection: JointSelector;

  constructor(
    { reference, score, scoreLoss, selection, chunks, gain }: CurationConfig,
    private readonly options: CuratorOptions,
    private readonly candidates: number,
  ) {
    if (reference === undefined) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `curation: reference must be given for ${selection ?? 'joint'} selection, got none`,
      );
    }
    this.reference = reference;
    const { model, batch, microBatch, device, precision } = options;
    this.selection = new JointSelector({
      candidates,
      batch,
      widths: [model.embedding, reference.width],
      score,
      scoreLoss,
      chunks: selection === 'independent' ? 1 : chunks,
      gain,
      device,
    });
    try {
      this.embedder = new PairEmbedder({ model, batch: microBatch, device, precision });
    } catch (error) {
      this.selection.dispose();
      throw error;
    }
  }

  get peakBytes(): number {
    return Math.max(this.embedder.peakBytes, this.selection.peakBytes) + this.reference.bytes;
  }

  async choose(
    parameters: TwoTowersParameters<DeviceArray>,
    candidates: Batch,
    draw: Int32Array,
  ): Promise<{ rows: Int32Array; scores: Float32Array }> {
    const { model, pixelTable } = this.options;
    const pairs = admitPairs({ model, batch: this.candidates, pixelTable }, candidates);
    const learner = await this.embedder.embed(parameters, pairs, this.candidates);
    const reference = await this.reference.embed(candidates);
    const { logitScale, logitBias } = parameters;
    const { indices, scores } = await this.selection.run(
      { ...learner, logitScale, logitBias },
      {
        ...reference,
        logitScale: Float32Array.of(this.reference.logitScale),
        logitBias: Float32Array.of(this.reference.logitBias),
      },
      draw,
    );
    return { rows: indices.sort(), scores };
  }

  dispose(): void {
    this.embedder.dispose();
    this.selection.dispose();
  }
}

/** What a {@link JointSelector} is compiled for. */
export interface JointSelectorConfig {
  /** N. */
  readonly candidates: number;
  /** Examples to select. */
  readonly batch: number;
  /** Of the embeddings of learner and reference. */
  readonly widths: readonly [number, number];
  /** See {@link CurationConfig}. */
  readonly score?: keyof typeof scoreWeights | undefined;
  readonly scoreLoss?: ScoreLoss | undefined;
  readonly chunks?: number | undefined;
  readonly gain?: number | undefined;
  readonly device?: Device | undefined;
}

/** A model's view of the candidates, for a run. */
export interface Scored extends Embeddings<Float32Array> {
  /** (1), the logarithm of the scale. */
  readonly logitScale: Float32Array | DeviceArray;
  /** (1). */
  readonly logitBias: Float32Array | DeviceArray;
}

/** What a {@link JointSelector} gives. */
export interface SelectionOutcome {
  /** (batch): the selected examples in the order drawn. */
  readonly indices: Int32Array;
  /** (N): of each example's own pair; likewise the losses. */
  readonly scores: Float32Array;
  readonly learnerLosses: Float32Array;
  readonly referenceLosses: Float32Array;
}

type OwnPairs = Omit<SelectionOutcome, 'indices'>;

interface SelectorInputs<Leaf> {
  readonly learner: Record<keyof ScoredModel, Leaf>;
  readonly reference: Record<keyof ScoredModel, Leaf>;
  readonly taken: Leaf;
  readonly draw: Leaf;
}

/** Joint selection as a program over embeddings in memory of the host. */
export class JointSelector {
  private readonly program: Program<
    SelectorInputs<Spec>,
    { readonly chunks: readonly Tensor[]; readonly own: Record<keyof OwnPairs, Tensor> }
  >;

  /** @throws ERR_ARGUMENT where chunks do not divide the batch; ERR_DEVICE. */
  constructor(private readonly config: JointSelectorConfig) {
    const { candidates, batch, widths, score = 'learnability' } = config;
    const { scoreLoss, chunks, gain, device } = config;
    const scored = (width: number): Record<keyof ScoredModel, Spec> => ({
      images: float32(candidates, width),
      texts: float32(candidates, width),
      logitScale: float32(1),
      logitBias: float32(1),
    });
    this.program = compile(
      'select',
      (inputs) => {
        const { learner, reference, taken, draw } = inputs as SelectorInputs<Tensor>;
        const selection = jointSelection(learner, reference, taken, draw, {
          batch,
          weights: scoreWeights[score],
          scoreLoss,
          ...(chunks === undefined ? {} : { chunks }),
          ...(gain === undefined ? {} : { gain }),
        });
        const own = {
          scores: selection.scores[0],
          learnerLosses: selection.losses.learner,
          referenceLosses: selection.losses.reference,
        };
        return { chunks: selection.chunks, own };
      },
      {
        learner: scored(widths[0]),
        reference: scored(widths[1]),
        taken: uint8(candidates),
        draw: int32(4),
      },
      { device: device ?? 'cpu' },
    );
  }

  /** Bytes a run needs on its device. */
  get peakBytes(): number {
    return this.program.memory.peakBytes;
  }

  /** @param draw - see {@link drawInput}. */
  async run(learner: Scored, reference: Scored, draw: Int32Array): Promise<SelectionOutcome> {
    const ordered = ({ images, texts, logitScale, logitBias }: Scored): Scored => ({
      images,
      texts,
      logitScale,
      logitBias,
    });
    const result = await this.program.run({
      learner: ordered(learner),
      reference: ordered(reference),
      taken: new Uint8Array(this.config.candidates),
      draw,
    });
    try {
      const chunks = await Promise.all(result.chunks.map((chunk) => chunk.read()));
      const indices = Int32Array.from(chunks.flatMap((chunk) => [...(chunk as Int32Array)]));
      const { own } = result;
      const [scores, learnerLosses, referenceLosses] = await Promise.all(
        [own.scores, own.learnerLosses, own.referenceLosses].map(
          async (values) => (await values.read()) as Float32Array,
        ),
      );
      return { indices, scores, learnerLosses, referenceLosses };
    } finally {
      disposeArrays(result);
    }
  }

  /** Frees the program. Idempotent. */
  dispose(): void {
    this.program.dispose();
  }
}

type UniformSelection = Program<
  { readonly taken: Spec; readonly draw: Spec },
  { readonly indices: Tensor }
>;

function compileUniform(
  candidates: number,
  batch: number,
  device: Device | undefined,
): UniformSelection {
  return compile(
    'select uniformly',
    ({ taken, draw }) => ({
      indices: drawExamples(fill(0, [candidates]), taken, draw, {
        count: batch,
      }).indices,
    }),
    {
      taken: uint8(candidates),
      draw: int32(4),
    },
    { device: device ?? 'cpu' },
  );
}

function mean(values: Float32Array | Int32Array, value: (x: number) => number = (x) => x): number {
  let sum = 0;
  for (const x of values) sum += value(x);
  return sum / values.length;
}

// Active curation (ACID, arXiv 2411.18674; JEST, arXiv 2406.17711; SigLIP 2, arXiv 2502.14786 §2.5): of
// a super-batch that learner and reference have looked at, the step trains on what is worth most.
import type { Device, DeviceArray } from '../array';
import type { Communicator } from '../comm';
import { evenParts } from '../comm';
import type { Batch } from '../data';
import { SiglipError } from '../errors';
import type { ComputeDType, HostArray, Program, Spec, Tensor } from '../graph';
import { compile, disposeArrays, fill, float32, int32, uint8 } from '../graph';
import { jointSelection } from '../loss';
import type { ModelConfig, TwoTowersParameters } from '../model';
import type { ScoredModel, ScoreLoss } from '../ops';
import { drawExamples, drawInput, scoreWeights } from '../ops';
import { PairEmbedder } from './pair_embedder';
import { gatheredEmbeddings, movedPairs, summed } from './curation_over_ranks';
import type { Embeddings, StepBatch } from './objective';
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
  /**
   * Over ranks, out of what the batch is chosen.
   *
   * - `'global'` (default): out of the pairs of all ranks together, as one rank would; the chosen pairs
   *   travel, so that every rank trains on as many. Embeddings of the super-batch are on every rank.
   * - `'local'`: each rank out of its own pairs, its share of the batch. Nothing travels; what is
   *   compared with each other is a rank's part of the super-batch. `chunks` divides a rank's share.
   */
  readonly scope?: 'global' | 'local' | undefined;
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
  /** The super-batch; over ranks the rank's own part of it. */
  readonly candidates: Batch;
  /** Its chosen rows, ascending; over ranks with global selection those of the whole super-batch. */
  readonly rows: Int32Array;
  /** Score of the own pair of each candidate, as `rows`; without where nothing was scored. */
  readonly scores: Float32Array | undefined;
  /** The chosen pairs; over ranks those that the rank trains on. */
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
  /** The ranks that have a part of every super-batch each. */
  readonly comm?: Communicator | undefined;
  readonly device?: Device | undefined;
  readonly precision?: ComputeDType | undefined;
}

/**
 * Selects the batches of a run. What it selects follows from weights, super-batch, seed and step, and over
 * ranks with local selection from their number.
 */
export class Curator {
  /** Pairs of a super-batch. */
  readonly candidates: number;
  private readonly scorer: Scorer | undefined;
  private readonly uniform: UniformSelection | undefined;
  /** Where the parts of ranks begin in the super-batch and in the batch, and their ends. */
  private readonly parts: readonly number[];
  private readonly shares: readonly number[];

  /** @throws ERR_ARGUMENT, ERR_CONFIG, ERR_DEVICE. */
  constructor(
    private readonly config: CurationConfig,
    private readonly options: CuratorOptions,
  ) {
    const { batch, comm } = options;
    this.candidates = superBatch(batch, config.filterRatio);
    const size = comm?.size ?? 1;
    this.parts = evenParts(this.candidates, size);
    this.shares = evenParts(batch, size);
    const own = {
      candidates: length(this.parts, this.rank),
      batch: length(this.shares, this.rank),
    };
    const chosenFrom = this.isLocal ? own : { candidates: this.candidates, batch };
    if (config.selection === 'uniform') {
      this.uniform = compileUniform(chosenFrom.candidates, chosenFrom.batch, options.device);
    } else {
      this.scorer = new Scorer(config, options, own.candidates, chosenFrom);
    }
  }

  /** Bytes that scoring needs on the device at its peak. */
  get peakBytes(): number {
    return this.scorer?.peakBytes ?? 0;
  }

  /**
   * Selects the batch of a step.
   *
   * @param candidates - the super-batch; over ranks the rank's part of it.
   * @throws ERR_DATA when the super-batch does not fit the learner
   */
  async select(
    parameters: TwoTowersParameters<DeviceArray>,
    candidates: Batch,
    step: number,
  ): Promise<Selection> {
    const began = performance.now();
    const { seed, comm } = this.options;
    // Ranks that choose by themselves draw each its own noise.
    const draw = drawInput(seed, this.isLocal ? step * (comm?.size ?? 1) + this.rank : step);
    const { rows, scores } = await this.choose(parameters, candidates, draw);
    const batch =
      comm === undefined || this.isLocal
        ? batchRows(candidates, rows)
        : await movedPairs(comm, candidates, this.parts, rows, this.shares);
    const metrics = {
      candidates: this.candidates,
      ...(scores === undefined ? {} : await this.means(rows, scores)),
      seconds: (performance.now() - began) / 1000,
    };
    return { candidates, rows, scores, batch, metrics };
  }

  /** Frees its programs; the reference is the caller's. */
  dispose(): void {
    this.scorer?.dispose();
    this.uniform?.dispose();
  }

  private get rank(): number {
    return this.options.comm?.rank ?? 0;
  }

  private get isLocal(): boolean {
    return this.options.comm !== undefined && this.config.scope === 'local';
  }

  // Over the whole super-batch, and all that is selected of it.
  private async means(
    rows: Int32Array,
    scores: Float32Array,
  ): Promise<{ score: number; selectedScore: number }> {
    const sums = [sum(scores), sum(Float32Array.from(rows, (row) => scores[row]))];
    const { comm } = this.options;
    const [all, selected] = comm !== undefined && this.isLocal ? await summed(comm, sums) : sums;
    return { score: all / this.candidates, selectedScore: selected / this.options.batch };
  }

  private async choose(
    parameters: TwoTowersParameters<DeviceArray>,
    candidates: Batch,
    draw: Int32Array,
  ): Promise<{ rows: Int32Array; scores: Float32Array | undefined }> {
    const { model, pixelTable, comm } = this.options;
    const batch = length(this.parts, this.rank);
    const pairs = admitPairs({ model, batch, pixelTable }, candidates);
    if (this.scorer !== undefined) {
      const own = await this.scorer.embed(parameters, candidates, pairs);
      if (comm !== undefined && !this.isLocal) {
        const { widths } = this.scorer;
        own.learner = await gatheredEmbeddings(comm, own.learner, this.parts, widths[0]);
        own.reference = await gatheredEmbeddings(comm, own.reference, this.parts, widths[1]);
      }
      return this.scorer.choose(parameters, own, draw);
    }
    const taken = new Uint8Array(this.isLocal ? batch : this.candidates);
    const drawn = await this.uniform?.run({ taken, draw });
    if (drawn === undefined) return { rows: new Int32Array(0), scores: undefined };
    try {
      return { rows: ((await drawn.indices.read()) as Int32Array).sort(), scores: undefined };
    } finally {
      disposeArrays(drawn);
    }
  }
}

/** A super-batch as both models see it. */
interface Seen {
  learner: Embeddings<Float32Array>;
  reference: Embeddings<Float32Array>;
}

// Both models on a super-batch, and the choice by their scores.
class Scorer {
  /** Of the embeddings of learner and reference. */
  readonly widths: readonly [number, number];
  private readonly reference: Reference;
  private readonly embedder: PairEmbedder;
  private readonly selection: JointSelector;

  constructor(
    { reference, score, scoreLoss, selection, chunks, gain }: CurationConfig,
    options: CuratorOptions,
    /** Pairs that it embeds. */
    private readonly pairs: number,
    chosenFrom: Pick<JointSelectorConfig, 'candidates' | 'batch'>,
  ) {
    if (reference === undefined) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `curation: reference must be given for ${selection ?? 'joint'} selection, got none`,
      );
    }
    this.reference = reference;
    const { model, microBatch, device, precision } = options;
    this.widths = [model.embedding, reference.width];
    this.selection = new JointSelector({
      ...chosenFrom,
      widths: this.widths,
      score,
      scoreLoss,
      chunks: selection === 'independent' ? 1 : chunks,
      gain,
      device,
    });
    try {
      const batch = Math.min(microBatch, pairs);
      this.embedder = new PairEmbedder({ model, batch, device, precision });
    } catch (error) {
      this.selection.dispose();
      throw error;
    }
  }

  get peakBytes(): number {
    return Math.max(this.embedder.peakBytes, this.selection.peakBytes) + this.reference.bytes;
  }

  async embed(
    parameters: TwoTowersParameters<DeviceArray>,
    candidates: Batch,
    pairs: StepBatch<HostArray>,
  ): Promise<Seen> {
    const learner = await this.embedder.embed(parameters, pairs, this.pairs);
    return { learner, reference: await this.reference.embed(candidates) };
  }

  async choose(
    { logitScale, logitBias }: TwoTowersParameters<DeviceArray>,
    seen: Seen,
    draw: Int32Array,
  ): Promise<{ rows: Int32Array; scores: Float32Array }> {
    const { indices, scores } = await this.selection.run(
      { ...seen.learner, logitScale, logitBias },
      {
        ...seen.reference,
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

function sum(values: Float32Array): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

function length(parts: readonly number[], rank: number): number {
  return parts[rank + 1] - parts[rank];
}

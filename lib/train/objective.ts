// What a run trains, and by which losses: its parameters, the averages that follow them, the form of its
// batches and the step made of them. The trainer knows no more of a recipe than this.
import type { Batch } from '../data';
import { SiglipError } from '../errors';
import type { HostArray, MapTree, Spec, Tensor } from '../graph';
import { add, flatten, mapTree, scope } from '../graph';
import type { TeacherLogits } from '../loss';
import type {
  DecoderParameters,
  InitialLogits,
  LeafBuilder,
  ModelConfig,
  ParameterSpec,
  PixelInput,
  SelfDistillationParameters,
  TeacherParameters,
  TwoTowersParameters,
  VisionInput,
} from '../model';
import { movingAverage, scaleBy, sigmoidLoss } from '../ops';
import type { StepConfig } from './step';

/** All that is trained by gradients. */
export interface TrainedParameters<Leaf> extends TwoTowersParameters<Leaf> {
  readonly decoder?: DecoderParameters<Leaf> | undefined;
  readonly selfDistillation?: SelfDistillationParameters<Leaf> | undefined;
}

/** All that follows the parameters without a gradient. */
export interface Averages<Leaf> {
  readonly teacher?: TeacherParameters<Leaf>;
  /** (K) each: of the teacher's logits, pooled and of patches. */
  readonly centres?: { readonly pooled?: Leaf | undefined; readonly patch?: Leaf | undefined };
}

/** An average before it has values. */
export interface AverageSpec extends Spec {
  readonly path: string;
  readonly dtype: 'float32';
  /**
   * The path of the parameter that it follows, and is a copy of when it enters. Else it follows the
   * statistic of its own path and begins at zero.
   */
  readonly copyOf?: string;
  /** m of average ← m · average + (1 − m) · what it follows, after every update. */
  readonly momentum: number;
}

/** One micro-batch as a step takes it. */
export interface StepBatch<Leaf> {
  readonly images: PixelInput<Leaf> | VisionInput<Leaf>;
  /** (B, T) int32; the i-th text belongs to the i-th image and to no other. */
  readonly texts: Leaf;
  readonly targets?: TargetBatch<Leaf> | undefined;
  readonly views?: ViewBatch<Leaf> | undefined;
}

/** The tasks of the decoder as losses, in the order in which a batch has their sequences. */
export const decoderTasks = ['caption', 'referring', 'grounded'] as const;

/** What the decoder is to write: three sequences of T ids for every image, one after the other. */
export interface TargetBatch<Leaf> {
  /** (3 B, T) int32, what goes in. */
  readonly ids: Leaf;
  /** (3 B) uint8: 0 where a sequence is predicted in parallel. */
  readonly causal: Leaf;
  /** (3 B, T) int32 */
  readonly labels: Leaf;
  /** (3 B, T) for every task, 0 in the sequences of the others. */
  readonly weights: Readonly<Record<(typeof decoderTasks)[number], Leaf>>;
}

/** Augmented views of the images for self-distillation. */
export interface ViewBatch<Leaf> {
  /** (B, S, S, 3) uint8, of the stage's resolution. */
  readonly global: Leaf;
  /** (V, s, s, 3) uint8 */
  readonly local: Leaf;
  /** (V) int32: the image of each local view. */
  readonly images: Leaf;
  /** (B, N) uint8: 1 where a patch of the global view is masked. */
  readonly mask: Leaf;
  /** (M) int32: rows b·N + n of the masked patches. */
  readonly rows: Leaf;
  /** (M): what each counts. */
  readonly weights: Leaf;
  /** (1): of the teacher. */
  readonly temperature: Leaf;
}

/** Embeddings of a batch of pairs, (B, E) float32 each, unit rows. */
export interface Embeddings<Leaf> {
  readonly images: Leaf;
  readonly texts: Leaf;
}

/** What one micro-batch gives by itself. */
export interface TowersEvaluation {
  readonly embeddings: Embeddings<Tensor>;
  /** The weighted sum of its losses that need no other pair, (1); absent where there are none. */
  readonly loss?: Tensor | undefined;
  /** Those losses by name, (1) each, before they are weighted. */
  readonly terms?: Readonly<Record<string, Tensor>>;
  /** What averages that are no copies follow, by their paths: means over the micro-batch. */
  readonly statistics?: Statistics<Tensor>;
}

/** Gives the centre of a name from the teacher's features of a part of the batch. */
export type Balance = (name: string, teacher: TeacherLogits) => Tensor;

/** By the path of the average that follows it. */
export type Statistics<Leaf> = Readonly<Record<string, Leaf>>;

/** The loss that all pairs of a batch share. */
export interface Contrast {
  /** What it adds to the loss, (1). */
  readonly weighted: Tensor;
  /** The loss itself, (1). */
  readonly loss: Tensor;
}

/**
 * The part of a step that follows from the objective alone. The towers know one micro-batch, the contrast
 * the whole batch: so a batch may be larger than what the towers hold, or be spread over devices.
 */
export interface ObjectiveStep extends Pick<
  StepConfig<TrainedParameters<Spec>, Averages<Spec>, StepBatch<Spec>>,
  'name' | 'parameters' | 'averages' | 'batch' | 'decays'
> {
  /** Of every leaf of `averages`. */
  readonly averageSpecs: readonly AverageSpec[];
  /**
   * Centres that Sinkhorn-Knopp makes of a whole batch, (K) each by name; none where the teacher is
   * balanced otherwise.
   */
  readonly balanced: Readonly<Record<string, Spec>>;
  /** Weight of the sigmoid loss, which takes all pairs of a batch; 0 for none. */
  readonly sigmoid: number;
  /** Of a micro-batch. */
  readonly embeddings: Embeddings<Spec>;
  /**
   * @param balance - gives the centres of `balanced` where the batch is a part of another. Default: from
   * the batch itself.
   */
  towers(
    parameters: TrainedParameters<Tensor>,
    batch: StepBatch<Tensor>,
    averages: Averages<Tensor>,
    balance?: Balance,
  ): TowersEvaluation;
}

/** The sigmoid loss of the embeddings of a whole batch; `undefined` where it has no weight. */
export function contrastOf(
  { sigmoid }: Pick<ObjectiveStep, 'sigmoid'>,
  { images, texts }: Embeddings<Tensor>,
  { logitScale, logitBias }: TrainedParameters<Tensor>,
): Contrast | undefined {
  if (sigmoid === 0) return undefined;
  const loss = scope('loss', () => sigmoidLoss(images, texts, logitScale, logitBias));
  return { loss, weighted: sigmoid === 1 ? loss : scaleBy(loss, sigmoid) };
}

/**
 * Averages after an update, in the memory of the former.
 *
 * @param averages - by path, some or all; so are what they follow.
 */
export function moveAverages<T>(
  specs: readonly AverageSpec[],
  averages: T,
  parameters: ReadonlyMap<string, Tensor>,
  statistics: Statistics<Tensor>,
): MapTree<T, Tensor, Tensor> {
  const table = new Map(specs.map((spec) => [spec.path, spec]));
  return mapTree<T, Tensor, Tensor>(averages, (average, path) => {
    const spec = table.get(path);
    const source = spec?.copyOf === undefined ? statistics[path] : parameters.get(spec.copyOf);
    if (spec !== undefined && source !== undefined) {
      return movingAverage(average, source, spec.momentum);
    }
    throw new SiglipError('ERR_ARGUMENT', `train: ${path} must have what it follows, got none`);
  });
}

/** The tensors of a tree by their paths. */
export function tensorsByPath(tree: unknown): ReadonlyMap<string, Tensor> {
  return new Map(flatten(tree).map(({ path, leaf }) => [path, leaf as Tensor]));
}

/** An objective's step over batches that the towers hold whole, as compileStep takes it. */
export function wholeStep(
  step: ObjectiveStep,
): Omit<
  StepConfig<TrainedParameters<Spec>, Averages<Spec>, StepBatch<Spec>>,
  'microBatches' | 'optimizer' | 'device' | 'precision' | 'entered'
> {
  return {
    ...step,
    evaluate: (parameters, batch, averages) => {
      const tree = parameters as TrainedParameters<Tensor>;
      const { embeddings, loss, terms, statistics } = step.towers(tree, batch, averages);
      const contrast = contrastOf(step, embeddings, tree);
      const parts = [contrast?.weighted, loss].filter((part) => part !== undefined);
      return {
        loss: parts.reduce((sum, part) => add(sum, part)),
        terms: { ...(contrast === undefined ? {} : { sigmoid: contrast.loss }), ...terms },
        statistics,
      };
    },
    ...(step.averageSpecs.length === 0
      ? {}
      : {
          average: (averages, parameters, statistics) =>
            moveAverages(
              step.averageSpecs,
              averages,
              tensorsByPath(parameters),
              statistics as Statistics<Tensor>,
            ),
        }),
  };
}

/** What a run trains. */
export interface Objective {
  readonly model: ModelConfig;
  /** Pairs of a full batch. */
  readonly batch: number;
  /** (3, 256): the value of each byte of each colour. */
  readonly pixelTable: Float32Array;
  /** What a checkpoint must agree with to be continued. Plain JSON. */
  readonly identity: unknown;
  readonly parameters: readonly ParameterSpec[];
  readonly averages: readonly AverageSpec[];
  /** Forms of batches, a program each. */
  readonly forms: readonly string[];
  parametersTree<Leaf>(build: LeafBuilder<Leaf>, initial?: InitialLogits): TrainedParameters<Leaf>;
  averagesTree<Leaf>(build: (spec: AverageSpec) => Leaf): Averages<Leaf>;
  /** Pairs of a batch of a form. @throws ERR_DATA for none of its forms */
  pairs(form: string): number;
  /** The step of the batches of one form, or of so many pairs of them: a micro-batch, a rank's part. */
  step(form: string, pairs?: number): ObjectiveStep;
  /**
   * A batch as its step takes it.
   *
   * @param own - how many of a batch's pairs were given: a rank's part. Default all.
   * @throws ERR_DATA when it does not fit
   */
  admit(batch: Batch, own?: (pairs: number) => number): AdmittedBatch;
}

/** A batch that was found to fit. */
export interface AdmittedBatch {
  /** One of the objective's forms. */
  readonly form: string;
  /** Pairs of the whole batch. */
  readonly pairs: number;
  readonly inputs: StepBatch<HostArray>;
}

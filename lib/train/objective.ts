// What a run trains, and by which losses: its parameters, the averages that follow them, the form of its
// batches and the step made of them. The trainer knows no more of a recipe than this.
import type { Batch } from '../data';
import type { HostArray, Spec } from '../graph';
import type {
  InitialLogits,
  LeafBuilder,
  ModelConfig,
  ParameterSpec,
  PixelInput,
  TwoTowersParameters,
  VisionInput,
} from '../model';
import type { StepConfig } from './step';

/** All that is trained by gradients. */
export type TrainedParameters<Leaf> = TwoTowersParameters<Leaf>;

/** All that follows the parameters without a gradient. */
export type Averages<Leaf> = Readonly<Record<string, Leaf>>;

/** An average before it has values. */
export interface AverageSpec extends Spec {
  readonly path: string;
  readonly dtype: 'float32';
  /** The path of the parameter that it is a copy of when it enters; else it begins at zero. */
  readonly copyOf?: string;
}

/** One micro-batch as a step takes it. */
export interface StepBatch<Leaf> {
  readonly images: PixelInput<Leaf> | VisionInput<Leaf>;
  /** (B, T) int32; the i-th text belongs to the i-th image and to no other. */
  readonly texts: Leaf;
}

/** The part of a step that follows from the objective alone. */
export type ObjectiveStep = Pick<
  StepConfig<TrainedParameters<Spec>, Averages<Spec>, StepBatch<Spec>>,
  'name' | 'parameters' | 'averages' | 'batch' | 'decays' | 'evaluate' | 'average'
>;

/** What a run trains. */
export interface Objective {
  readonly model: ModelConfig;
  /** Pairs of a full micro-batch. */
  readonly batch: number;
  /** What a checkpoint must agree with to be continued. Plain JSON. */
  readonly identity: unknown;
  readonly parameters: readonly ParameterSpec[];
  readonly averages: readonly AverageSpec[];
  /** Forms of batches, a program each. */
  readonly forms: readonly string[];
  parametersTree<Leaf>(build: LeafBuilder<Leaf>, initial?: InitialLogits): TrainedParameters<Leaf>;
  averagesTree<Leaf>(build: (spec: AverageSpec) => Leaf): Averages<Leaf>;
  /** The step of the batches of one form. */
  step(form: string): ObjectiveStep;
  /**
   * A batch as its step takes it.
   *
   * @throws ERR_DATA when it does not fit
   */
  admit(batch: Batch): AdmittedBatch;
}

/** A batch that was found to fit. */
export interface AdmittedBatch {
  /** One of the objective's forms. */
  readonly form: string;
  /** Pairs in it. */
  readonly pairs: number;
  readonly inputs: StepBatch<HostArray>;
}

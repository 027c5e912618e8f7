// A stage of a recipe as an objective: the sum of its losses over one batch.
//
//   L = w_sig L_sigmoid + Σ_task w_task L_task + w_local L_local + w_masked L_masked
//
// The towers see the image as it is; the decoder reads their tokens; self-distillation runs the vision
// tower over views of its own (SigLIP 2, arXiv 2502.14786 §2.2, 2.3). One clip of the gradient is for the
// sum.
import type { Batch, BatchParts, NaflexLength, NaflexLengthOptions } from '../data';
import { NaflexLengths } from '../data';
import { SiglipError } from '../errors';
import type { HostArray, Spec, Tensor } from '../graph';
import { add, float32, int32, scope, uint8 } from '../graph';
import type { DistillationOptions } from '../loss';
import { captionLoss, localLoss, maskedLoss } from '../loss';
import type {
  DecoderConfig,
  LeafBuilder,
  ModelConfig,
  ParameterSpec,
  SelfDistillationConfig,
  TwoTowersOutput,
} from '../model';
import {
  decoder,
  decoderConfig,
  decoderParameters,
  gridSide,
  localViewSize,
  normalizedInput,
  packedInputSpecs,
  packedRows,
  pixelInputSpecs,
  selfDistillationParameters,
  teacherPart,
  textInputSpec,
  twoTowers,
  twoTowersParameters,
  visionParameters,
  visionTower,
} from '../model';
import { normalizePixels, scaleBy } from '../ops';
import type {
  AdmittedBatch,
  Averages,
  AverageSpec,
  Balance,
  Objective,
  ObjectiveStep,
  StepBatch,
  TargetBatch,
  TowersEvaluation,
  TrainedParameters,
  ViewBatch,
} from './objective';
import { decoderTasks } from './objective';
import type { Recipe, Stage } from './recipe';
import { trainsDecoder, trainsSelfDistillation, stageModel } from './recipe';
import { admitPacked, admitPairs, embeddingSpecs } from './two_towers';

export interface StageObjectiveOptions {
  /** (3, 256): the value of each byte of each colour. */
  readonly pixelTable: Float32Array;
  /** Compute blocks again in the backward instead of keeping their inside. Default false. */
  readonly checkpoint?: boolean | undefined;
}

/** The decoder that a recipe trains beside a model. */
export function stageDecoder(recipe: Recipe, model: ModelConfig): DecoderConfig {
  return decoderConfig(model, recipe.decoder);
}

/** The form of the batches of a fixed resolution; those of NaFlex are named by their length. */
const IMAGES = 'images';

/**
 * The lengths of a NaFlex stage's batches; half batches at the longest (§2.4.2: at 1,024).
 *
 * @throws ERR_CONFIG for a stage of a fixed resolution
 */
export function naflexLengthOptions(recipe: Recipe, stage: Stage): NaflexLengthOptions {
  const { lengths, batch = recipe.batch } = stage;
  if (lengths === undefined) {
    throw new SiglipError(
      'ERR_CONFIG',
      `train: stage ${stage.name} must be of the naflex layout, got a fixed resolution`,
    );
  }
  const halved = lengths.length > 1 ? [Math.max(...lengths)] : [];
  return { batch, lengths, halved, seed: recipe.seed };
}

/** What the data of a stage must bring besides images and texts. */
export function batchParts(recipe: Recipe, stage: Stage): BatchParts {
  const { vision } = stageModel(recipe, stage);
  const { localViews, mask, maskShare } = recipe.distillation;
  const fixed = vision.layout === 'fixed' ? vision : undefined;
  return {
    ...(trainsDecoder(stage)
      ? {
          targets: {
            length: stageDecoder(recipe, stageModel(recipe, stage)).length,
            parallel: recipe.parallelShare,
          },
        }
      : {}),
    ...(trainsSelfDistillation(stage) && fixed !== undefined
      ? {
          views: {
            size: fixed.imageSize,
            localSize: localViewSize(fixed),
            localViews,
            grid: gridSide(fixed),
            mask,
            maskShare,
          },
        }
      : {}),
  };
}

/** A stage as an objective. @throws ERR_CONFIG */
export function stageObjective(
  recipe: Recipe,
  stage: Stage,
  options: StageObjectiveOptions,
): Objective {
  return new StageObjective(recipe, stage, options);
}

class StageObjective implements Objective {
  readonly model: ModelConfig;
  readonly batch: number;
  readonly identity: unknown;
  readonly parameters: readonly ParameterSpec[];
  readonly averages: readonly AverageSpec[];
  readonly forms: readonly string[];
  private readonly decoder: DecoderConfig | undefined;
  private readonly heads: SelfDistillationConfig | undefined;
  private readonly parts: BatchParts;
  private readonly lengths: NaflexLengths | undefined;

  constructor(
    private readonly recipe: Recipe,
    private readonly stage: Stage,
    private readonly options: StageObjectiveOptions,
  ) {
    this.model = stageModel(recipe, stage);
    this.batch = stage.batch ?? recipe.batch;
    this.decoder = trainsDecoder(stage) ? stageDecoder(recipe, this.model) : undefined;
    this.heads = trainsSelfDistillation(stage)
      ? { ...recipe.selfDistillation, sharedHead: false }
      : undefined;
    this.parts = batchParts(recipe, stage);
    this.lengths =
      stage.lengths === undefined
        ? undefined
        : new NaflexLengths(naflexLengthOptions(recipe, stage));
    this.forms = this.lengths?.forms.map(({ length }) => String(length)) ?? [IMAGES];
    this.identity = {
      model: this.model,
      decoder: this.decoder,
      selfDistillation: this.heads,
      losses: stage.losses,
    };
    const table: ParameterSpec[] = [];
    this.parametersTree((spec) => table.push(spec));
    this.parameters = table;
    this.averages = this.averageTable();
  }

  parametersTree<Leaf>(build: LeafBuilder<Leaf>): TrainedParameters<Leaf> {
    return {
      ...twoTowersParameters(this.model, build, this.recipe.initialLogits),
      decoder: this.decoder && decoderParameters(this.decoder, build),
      selfDistillation:
        this.heads && selfDistillationParameters(this.model.vision.width, this.heads, build),
    };
  }

  averagesTree<Leaf>(build: (spec: AverageSpec) => Leaf): Averages<Leaf> {
    if (this.heads === undefined) return {};
    const leaves = new Map(this.averages.map((spec) => [spec.path, build(spec)]));
    const [first] = leaves.values();
    // The mask token is no part of a teacher: teacherPart drops it.
    const leaf = (path: string): Leaf => leaves.get(path) ?? first;
    const teacher = teacherPart(
      visionParameters(this.model, ({ path }) => leaf(teacherPath(path))),
      selfDistillationParameters(this.model.vision.width, this.heads, ({ path }) =>
        leaf(teacherPath(path)),
      ),
    );
    const { local, masked } = this.stage.losses;
    return {
      teacher,
      centres: {
        ...(local > 0 ? { pooled: leaf('centres.pooled') } : {}),
        ...(masked > 0 ? { patch: leaf('centres.patch') } : {}),
      },
    };
  }

  private averageTable(): AverageSpec[] {
    if (this.heads === undefined) return [];
    const table: AverageSpec[] = [];
    const { momentum, centreMomentum } = this.recipe.distillation;
    const follow = ({ path, shape }: ParameterSpec): void => {
      table.push({ path: teacherPath(path), dtype: 'float32', shape, copyOf: path, momentum });
    };
    for (const spec of this.parameters) {
      const ofHeads = /^selfDistillation\.(?:pooledHead|patchHead)\./u.test(spec.path);
      if (spec.path.startsWith('vision.') || ofHeads) follow(spec);
    }
    const centre = (path: string, prototypes: number): AverageSpec => ({
      path: `centres.${path}`,
      dtype: 'float32',
      shape: [prototypes],
      momentum: centreMomentum,
    });
    const { local, masked } = this.stage.losses;
    if (local > 0) table.push(centre('pooled', this.heads.prototypes));
    if (masked > 0) table.push(centre('patch', this.heads.patchPrototypes));
    return table;
  }

  get pixelTable(): Float32Array {
    return this.options.pixelTable;
  }

  pairs(form: string): number {
    if (this.forms.includes(form)) return this.lengthOf(form)?.batch ?? this.batch;
    throw new SiglipError(
      'ERR_DATA',
      `train: form of a batch must be one of ${this.forms.join(', ')}, got ${form}`,
    );
  }

  step(form: string, pairs = this.pairs(form)): ObjectiveStep {
    const decaying = new Set(this.parameters.flatMap(({ path, decay }) => (decay ? [path] : [])));
    return {
      name: `train ${this.stage.name}, ${form}`,
      parameters: this.parametersTree<Spec>(({ dtype, shape }) => ({ dtype, shape })),
      averages: this.averagesTree<Spec>(({ dtype, shape }) => ({ dtype, shape })),
      batch: this.batchSpecs(form, pairs),
      averageSpecs: this.averages,
      balanced: this.balanced(),
      sigmoid: this.stage.losses.sigmoid,
      decays: (path) => decaying.has(path),
      embeddings: embeddingSpecs(this.model, pairs),
      towers: (parameters, batch, averages, balance) =>
        this.towers(parameters, batch, averages, balance),
    };
  }

  private balanced(): Record<string, Spec> {
    if (this.recipe.distillation.centring !== 'sinkhorn') return {};
    const centres = this.averages.filter(({ path }) => path.startsWith('centres.'));
    return Object.fromEntries(
      centres.map(({ path, shape }) => [path.slice('centres.'.length), float32(...shape)]),
    );
  }

  private lengthOf(form: string): NaflexLength | undefined {
    return this.lengths?.forms.find(({ length }) => String(length) === form);
  }

  private batchSpecs(form: string, images: number): StepBatch<Spec> {
    const { model } = this;
    const length = this.lengthOf(form);
    const { targets, views } = this.parts;
    return {
      images:
        length === undefined
          ? pixelInputSpecs(model, images)
          : packedInputSpecs(model, images, packedRows(images * length.length)),
      texts: textInputSpec(model, images),
      targets: targets && targetSpecs(images, targets.length),
      views: views && viewSpecs(images, views),
    };
  }

  private towers(
    parameters: TrainedParameters<Tensor>,
    batch: StepBatch<Tensor>,
    averages: Averages<Tensor>,
    balance: Balance | undefined,
  ): TowersEvaluation {
    const { losses } = this.stage;
    const output = twoTowers(
      parameters,
      this.model,
      { vision: normalizedInput(batch.images), ids: batch.texts },
      { checkpoint: this.options.checkpoint, pooledOnly: true },
    );
    const distilled = this.distillationTerms(parameters, batch, averages, balance);
    const terms = { ...this.decoderTerms(parameters, batch, output), ...distilled.terms };
    const weighted = Object.entries(terms).map(([name, term]) =>
      scaleBy(term, losses[name as keyof Stage['losses']]),
    );
    const [first, ...rest] = weighted;
    return {
      embeddings: { images: output.vision.embedding, texts: output.text.embedding },
      loss: first && rest.reduce((sum, term) => add(sum, term), first),
      terms,
      statistics: distilled.statistics,
    };
  }

  private decoderTerms(
    parameters: TrainedParameters<Tensor>,
    { images, targets }: StepBatch<Tensor>,
    { vision: { tokens, embedding } }: TwoTowersOutput,
  ): Record<string, Tensor> {
    const tree = parameters.decoder;
    if (this.decoder === undefined || tree === undefined || targets === undefined) return {};
    const hidden = decoder(
      tree,
      this.decoder,
      {
        ids: targets.ids,
        causal: targets.causal,
        memory: tokens,
        memorySegments: 'segments' in images ? images.segments : undefined,
      },
      { checkpoint: this.options.checkpoint },
    );
    const { labels, weights } = targets;
    const wanted = decoderTasks.filter((task) => this.stage.losses[task] > 0);
    return Object.fromEntries(
      wanted.map((task) => [
        task,
        scope(task, () =>
          captionLoss(
            hidden,
            tree.head,
            { labels, weights: weights[task] },
            { examples: embedding.shape[0] },
          ),
        ),
      ]),
    );
  }

  private distillationTerms(
    { vision, selfDistillation: heads }: TrainedParameters<Tensor>,
    { images, views }: StepBatch<Tensor>,
    { teacher, centres }: Averages<Tensor>,
    balance: Balance | undefined,
  ): { terms: Record<string, Tensor>; statistics: Record<string, Tensor> } {
    const terms: Record<string, Tensor> = {};
    const statistics: Record<string, Tensor> = {};
    if (views === undefined || heads === undefined || teacher === undefined) {
      return { terms, statistics };
    }
    if (!('table' in images)) throw notFixed();
    const { table } = images;
    const { model } = this;
    const { checkpoint } = this.options;
    const { studentTemperature, centring } = this.recipe.distillation;
    const options = (name: string): DistillationOptions => ({
      balance:
        centring === 'sinkhorn' && balance !== undefined
          ? (logits) => balance(name, logits)
          : centring,
      studentTemperature,
    });
    const { temperature } = views;
    const global = { images: normalizePixels(views.global, table) };
    const whole = scope('teacher', () => visionTower(teacher.vision, model, global));
    if (centres?.pooled !== undefined) {
      const local = scope('local', () =>
        visionTower(
          vision,
          model,
          { images: normalizePixels(views.local, table) },
          { checkpoint, imageSize: this.parts.views?.localSize },
        ),
      );
      const { loss, meanLogits } = localLoss(
        { student: pooledOf(local), teacher: pooledOf(whole), images: views.images },
        heads,
        teacher,
        { centre: centres.pooled, temperature },
        options('pooled'),
      );
      terms.local = loss;
      statistics['centres.pooled'] = meanLogits;
    }
    if (centres?.patch !== undefined) {
      const { mask, rows, weights } = views;
      const masked = scope('masked', () =>
        visionTower(vision, model, global, {
          checkpoint,
          masked: { mask, maskToken: heads.maskToken },
        }),
      );
      const { loss, meanLogits } = maskedLoss(
        { student: masked.tokens, teacher: whole.tokens, rows, weights },
        heads,
        teacher,
        { centre: centres.patch, temperature },
        options('patch'),
      );
      terms.masked = loss;
      statistics['centres.patch'] = meanLogits;
    }
    return { terms, statistics };
  }

  admit(batch: Batch, own = (pairs: number): number => pairs): AdmittedBatch {
    const { packed } = batch;
    const form = packed === undefined ? IMAGES : String(packed.length);
    const pairs = this.pairs(form);
    const rows = own(pairs);
    const pixels = { model: this.model, batch: rows, pixelTable: this.options.pixelTable };
    const length = this.lengthOf(form)?.length;
    const inputs: StepBatch<HostArray> = {
      ...(packed === undefined || length === undefined
        ? admitPairs(pixels, batch)
        : admitPacked(this.model, { length, batch: rows }, packed, batch.tokens)),
      targets: this.parts.targets && targetsOf(batch),
      views: this.parts.views && this.viewsOf(batch),
    };
    return { form, pairs, inputs };
  }

  private viewsOf(batch: Batch): ViewBatch<HostArray> {
    const { views } = batch;
    if (views === undefined) throw missing('views');
    return {
      ...views,
      temperature: Float32Array.of(this.recipe.distillation.teacherTemperature),
    };
  }
}

function teacherPath(path: string): string {
  return `teacher.${path.replace(/^selfDistillation\./u, '')}`;
}

function pooledOf({ pooled }: { readonly pooled: Tensor | undefined }): Tensor {
  if (pooled !== undefined) return pooled;
  throw new SiglipError(
    'ERR_CONFIG',
    'train: vision.pool must be map for self-distillation, got none',
  );
}

function notFixed(): SiglipError {
  return new SiglipError(
    'ERR_CONFIG',
    'train: vision.layout must be fixed for self-distillation, got naflex',
  );
}

function targetSpecs(images: number, length: number): TargetBatch<Spec> {
  const sequences = images * decoderTasks.length;
  const weights = float32(sequences, length);
  return {
    ids: int32(sequences, length),
    causal: uint8(sequences),
    labels: int32(sequences, length),
    weights: { caption: weights, referring: weights, grounded: weights },
  };
}

function viewSpecs(
  images: number,
  { size, localSize, localViews, grid, maskShare }: NonNullable<BatchParts['views']>,
): ViewBatch<Spec> {
  const tokens = grid * grid;
  const masked = images * Math.round(maskShare * tokens);
  return {
    global: uint8(images, size, size, 3),
    local: uint8(images * localViews, localSize, localSize, 3),
    images: int32(images * localViews),
    mask: uint8(images, tokens),
    rows: int32(masked),
    weights: float32(masked),
    temperature: float32(1),
  };
}

// Every task has weights of its own, zero in the sequences of the others.
function targetsOf({ targets }: Batch): TargetBatch<HostArray> {
  if (targets === undefined) throw missing('targets');
  const { ids, causal, labels, weights } = targets;
  const length = weights.length / causal.length;
  const of = (task: number): Float32Array =>
    weights.map((weight, i) =>
      Math.floor(i / length) % decoderTasks.length === task ? weight : 0,
    );
  return {
    ids,
    causal,
    labels,
    weights: { caption: of(0), referring: of(1), grounded: of(2) },
  };
}

function missing(what: string): SiglipError {
  return new SiglipError('ERR_DATA', `train: a batch of this stage must have ${what}, got none`);
}

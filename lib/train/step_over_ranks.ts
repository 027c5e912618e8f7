// A training step whose pairs are spread over ranks, each with a copy of the weights:
//
//   texts forward ─ texts travel ┐
//   images forward ──────────────┴ loss over ranks ─ texts backward ─ gradients travel ┐
//                                                    images backward ─────────────────┴ update
//
// A program runs from its first call to its last, so the towers run twice: once for the embeddings,
// which the loss needs of all ranks, and once for the gradients. Every number that ranks share is the
// same bits on each, so their weights never part.
//
// With `shard: 'optimizer'` (ZeRO stage 1, arXiv 1910.02054) a rank holds Adam's moments of its part of
// the parameters alone, updates that part and gets the others' from them. As many bytes travel.
import type { Device, HostArray } from '../array';
import { DeviceArray } from '../array';
import type { Communicator } from '../comm';
import { evenParts, startsOf } from '../comm';
import { SiglipError } from '../errors';
import type { ComputeDType, MapTree, Program, Spec, Tensor } from '../graph';
import { compile, disposeArrays, flatten, float32, gradient, mapTree } from '../graph';
import type { ModelConfig, TextParameters, TwoTowersParameters, VisionParameters } from '../model';
import {
  normalizedInput,
  parameterTable,
  pixelInputSpecs,
  textInputSpec,
  textTower,
  twoTowersParameters,
  visionInputSpecs,
  visionTower,
} from '../model';
import { dot, globalNorm } from '../ops';
import type { TrainingState } from './checkpoint';
import { FlatLayout } from './flat_layout';
import type { Piece } from './flat_layout';
import type { TextExchange } from './loss_over_ranks';
import { LossOverRanks } from './loss_over_ranks';
import type { OptimizerConfig, OptimizerState } from './optimizer';
import { updateParameters } from './optimizer';
import type { StepScalars } from './step';
import type { StepBatch } from './objective';

/** How a run is spread over ranks. */
export interface RanksConfig {
  readonly comm: Communicator;
  /** How the texts of other ranks come to a rank. Default `gather`; see {@link LossOverRanks}. */
  readonly exchange?: TextExchange;
  /** What a rank keeps only a part of. Default `none`: every rank has all weights and moments. */
  readonly shard?: 'none' | 'optimizer';
}

export interface StepOverRanksConfig extends RanksConfig {
  readonly model: ModelConfig;
  /** Pairs of every rank, each at least one. */
  readonly rows: readonly number[];
  readonly optimizer: OptimizerConfig;
  /** Default `'cpu'`. */
  readonly device?: Device;
  /** Default `'float32'`. */
  readonly precision?: ComputeDType;
  /** Compute blocks again in the backward instead of keeping their inside. Default false. */
  readonly checkpoint?: boolean;
}

type Arrays = Record<string, DeviceArray>;

interface UpdateInputs<Leaf> {
  readonly parameters: Record<string, Leaf>;
  readonly state: OptimizerState<Record<string, Leaf>>;
  readonly gradients: Record<string, Leaf>;
  readonly gradientNorm: Leaf;
  readonly schedule: Leaf;
}

interface UpdateOutputs {
  readonly parameters: Record<string, Tensor>;
  readonly state: OptimizerState<Record<string, Tensor>>;
  readonly updateNorm: Tensor;
  readonly parameterNorm: Tensor;
}

/** The two programs of a tower. */
interface Tower<P, I> {
  readonly forward: Program<{ parameters: P; input: I }, { embedding: Tensor }>;
  readonly backward: Program<
    { parameters: P; input: I; dembedding: Spec },
    { gradients: MapTree<P, Spec, Tensor> }
  >;
}

type Vision = VisionParameters<Spec>;
type Text = TextParameters<Spec>;
type Images = StepBatch<Spec>['images'];

/**
 * Step of a run over ranks. All ranks make it with the same configuration and take the same steps.
 *
 * @throws ERR_CONFIG, ERR_ARGUMENT as the towers and {@link LossOverRanks} do.
 */
export class StepOverRanks {
  private readonly comm: Communicator;
  private readonly vision: Tower<Vision, Images>;
  private readonly text: Tower<Text, Spec>;
  private readonly loss: LossOverRanks;
  private readonly norm: Program<{ gradients: Record<string, Spec> }, { norm: Tensor }>;
  private readonly update: Program<UpdateInputs<Spec>, UpdateOutputs>;
  /** Of each tower and of the logits' two scalars: parameters one behind the other. */
  private readonly layouts: readonly [FlatLayout, FlatLayout, FlatLayout];
  /** What this rank updates: of its part, or of all, in the order of the layouts. */
  private readonly pieces: readonly (readonly Piece[])[];
  private readonly parameters: TwoTowersParameters<DeviceArray>;
  private readonly leaves: ReadonlyMap<string, DeviceArray>;
  private readonly batchSpecs: StepBatch<Spec>;
  /** By path: what the update works on. Without shards the parameters themselves. */
  private owned: { parameters: Arrays; moments: OptimizerState<Arrays> } = {
    parameters: {},
    moments: { m: {}, v: {} },
  };
  private readonly moments: OptimizerState<TwoTowersParameters<DeviceArray>>;

  private constructor(
    private readonly config: StepOverRanksConfig,
    state: TrainingState<DeviceArray>,
  ) {
    const { comm, model, rows, device = 'cpu', precision = 'float32' } = config;
    this.comm = comm;
    this.parameters = state.parameters;
    this.moments = state.moments;
    this.leaves = arraysByPath(state.parameters);
    const own = rows[comm.rank];
    this.loss = new LossOverRanks({ ...config, embedding: model.embedding });
    const specs = twoTowersParameters<Spec>(model, ({ dtype, shape }) => ({ dtype, shape }));
    const images =
      model.vision.layout === 'fixed' ? pixelInputSpecs(model, own) : visionInputSpecs(model, own);
    this.batchSpecs = { images, texts: textInputSpec(model, own) };
    const options = { checkpoint: config.checkpoint, pooledOnly: true };
    const dembedding = float32(own, model.embedding);
    this.text = tower('text', specs.text, this.batchSpecs.texts, dembedding, config, (p, ids) => {
      return textTower(p, model, ids, options).embedding;
    });
    this.vision = tower('vision', specs.vision, images, dembedding, config, (p, input) => {
      const normalized = normalizedInput(input);
      const { embedding } = visionTower(p, model, normalized, options);
      if (embedding !== undefined) return embedding;
      throw new SiglipError(
        'ERR_CONFIG',
        `train: vision.pool must be map, got ${model.vision.pool}: a tower without a head gives no embedding`,
      );
    });
    const { logitScale, logitBias } = specs;
    this.layouts = [
      new FlatLayout({ vision: specs.vision }),
      new FlatLayout({ text: specs.text }),
      new FlatLayout({ logitScale, logitBias }),
    ];
    this.pieces = this.layouts.map((layout) => {
      const parts = this.parts(layout);
      return layout.pieces(parts[comm.rank], parts[comm.rank + 1]);
    });
    const ownedSpecs = Object.fromEntries(
      this.pieces.flat().map(({ path, shape }) => [path, float32(...shape)]),
    );
    this.norm = compile(
      'gradient norm',
      ({ gradients }: { gradients: Record<string, Tensor> }) => ({
        norm: globalNorm(Object.values(gradients)),
      }),
      { gradients: ownedSpecs },
      { device },
    );
    const decaying = new Set(
      parameterTable(model)
        .filter(({ decay }) => decay)
        .map(({ path }) => path),
    );
    this.update = compile(
      'update',
      (inputs: UpdateInputs<Tensor>): UpdateOutputs => {
        const { state: newState, ...update } = updateParameters(
          inputs.parameters,
          inputs.gradients,
          inputs.state,
          { all: inputs.schedule, entered: {} },
          config.optimizer,
          (path) => decaying.has(path),
          inputs.gradientNorm,
        );
        const { parameters, updateNorm, parameterNorm } = update;
        return { parameters, state: newState, updateNorm, parameterNorm };
      },
      {
        parameters: ownedSpecs,
        state: { m: ownedSpecs, v: ownedSpecs },
        gradients: ownedSpecs,
        gradientNorm: float32(1),
        schedule: float32(3),
      },
      { donate: ['parameters', 'state'], device, precision },
    );
  }

  /**
   * Takes over a state, the same on every rank. With sharded moments the rank keeps its part and
   * disposes those given.
   */
  static async create(
    config: StepOverRanksConfig,
    state: TrainingState<DeviceArray>,
  ): Promise<StepOverRanks> {
    const step = new StepOverRanks(config, state);
    const trees = [state.parameters, state.moments.m, state.moments.v];
    const [parameters, m, v] = await Promise.all(trees.map((tree) => step.owning(tree)));
    step.owned = { parameters, moments: { m, v } };
    if (step.sharded) {
      disposeArrays(state.moments);
    }
    return step;
  }

  /** Bytes of weights, moments and gradients, and of the largest program's arena. */
  get peakBytes(): number {
    const arenas = [this.vision.backward, this.text.backward, this.update].map(
      ({ memory }) => memory.arenaBytes,
    );
    const weights = this.layouts.reduce((sum, { length }) => sum + 4 * length, 0);
    const owned = this.pieces.flat().reduce((sum, { from, to }) => sum + 4 * (to - from), 0);
    return Math.max(...arenas) + 2 * weights + (this.sharded ? 3 : 2) * owned;
  }

  /**
   * One step.
   *
   * @param schedule - see scheduleInput.
   * @param batch - the rank's own pairs.
   * @returns loss and norms over all ranks, the same on each.
   * @throws ERR_COMM when another rank has ended.
   */
  async run(schedule: Float32Array, batch: StepBatch<HostArray>): Promise<StepScalars<number>> {
    const { device = 'cpu' } = this.config;
    const { vision, text, ...logits } = this.parameters;
    const uploaded = upload(this.batchSpecs, batch, device);
    const made: DeviceArray[] = [];
    try {
      const texts = await this.text.forward.run({ parameters: text, input: uploaded.texts });
      made.push(texts.embedding);
      const images = async (): Promise<DeviceArray> => {
        const run = { parameters: vision, input: uploaded.images };
        const { embedding } = await this.vision.forward.run(run);
        made.push(embedding);
        return embedding;
      };
      const loss = await this.loss.run(texts.embedding, images, logits);
      made.push(loss.images, loss.texts);

      const [visionLayout, textLayout] = this.layouts;
      const dtext = await this.text.backward.run({
        parameters: text,
        input: uploaded.texts,
        dembedding: loss.texts,
      });
      const flatText = await taken(textLayout, { text: dtext.gradients });
      // While they travel, the other tower works.
      const [textSum, dvision] = await Promise.all([
        this.reduced(textLayout, flatText),
        this.vision.backward.run({
          parameters: vision,
          input: uploaded.images,
          dembedding: loss.images,
        }),
      ]);
      const flatVision = await taken(visionLayout, { vision: dvision.gradients });
      const visionSum = await this.reduced(visionLayout, flatVision);
      const logitSum = Float32Array.of(loss.logitScale, loss.logitBias);
      const [from, to] = this.own(this.layouts[2]);
      const sums = [visionSum, textSum, logitSum.subarray(from, to)];
      const updated = await this.updated(sums, schedule);
      return { loss: loss.loss, terms: { sigmoid: loss.loss }, ...updated };
    } finally {
      disposeArrays([...made, uploaded]);
    }
  }

  /** Hands the whole state to `write` on rank 0, and gathers it there where it is in parts. */
  async save(write: (state: TrainingState<DeviceArray>) => Promise<void>): Promise<void> {
    const moments = this.sharded ? await this.gatheredMoments() : this.moments;
    try {
      if (this.comm.rank === 0 && moments !== undefined) {
        await write({ parameters: this.parameters, moments, averages: {} });
      }
    } finally {
      if (this.sharded) disposeArrays(moments);
    }
    await this.comm.barrier();
  }

  /** Frees the programs, and what the rank keeps beside the state it was made with. */
  dispose(): void {
    for (const program of [this.vision, this.text]) {
      program.forward.dispose();
      program.backward.dispose();
    }
    this.loss.dispose();
    this.norm.dispose();
    this.update.dispose();
    if (this.sharded) disposeArrays(this.owned);
  }

  private get sharded(): boolean {
    return this.config.shard === 'optimizer';
  }

  /** Where the parts of ranks begin in a layout, and the end; without shards each has all. */
  private parts(layout: FlatLayout): readonly number[] {
    if (this.sharded) return evenParts(layout.length, this.comm.size);
    return [...Array.from({ length: this.comm.rank + 1 }, () => 0), layout.length];
  }

  private own(layout: FlatLayout): readonly [number, number] {
    const parts = this.parts(layout);
    return [parts[this.comm.rank], parts[this.comm.rank + 1]];
  }

  private counts(layout: FlatLayout): number[] {
    const parts = evenParts(layout.length, this.comm.size);
    return parts.slice(1).map((end, r) => end - parts[r]);
  }

  /** What this rank works on of a tree: its arrays themselves, or copies of its pieces. */
  private async owning(tree: TwoTowersParameters<DeviceArray>): Promise<Arrays> {
    const leaves = arraysByPath(tree);
    const owned: Arrays = {};
    for (const { path, from, to, shape } of this.pieces.flat()) {
      const whole = at(leaves, path);
      if (this.sharded) {
        const values = (await whole.read()) as Float32Array;
        owned[path] = DeviceArray.from(values.subarray(from, to), shape, whole.device);
      } else {
        owned[path] = whole;
      }
    }
    return owned;
  }

  /** The rank's own part of the sum over ranks. */
  private async reduced(layout: FlatLayout, flat: Float32Array): Promise<Float32Array> {
    if (!this.sharded) {
      await this.comm.allReduce(flat);
      return flat;
    }
    const counts = this.counts(layout);
    const own = new Float32Array(counts[this.comm.rank]);
    await this.comm.reduceScatter(flat, counts, own);
    return own;
  }

  private async updated(
    sums: readonly Float32Array[],
    schedule: Float32Array,
  ): Promise<Omit<StepScalars<number>, 'loss' | 'terms'>> {
    const { device = 'cpu' } = this.config;
    const gradients: Arrays = {};
    try {
      for (const [i, pieces] of this.pieces.entries()) {
        for (const { path, start, from, to, shape } of pieces) {
          const part = sums[i].subarray(start, start + to - from);
          gradients[path] = DeviceArray.from(part, shape, device);
        }
      }
      const [gradientNorm] = await this.overRanks([(await this.norm.run({ gradients })).norm]);
      const { parameters, moments: state } = this.owned;
      const outputs = await this.update.run({
        parameters,
        state,
        gradients,
        gradientNorm: Float32Array.of(gradientNorm),
        schedule,
      });
      const [updateNorm, parameterNorm] = await this.overRanks([
        outputs.updateNorm,
        outputs.parameterNorm,
      ]);
      if (this.sharded) await this.gatherParameters();
      return { gradientNorm, updateNorm, parameterNorm };
    } finally {
      disposeArrays(gradients);
    }
  }

  /** Norms of what the ranks own together. Disposes the arrays. */
  private async overRanks(norms: readonly DeviceArray[]): Promise<number[]> {
    const own = await Promise.all(norms.map(async (norm) => (await norm.read())[0]));
    disposeArrays(norms);
    if (!this.sharded) return own;
    const squares = Float32Array.from(own, (norm) => norm * norm);
    await this.comm.allReduce(squares);
    return Array.from(squares, Math.sqrt);
  }

  private async gatherParameters(): Promise<void> {
    for (const [i, layout] of this.layouts.entries()) {
      const counts = this.counts(layout);
      const part = await this.ownPart(i, this.owned.parameters);
      const flat = new Float32Array(layout.length);
      await this.comm.allGather(part, counts, flat);
      for (const { path, start, length } of layout.leaves) {
        at(this.leaves, path).write(flat.subarray(start, start + length));
      }
    }
  }

  /** The rank's part of a layout in host memory. */
  private async ownPart(layout: number, arrays: Arrays): Promise<Float32Array> {
    const [from, to] = this.own(this.layouts[layout]);
    const part = new Float32Array(to - from);
    await Promise.all(
      this.pieces[layout].map(async ({ path, start }) => {
        part.set(await arrays[path].read(), start);
      }),
    );
    return part;
  }

  /** Moments of all ranks, in host memory of rank 0. */
  private async gatheredMoments(): Promise<TrainingState<DeviceArray>['moments'] | undefined> {
    const { m, v } = this.owned.moments;
    const wholes: ReadonlyMap<string, Float32Array>[] = [];
    for (const arrays of [m, v]) {
      const whole = new Map<string, Float32Array>();
      for (const [i, layout] of this.layouts.entries()) {
        const flat = await this.gatheredAtRoot(await this.ownPart(i, arrays), this.counts(layout));
        for (const { path, start, length } of layout.leaves) {
          if (flat !== undefined) whole.set(path, flat.subarray(start, start + length));
        }
      }
      wholes.push(whole);
    }
    if (this.comm.rank !== 0) return undefined;
    const [wholeM, wholeV] = wholes.map((whole) =>
      twoTowersParameters<DeviceArray>(this.config.model, ({ path, shape }) =>
        DeviceArray.from(at(whole, path), shape),
      ),
    );
    return { m: wholeM, v: wholeV };
  }

  private async gatheredAtRoot(
    part: Float32Array,
    counts: readonly number[],
  ): Promise<Float32Array | undefined> {
    if (this.comm.rank !== 0) {
      await this.comm.exchange([{ rank: 0, data: part }], []);
      return undefined;
    }
    const starts = startsOf(counts);
    const flat = new Float32Array(starts[this.comm.size]);
    flat.set(part);
    const others = counts.map((_, rank) => ({
      rank,
      data: flat.subarray(starts[rank], starts[rank + 1]),
    }));
    await this.comm.exchange([], others.slice(1));
    return flat;
  }
}

function tower<P extends object, I extends object>(
  name: string,
  parameters: P,
  input: I,
  dembedding: Spec,
  { device = 'cpu', precision = 'float32' }: StepOverRanksConfig,
  embed: (parameters: MapTree<P, Spec, Tensor>, input: MapTree<I, Spec, Tensor>) => Tensor,
): Tower<P, I> {
  interface Forward {
    parameters: P;
    input: I;
  }
  type Backward = Forward & { dembedding: Spec };
  const options = { device, precision };
  return {
    forward: compile<Forward, { embedding: Tensor }>(
      `${name} forward`,
      (inputs) => ({ embedding: embed(inputs.parameters, inputs.input) }),
      { parameters, input },
      options,
    ),
    // The gradient of ⟨embedding, dembedding⟩ is that of the loss whose gradient dembedding is.
    backward: compile<Backward, { gradients: MapTree<P, Spec, Tensor> }>(
      `${name} backward`,
      (inputs) => {
        const embedding = embed(inputs.parameters, inputs.input);
        const product = dot(embedding, inputs.dembedding);
        return {
          gradients: gradient(product, inputs.parameters) as MapTree<P, Spec, Tensor>,
        };
      },
      { parameters, input, dembedding },
      options,
    ),
  };
}

function upload(
  specs: StepBatch<Spec>,
  batch: StepBatch<HostArray>,
  device: Device,
): StepBatch<DeviceArray> {
  const shapes = flatten(specs).map(({ leaf }) => (leaf as Spec).shape);
  let next = 0;
  return mapTree<StepBatch<HostArray>, HostArray, DeviceArray>(batch, (data) =>
    DeviceArray.from(data, shapes[next++], device),
  );
}

/** Gradients in host memory, one behind the other; the arrays are disposed. */
async function taken(layout: FlatLayout, tree: object): Promise<Float32Array> {
  const arrays = arraysByPath(tree);
  try {
    const flat = new Float32Array(layout.length);
    await Promise.all(
      layout.leaves.map(({ path, start, length }) =>
        at(arrays, path).buffer.read(0, new Uint8Array(flat.buffer, start * 4, length * 4)),
      ),
    );
    return flat;
  } finally {
    disposeArrays([...arrays.values()]);
  }
}

function arraysByPath(tree: unknown): ReadonlyMap<string, DeviceArray> {
  return new Map(flatten(tree).map(({ path, leaf }) => [path, leaf as DeviceArray]));
}

function at<T>(leaves: ReadonlyMap<string, T>, path: string): T {
  const leaf = leaves.get(path);
  if (leaf !== undefined) return leaf;
  throw new SiglipError('ERR_ARGUMENT', `train: parameters must include ${path}, got none`);
}

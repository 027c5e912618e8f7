// The sigmoid loss of a batch whose pairs are spread over ranks. Logits are many and embeddings few, so
// every rank works its own images against the texts of all, which come in one of two ways:
//
// - gather: all texts at once; the gradients of texts are summed over ranks and scattered.
// - ring (SigLIP, arXiv 2303.15343 §3.3): the texts of one rank at a time, handed from neighbour to
//   neighbour, in one direction or in both; a text's gradient travels behind it and then goes home.
//
// Each gives the loss and gradients of the whole batch on one device, to rounding, and the same bits
// in every run: contributions are added in the order of ranks (gather) or of hops (ring).
import type { Device } from '../array';
import { DeviceArray } from '../array';
import type { Communicator, DeviceCommunicator } from '../comm';
import { deviceCommunicator, startsOf } from '../comm';
import { SiglipError } from '../errors';
import type { Program, Spec, Tensor } from '../graph';
import { compile, disposeArrays, float32, gradient } from '../graph';
import { accumulate, scaleBy, sigmoidLoss } from '../ops';
import { Additions } from './additions';

/** How the texts of other ranks come to a rank. */
export type TextExchange = 'gather' | 'ring' | 'twoWayRing';

export interface LossOverRanksConfig {
  readonly comm: Communicator;
  /** Pairs of every rank, each at least one; need not be equal. */
  readonly rows: readonly number[];
  /** E, the dimension of the embeddings. */
  readonly embedding: number;
  /**
   * Default `gather`, the fewest messages. A ring holds the texts of no more than one rank (two while
   * one is on its way; twice that in both directions), and neighbours alone talk to each other, but
   * for the gradients' way home in both directions.
   */
  readonly exchange?: TextExchange | undefined;
  /** By which the gradients are multiplied; the loss is not. Default 1. */
  readonly weight?: number;
  /** Where the embeddings are. Default `'cpu'`. */
  readonly device?: Device | undefined;
}

/** The loss over all ranks and the gradients of the own rows, which the caller disposes. */
export interface LossOverRanksResult {
  /** The loss of the whole batch, the same number on every rank. */
  readonly loss: number;
  /** (R, E) */
  readonly images: DeviceArray;
  /** (R, E) */
  readonly texts: DeviceArray;
  /** Of the whole batch, the same on every rank. */
  readonly logitScale: number;
  readonly logitBias: number;
}

interface BlockInputs<Leaf> {
  readonly images: Leaf;
  readonly texts: Leaf;
  readonly logitScale: Leaf;
  readonly logitBias: Leaf;
  /** Gradient of the images so far. */
  readonly sum: Leaf;
}

interface BlockOutputs {
  readonly loss: Tensor;
  readonly sum: Tensor;
  readonly texts: Tensor;
  readonly logitScale: Tensor;
  readonly logitBias: Tensor;
}

type Block = Program<BlockInputs<Spec>, BlockOutputs>;

/** What does not depend on whose texts a block has, and what is summed over blocks. */
interface UnderWay {
  readonly images: DeviceArray;
  readonly logitScale: DeviceArray;
  readonly logitBias: DeviceArray;
  readonly sum: DeviceArray;
  /** Loss, gradients of t and b, in float64 over blocks. */
  readonly scalars: [number, number, number];
}

/** One direction of a ring: after k hops a rank holds the texts of rank + direction · k. */
interface Lane {
  readonly direction: 1 | -1;
  readonly hops: number;
  texts: DeviceArray;
  /** What the ranks so far have put to these texts. */
  gradient: DeviceArray | undefined;
}

/**
 * Loss and gradients over ranks. All ranks make it with the same configuration and call `run` as
 * often.
 *
 * @throws ERR_ARGUMENT when rows are not one positive integer per rank.
 */
export class LossOverRanks {
  private readonly comm: DeviceCommunicator;
  private readonly starts: readonly number[];
  private readonly batch: number;
  private readonly blocks = new Map<string, Block>();
  private readonly additions: Additions;

  constructor(private readonly config: LossOverRanksConfig) {
    const { comm, rows } = config;
    if (rows.length !== comm.size || !rows.every((n) => Number.isSafeInteger(n) && n > 0)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `lossOverRanks: rows must be positive for each of ${String(comm.size)} ranks, got [${rows.join(', ')}]`,
      );
    }
    this.comm = deviceCommunicator(comm);
    this.additions = new Additions(config.device ?? 'cpu');
    this.starts = startsOf(rows);
    this.batch = this.starts[comm.size];
  }

  /**
   * The loss of the whole batch.
   *
   * @param texts - (R, E), unit rows.
   * @param images - makes (R, E), unit rows, while texts are on their way.
   * @param logits - t and b, (1) each.
   * @throws ERR_COMM; what the programs throw for arrays that do not fit.
   */
  async run(
    texts: DeviceArray,
    images: () => Promise<DeviceArray>,
    {
      logitScale,
      logitBias,
    }: { readonly logitScale: DeviceArray; readonly logitBias: DeviceArray },
  ): Promise<LossOverRanksResult> {
    const { exchange = 'gather', embedding, rows, device = 'cpu' } = this.config;
    const begin = async (): Promise<UnderWay> => ({
      images: await images(),
      logitScale,
      logitBias,
      sum: DeviceArray.zeros(float32(rows[this.comm.rank], embedding), device),
      scalars: [0, 0, 0],
    });
    const { state, gradient: dtexts } =
      exchange === 'gather' ? await this.gather(texts, begin) : await this.ring(texts, begin);
    const scalars = Float32Array.from(state.scalars);
    await this.comm.allReduce(scalars);
    const [loss, scale, bias] = scalars;
    return {
      loss,
      images: state.sum,
      texts: dtexts,
      logitScale: scale,
      logitBias: bias,
    };
  }

  /** Frees the programs. */
  dispose(): void {
    for (const block of this.blocks.values()) block.dispose();
    this.blocks.clear();
    this.additions.dispose();
  }

  private async gather(
    own: DeviceArray,
    begin: () => Promise<UnderWay>,
  ): Promise<{ state: UnderWay; gradient: DeviceArray }> {
    const { embedding, rows } = this.config;
    const counts = rows.map((n) => n * embedding);
    using all = this.room(this.batch);
    const [, state] = await Promise.all([this.comm.allGather(own, counts, all), begin()]);
    using gradients = await this.work(state, all, 0, this.batch);
    const gradient = this.room(rows[this.comm.rank]);
    await this.comm.reduceScatter(gradients, counts, gradient);
    return { state, gradient };
  }

  private async ring(
    own: DeviceArray,
    begin: () => Promise<UnderWay>,
  ): Promise<{ state: UnderWay; gradient: DeviceArray }> {
    const { rank, size } = this.comm;
    const others = size - 1;
    const backward = this.config.exchange === 'twoWayRing' ? Math.floor(others / 2) : 0;
    const lanes: Lane[] = [];
    const lane = (direction: 1 | -1, hops: number): Lane => ({
      ...{ direction, hops, texts: own, gradient: undefined },
    });
    if (others > 0) lanes.push(lane(1, others - backward));
    if (backward > 0) lanes.push(lane(-1, backward));

    // The texts of the next hop are on their way while those of this one are worked.
    let next = this.hop(lanes, 1, ({ texts }) => texts);
    const state = await begin();
    const gradient = await this.workRank(state, own, rank);
    for (let hop = 1; hop <= others - backward; hop++) {
      const active = lanes.filter(({ hops }) => hop <= hops);
      const arrived = await next;
      active.forEach((lane, i) => {
        if (hop > 1) lane.texts.dispose();
        lane.texts = arrived[i];
      });
      next = this.hop(lanes, hop + 1, ({ texts }) => texts);
      // And so are the gradients that other ranks have put to this hop's texts.
      const before = hop === 1 ? undefined : this.hop(lanes, hop, gradientOf);
      const added: DeviceArray[] = [];
      for (const { texts, direction } of active) {
        added.push(await this.workRank(state, texts, this.neighbour(direction * hop)));
      }
      const sums = await before;
      for (const [i, lane] of active.entries()) {
        lane.gradient?.dispose();
        lane.gradient = sums?.[i] ?? added[i];
        if (sums !== undefined) await this.additions.add(sums[i], added[i]);
      }
    }
    await next;
    const home = lanes.map(() => this.room(this.config.rows[rank]));
    await this.comm.exchange(
      lanes.map((lane) => ({
        rank: this.neighbour(lane.direction * lane.hops),
        data: gradientOf(lane),
      })),
      lanes.map((lane, i) => ({
        rank: this.neighbour(-lane.direction * lane.hops),
        data: home[i],
      })),
    );
    for (const part of home) await this.additions.add(gradient, part);
    disposeArrays(lanes.flatMap((lane) => [lane.texts, gradientOf(lane)]));
    return { state, gradient };
  }

  /** Hands what lanes have on by one rank; gives what they get, in the order of those that go so far. */
  private async hop(
    lanes: readonly Lane[],
    hop: number,
    what: (lane: Lane) => DeviceArray,
  ): Promise<DeviceArray[]> {
    const { rows } = this.config;
    const active = lanes.filter(({ hops }) => hop <= hops);
    const arriving = active.map(({ direction }) =>
      this.room(rows[this.neighbour(direction * hop)]),
    );
    if (active.length === 0) return [];
    await this.comm.exchange(
      active.map((lane) => ({ rank: this.neighbour(-lane.direction), data: what(lane) })),
      active.map(({ direction }, i) => ({ rank: this.neighbour(direction), data: arriving[i] })),
    );
    return arriving;
  }

  private neighbour(distance: number): number {
    const { rank, size } = this.comm;
    return (((rank + distance) % size) + size) % size;
  }

  private workRank(state: UnderWay, texts: DeviceArray, rank: number): Promise<DeviceArray> {
    return this.work(state, texts, this.starts[rank], this.config.rows[rank]);
  }

  /** Works the texts [start, start + columns) of the batch and gives their gradient from the own images. */
  private async work(
    state: UnderWay,
    texts: DeviceArray,
    start: number,
    columns: number,
  ): Promise<DeviceArray> {
    const { images, logitScale, logitBias, sum } = state;
    const block = this.block(this.starts[this.comm.rank] - start, columns);
    const outputs = await block.run({ images, texts, logitScale, logitBias, sum });
    const made = [outputs.loss, outputs.logitScale, outputs.logitBias];
    try {
      const scalars = await Promise.all(made.map((array) => array.read()));
      scalars.forEach((scalar, i) => (state.scalars[i] += scalar[0]));
      return outputs.texts;
    } finally {
      disposeArrays(made);
    }
  }

  /** Rows of embeddings, or of their gradient. */
  private room(rows: number): DeviceArray {
    const { embedding, device = 'cpu' } = this.config;
    return DeviceArray.empty(float32(rows, embedding), device);
  }

  private block(offset: number, columns: number): Block {
    const key = `${String(offset)} ${String(columns)}`;
    const existing = this.blocks.get(key);
    if (existing !== undefined) return existing;
    const { rows, embedding, weight = 1, device = 'cpu' } = this.config;
    const { batch } = this;
    const own = float32(rows[this.comm.rank], embedding);
    const block: Block = compile(
      'loss over ranks',
      ({ images, texts, logitScale, logitBias, sum }: BlockInputs<Tensor>): BlockOutputs => {
        const loss = sigmoidLoss(images, texts, logitScale, logitBias, { offset, batch });
        const { images: dimages, ...others } = gradient(scaleBy(loss, weight), {
          images,
          texts,
          logitScale,
          logitBias,
        });
        return { ...others, loss, sum: accumulate(sum, dimages) };
      },
      {
        images: own,
        texts: float32(columns, embedding),
        logitScale: float32(1),
        logitBias: float32(1),
        sum: own,
      },
      { donate: ['sum'], device },
    );
    this.blocks.set(key, block);
    return block;
  }
}

function gradientOf({ gradient }: Lane): DeviceArray {
  if (gradient !== undefined) return gradient;
  throw new SiglipError('ERR_COMM', 'lossOverRanks: texts must be worked before they go, got none');
}

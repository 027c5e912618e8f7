// The programs of a captioning decoder, compiled once per shape: the keys and values of an image, the next
// token of sequences about it, and what whole captions of it cost.
import type { Device, DeviceArray } from '../array';
import type { ConstantSource, Program, Spec, Tensor } from '../graph';
import { compile, Constants, disposeArrays, float32, int32 } from '../graph';
import type {
  DecoderCache,
  DecoderConfig,
  DecoderInput,
  DecoderParameters,
  DecoderStepInput,
} from '../model';
import { decoder, decoderInputSpecs, decoderStep, decoderStepSpecs, memoryCache } from '../model';
import * as ops from '../ops';
import type { CaptionBatch } from '../text';
import { ProgramCache } from './program_cache';
import type { NextLogits } from './search';

/** The tokens of one image after the final norm, (N, memory width). */
export type ImageMemory = Float32Array;

type StepProgram = Program<
  DecoderStepInput<Spec>,
  { logits?: Tensor; cache: DecoderCache<Tensor> }
>;

interface ScoreSpecs<Leaf> extends DecoderInput<Leaf> {
  readonly labels: Leaf;
  readonly weights: Leaf;
}

/** A decoder on a device. */
export class DecoderRuns {
  private readonly constants: Constants<DecoderParameters<ConstantSource>>;
  private readonly memories = new ProgramCache<
    Program<{ memory: Spec }, { memory: DecoderCache<Tensor> }>
  >();
  private readonly steps = new ProgramCache<StepProgram>();
  private readonly scores = new ProgramCache<Program<ScoreSpecs<Spec>, { rowLosses: Tensor }>>();

  constructor(
    readonly config: DecoderConfig,
    parameters: DecoderParameters<ConstantSource>,
    private readonly device: Device,
  ) {
    this.constants = new Constants(parameters);
  }

  /**
   * Starts `count` sequences about an image that begin with `prompt`, and gives what `search` asks for
   * their next tokens. The sequences are as many as `search` keeps alive, and the positions end with
   * the decoder's length.
   */
  async begin(
    memory: ImageMemory,
    prompt: ArrayLike<number>,
    count: number,
  ): Promise<DecodedSequences> {
    const { depth, length, width, memoryWidth } = this.config;
    const tokens = memory.length / memoryWidth;
    const program = this.memories.get(String(tokens), () =>
      compile(
        'decoder memory',
        (inputs, weights) => ({ memory: memoryCache(weights, inputs.memory) }),
        { memory: float32(1, tokens, memoryWidth) },
        { constants: this.constants, device: this.device },
      ),
    );
    const keysAndValues = await program.run({ memory });
    const empty = new Float32Array(count * length * width);
    const sequences = new DecodedSequences(
      (logits) => this.step(count, tokens, logits),
      this.config,
      count,
      keysAndValues.memory,
      Array.from({ length: depth }, () => ({ keys: empty, values: empty })),
    );
    try {
      await sequences.read(prompt);
      return sequences;
    } catch (error) {
      sequences.dispose();
      throw error;
    }
  }

  /**
   * Logarithms of the probabilities of captions of an image: sums over the ids with weight.
   *
   * @param batch - as many sequences as captions, of the decoder's length
   */
  async logLikelihoods(memory: ImageMemory, batch: CaptionBatch): Promise<Float64Array> {
    const { length, memoryWidth, width } = this.config;
    const sequences = batch.causal.length;
    const tokens = memory.length / memoryWidth;
    const rows = sequences * length;
    const program = this.scores.get(`${String(sequences)}x${String(tokens)}`, () =>
      compile(
        'caption scores',
        (inputs, weights) => {
          const hidden = decoder(weights, this.config, inputs);
          const { rowLosses } = ops.vocabularyLoss(
            ops.reshape(hidden, [rows, width]),
            weights.head.weight,
            weights.head.bias,
            ops.reshape(inputs.labels, [rows]),
            ops.reshape(inputs.weights, [rows]),
          );
          return { rowLosses };
        },
        {
          ...decoderInputSpecs(this.config, sequences, [1, tokens]),
          labels: int32(sequences, length),
          weights: float32(sequences, length),
        },
        { constants: this.constants, device: this.device },
      ),
    );
    const { ids, causal, labels, weights } = batch;
    const losses = await program.read(
      { ids, causal, memory, labels, weights },
      ({ rowLosses }) => rowLosses,
    );
    const sums = new Float64Array(sequences);
    losses.forEach((loss, row) => (sums[Math.floor(row / length)] -= loss));
    return sums;
  }

  /** Frees weights and programs now. Idempotent. */
  dispose(): void {
    this.memories.dispose();
    this.steps.dispose();
    this.scores.dispose();
    this.constants.dispose();
  }

  // Logits are the largest product of all, and only wanted behind the prompt.
  private step(count: number, tokens: number, logits: boolean): StepProgram {
    const key = `${String(count)}x${String(tokens)}${logits ? ' with logits' : ''}`;
    return this.steps.get(key, () =>
      compile(
        'decoder step',
        (inputs: DecoderStepInput<Tensor>, weights: DecoderParameters<Tensor>) => {
          const { hidden, cache } = decoderStep(weights, this.config, inputs);
          if (!logits) return { cache };
          return { logits: ops.linear(hidden, weights.head.weight, weights.head.bias), cache };
        },
        decoderStepSpecs(this.config, count, [1, tokens]),
        { constants: this.constants, device: this.device },
      ),
    );
  }
}

/** Sequences about one image and what they have left of themselves on the device. */
export class DecodedSequences {
  private position = 0;
  private newest: number;

  /** See {@link DecoderRuns.begin}. */
  constructor(
    private readonly program: (logits: boolean) => StepProgram,
    private readonly config: DecoderConfig,
    private readonly count: number,
    private readonly memory: DecoderCache<DeviceArray>,
    private cache: DecoderCache<DeviceArray | Float32Array>,
  ) {
    // What goes in before the first token.
    this.newest = 0;
  }

  /** Positions left for tokens that are found. */
  get left(): number {
    return this.config.length - this.position;
  }

  /** Takes tokens that are given, the same for all sequences. */
  async read(prompt: ArrayLike<number>): Promise<void> {
    for (const token of Array.from(prompt)) {
      await this.run(new Int32Array(this.count).fill(this.newest), [], false);
      this.newest = token;
    }
  }

  /** What `search` asks; fewer sequences than there is room for are filled up with the first. */
  readonly next: NextLogits = async (tokens, parents) => {
    const ids = new Int32Array(this.count).fill(tokens[0] ?? this.newest);
    ids.set(tokens);
    const logits = await this.run(ids, parents, true);
    return logits.subarray(0, parents.length * this.config.vocabulary);
  };

  /** Frees what it holds. Idempotent. */
  dispose(): void {
    disposeArrays(this.memory);
    this.disposeCache();
  }

  private async run(
    ids: Int32Array,
    parents: readonly number[],
    logits: boolean,
  ): Promise<Float32Array> {
    const { length } = this.config;
    const { count, position } = this;
    const outputs = await this.program(logits).run({
      ids,
      positions: new Int32Array(count).fill(position),
      parents: Int32Array.from({ length: count }, (_, i) => parents[i] ?? parents[0] ?? i),
      keyMask: Uint8Array.from({ length: count * length }, (_, i) =>
        i % length <= position ? 1 : 0,
      ),
      cache: this.cache,
      memory: this.memory,
    });
    this.disposeCache();
    this.cache = outputs.cache;
    this.position++;
    if (outputs.logits === undefined) return new Float32Array();
    const values = await outputs.logits.read();
    outputs.logits.dispose();
    return values as Float32Array;
  }

  private disposeCache(): void {
    for (const { keys, values } of this.cache) {
      for (const array of [keys, values]) if ('dispose' in array) array.dispose();
    }
  }
}

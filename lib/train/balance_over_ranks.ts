// Sinkhorn-Knopp over a batch whose examples are spread over ranks. Features are few numbers and logits
// many, so every rank gets the features of all and makes the same centre of them.
import type { Device } from '../array';
import { DeviceArray } from '../array';
import type { Communicator } from '../comm';
import { deviceCommunicator } from '../comm';
import type { Program, Spec, Tensor } from '../graph';
import { compile, float32 } from '../graph';
import { sinkhornOf } from '../loss';

interface Inputs {
  readonly features: Spec;
  readonly prototypes: Spec;
  readonly temperature: Spec;
}

/** The centre over all ranks. All make it with the same rows and call `run` as often. */
export class BalanceOverRanks {
  private readonly program: Program<Inputs, { centre: Tensor }>;
  /** Numbers of every rank's features. */
  private readonly counts: readonly number[];

  /**
   * @param rows - examples of every rank.
   * @param features - (m, F), those of this rank's examples, as many for each.
   * @param prototypes - (K, F)
   */
  constructor(
    private readonly comm: Communicator,
    rows: readonly number[],
    { shape: [own = 0, width = 0] }: Spec,
    { dtype, shape }: Spec,
    private readonly device: Device,
  ) {
    const each = own / rows[comm.rank];
    this.counts = rows.map((n) => n * each * width);
    const all = rows.reduce((sum, n) => sum + n, 0) * each;
    this.program = compile<Inputs, { centre: Tensor }>(
      'balance over ranks',
      (teacher) => ({ centre: sinkhornOf(teacher) }),
      { features: float32(all, width), prototypes: { dtype, shape }, temperature: float32(1) },
      { device },
    );
  }

  /**
   * @param features - (m, F) of the own examples, unit rows.
   * @param prototypes - (K, F), unit rows, the same on every rank.
   * @param temperature - (1)
   * @returns (K), which the caller disposes.
   * @throws ERR_COMM
   */
  async run(
    features: DeviceArray,
    prototypes: DeviceArray,
    temperature: DeviceArray,
  ): Promise<DeviceArray> {
    const [, width] = features.shape;
    const numbers = this.counts.reduce((sum, n) => sum + n, 0);
    using all = DeviceArray.empty(float32(numbers / width, width), this.device);
    await deviceCommunicator(this.comm).allGather(features, this.counts, all);
    const { centre } = await this.program.run({ features: all, prototypes, temperature });
    return centre;
  }

  /** Frees the program. */
  dispose(): void {
    this.program.dispose();
  }
}

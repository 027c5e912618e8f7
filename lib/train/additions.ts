// Sums of arrays of a device, there.
import type { Device, DeviceArray } from '../array';
import type { Program, Spec, Tensor } from '../graph';
import { compile, float32 } from '../graph';
import { accumulate } from '../ops';

type Addition = Program<{ sum: Spec; x: Spec }, { sum: Tensor }>;

/** Adds float32 arrays of a device to others, a program for each shape. */
export class Additions {
  private readonly programs = new Map<string, Addition>();

  constructor(private readonly device: Device) {}

  /** sum + x in the place of `sum`; disposes `x`. */
  async add(sum: DeviceArray, x: DeviceArray): Promise<void> {
    try {
      await this.program(sum.shape).run({ sum, x });
    } finally {
      x.dispose();
    }
  }

  /** Frees the programs. */
  dispose(): void {
    for (const program of this.programs.values()) program.dispose();
    this.programs.clear();
  }

  private program(shape: readonly number[]): Addition {
    const key = shape.join(' ');
    const existing = this.programs.get(key);
    if (existing !== undefined) return existing;
    const spec = float32(...shape);
    const made: Addition = compile(
      'sum',
      ({ sum, x }: { sum: Tensor; x: Tensor }) => ({ sum: accumulate(sum, x) }),
      { sum: spec, x: spec },
      { donate: ['sum'], device: this.device },
    );
    this.programs.set(key, made);
    return made;
  }
}

// A linear layer whose weight is packed in the same program, over plain arrays.
import { DeviceArray } from '../../lib/array';
import type { Tensor } from '../../lib/graph';
import { compile } from '../../lib/graph';
import { float32 } from '../../lib/native/spec';
import type { NdArray } from '../reference/nd_array';

/** x (M, K), weight (N, K) -> x · Wᵀ by `layer(x, weight, N)`. */
export async function multiplyPacked(
  layer: (x: Tensor, weight: Tensor, outputs: number) => Tensor,
  x: NdArray,
  weight: NdArray,
): Promise<ArrayLike<number>> {
  const program = compile('packed layer', (t) => ({ y: layer(t.x, t.weight, weight.shape[0]) }), {
    x: float32(...x.shape),
    weight: float32(...weight.shape),
  });
  const inputs = {
    x: DeviceArray.from(Float32Array.from(x.data), x.shape),
    weight: DeviceArray.from(Float32Array.from(weight.data), weight.shape),
  };
  const { y } = await program.run(inputs);
  const values = await y.read();
  for (const array of [...Object.values(inputs), y]) array.dispose();
  program.dispose();
  return values;
}

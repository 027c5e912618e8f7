// Positions of NaFlex grids for a peer whose graph takes them ready-made.
import { compile, int32 } from '../lib/graph';
import type { Spec, Tensor } from '../lib/graph';
import * as ops from '../lib/ops';
import { openSafetensors } from '../lib/weights';

/**
 * The learned table resized to every grid [h, w], (h·w, D), as our own towers resize it.
 *
 * @param weights - a model.safetensors of transformers
 */
export async function resizedPositions(
  weights: string,
  grids: readonly (readonly [number, number])[],
): Promise<Float32Array[]> {
  const file = openSafetensors(weights);
  const table = await file.load('vision_model.embeddings.position_embedding.weight');
  file.dispose();
  const results: Float32Array[] = [];
  for (const [h, w] of grids) {
    const program = compile<{ table: Spec; shapes: Spec }, { positions: Tensor }>(
      'positions',
      (input) => ({ positions: ops.positionResize(input.table, input.shapes, h * w) }),
      { table: { dtype: 'float32', shape: table.shape }, shapes: int32(1, 2) },
    );
    const { positions } = await program.run({ table, shapes: Int32Array.of(h, w) });
    const values = await positions.read();
    if (!(values instanceof Float32Array)) throw new Error('positions: must be float32');
    results.push(values);
    positions.dispose();
    program.dispose();
  }
  table.dispose();
  return results;
}
